// Package ndp tells the guests of a network by router advertisements (RFC 4861)
// which IPv6 prefix is on their link and who routes. Addresses are given by DHCPv6.
package ndp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"vmand/network/guard"
	"vmand/vm"
)

// When advertisements are sent (RFC 4861, sections 6.2.1, 6.2.4 and 10).
const (
	minInterval     = 200 * time.Second
	maxInterval     = 600 * time.Second
	initialInterval = 16 * time.Second // between the first few
	initialCount    = 3
	minBetween      = 3 * time.Second // to all nodes
	retryAfter      = time.Second     // when one could not be sent, as until the bridge has a port
	maxRetryAfter   = time.Minute

	answersPerSecond = 1 // to one guest; one that works asks 3 times, 4 s apart (section 6.3.7)
	answersBurst     = 5
	clientsRoom      = 1024
	maxMessage       = 1500
)

var (
	routerAddress = netip.MustParseAddr("fe80::1")
	allNodes      = netip.MustParseAddr("ff02::1")
	allRouters    = netip.MustParseAddr("ff02::2")
)

// Options are what an [Advertiser] is made of.
type Options struct {
	Interface string     // the advertiser is bound to it; it has the address fe80::1
	Network   vm.Network // of mode nat or isolated
	Log       *slog.Logger
}

// An Advertiser sends router advertisements on one interface.
type Advertiser struct {
	name    string
	index   int // of the interface
	log     *guard.Log
	clients *guard.Clients[netip.Addr]
	raw     *net.IPConn
	conn    *ipv6.PacketConn

	ctx    context.Context // of the advertiser's life
	end    context.CancelFunc
	asked  chan struct{} // holds a token when all nodes are to be told
	change chan struct{} // holds a token when the network has changed
	loops  sync.WaitGroup
	ended  guard.End

	mu      sync.Mutex
	network vm.Network
}

// New makes an advertiser that works until [Advertiser.Close]; without IPv6 in
// the network it has nothing to do until an [Advertiser.Update] brings it. Its
// socket is made in the network namespace of the calling thread.
func New(o Options) (*Advertiser, error) {
	bind := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), o.Interface) })
		return errors.Join(err, failed)
	}}
	socket, err := bind.ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, fmt.Errorf("listen to ICMPv6 on %s: %w", o.Interface, err)
	}
	a := &Advertiser{
		name:    o.Interface,
		log:     guard.NewLog(o.Log.With("network", o.Network.Name)),
		clients: guard.NewClients[netip.Addr](answersPerSecond, answersBurst, clientsRoom),
		raw:     socket.(*net.IPConn),
		conn:    ipv6.NewPacketConn(socket),
		asked:   make(chan struct{}, 1),
		change:  make(chan struct{}, 1),
		network: o.Network,
	}
	if err := a.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare router advertisements on %s: %w", o.Interface, err), socket.Close())
	}
	a.ctx, a.end = context.WithCancel(context.Background())
	a.loops.Go(a.advertise)
	a.loops.Go(func() {
		a.ended.Because(guard.Datagrams[solicitor]{Read: a.read, Handle: a.handle, Size: maxMessage, Workers: 1, Log: a.log}.Serve(a.ctx))
	})
	return a, nil
}

// prepare makes the socket hear router solicitations and nothing else.
func (a *Advertiser) prepare() error {
	var err error
	if a.index, err = guard.InterfaceIndex(a.raw, a.name); err != nil {
		return err
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	if err := a.conn.SetICMPFilter(&filter); err != nil {
		return fmt.Errorf("filter ICMPv6: %w", err)
	}
	if err := a.conn.SetControlMessage(ipv6.FlagHopLimit, true); err != nil {
		return fmt.Errorf("ask for hop limits: %w", err)
	}
	if err := a.conn.SetMulticastLoopback(false); err != nil {
		return fmt.Errorf("switch multicast loopback off: %w", err)
	}
	if err := a.conn.JoinGroup(&net.Interface{Index: a.index}, &net.IPAddr{IP: allRouters.AsSlice()}); err != nil {
		return fmt.Errorf("join the group of routers: %w", err)
	}
	return nil
}

// A solicitor is who sent a message, and how far away it is.
type solicitor struct {
	source netip.Addr
	hops   int
}

func (a *Advertiser) read(b []byte) (int, solicitor, error) {
	n, control, from, err := a.conn.ReadFrom(b)
	if err != nil {
		return 0, solicitor{}, err
	}
	s := solicitor{}
	if control != nil {
		s.hops = control.HopLimit
	}
	if ip, ok := from.(*net.IPAddr); ok {
		s.source, _ = netip.AddrFromSlice(ip.IP)
	}
	return n, s, nil
}

// handle answers one solicitation: to whoever asked, or, soon, to all nodes if
// that one has no address yet or too many ask.
func (a *Advertiser) handle(b []byte, s solicitor) {
	if !validSolicitation(b, s.source, s.hops) {
		return
	}
	n := a.config()
	if !n.IPv6.IsValid() {
		return
	}
	if s.source.IsUnspecified() || !a.clients.Allow(s.source) {
		signal(a.asked)
		return
	}
	if err := a.send(n, false, s.source); err != nil && a.ctx.Err() == nil {
		a.log.Warn("a router advertisement cannot be sent", "err", err)
	}
}

// advertise sends advertisements to all nodes until the end.
func (a *Advertiser) advertise() {
	var last time.Time
	retry := retryAfter
	for sent := 0; ; {
		wait := a.tell(&last, &sent, &retry)
		timer := time.NewTimer(wait)
		select {
		case <-a.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-a.change:
			sent, retry = 0, retryAfter
			timer.Stop()
			if !a.rest(last) {
				return
			}
		case <-a.asked:
			timer.Stop()
			if !a.rest(last) {
				return
			}
		}
	}
}

// rest waits until advertisements may be sent to all nodes again; false at the end.
func (a *Advertiser) rest(last time.Time) bool {
	timer := time.NewTimer(time.Until(last.Add(minBetween)))
	defer timer.Stop()
	select {
	case <-a.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// tell sends what is to be said to all nodes now, and returns when to come back.
func (a *Advertiser) tell(last *time.Time, sent *int, retry *time.Duration) time.Duration {
	n := a.config()
	if !n.IPv6.IsValid() {
		return maxInterval
	}
	if err := a.send(n, false, allNodes); err != nil {
		wait := *retry
		*retry = min(2**retry, maxRetryAfter)
		// Until a bridge has its first port, its addresses are of no use.
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENETDOWN) && a.ctx.Err() == nil {
			a.log.Warn("a router advertisement cannot be sent", "err", err)
		}
		return wait
	}
	*last, *retry = time.Now(), retryAfter
	*sent++
	if *sent <= initialCount {
		return initialInterval
	}
	return minInterval + rand.N(maxInterval-minInterval)
}

// send sends the advertisement for a network. The interface is asked for its
// address each time: that of a bridge may change with its ports.
func (a *Advertiser) send(n vm.Network, withdrawn bool, to netip.Addr) error {
	link, err := guard.LinkAddress(a.raw, a.name)
	if err != nil {
		return err
	}
	control := &ipv6.ControlMessage{HopLimit: hopLimit, Src: routerAddress.AsSlice(), IfIndex: a.index}
	_, err = a.conn.WriteTo(advertisement(n, link, withdrawn), control, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// Update makes the advertiser tell from now on what n says. If n has no IPv6
// prefix any more, or another one, guests are told at once that the old one is
// over. It does nothing if n says nothing new.
func (a *Advertiser) Update(n vm.Network) {
	a.mu.Lock()
	old := a.network
	a.network = n
	a.mu.Unlock()
	if old.IPv6.IsValid() && old.IPv6 != n.IPv6 {
		if err := a.send(old, true, allNodes); err != nil && a.ctx.Err() == nil {
			a.log.Warn("guests cannot be told that a router is gone", "err", err)
		}
	}
	if !old.IPv6.IsValid() || !n.IPv6.IsValid() || !bytes.Equal(advertisement(old, nil, false), advertisement(n, nil, false)) {
		signal(a.change)
	}
}

// signal leaves a token in a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (a *Advertiser) config() vm.Network {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.network
}

// Err returns nil while the advertiser works, else why it does not: its socket
// has failed, the interface is gone, or it was closed.
func (a *Advertiser) Err() error {
	if err := a.ended.Err(); err != nil {
		return err
	}
	return guard.StillThere(a.raw, a.name, a.index)
}

// Close ends the advertiser and waits for its goroutines. Guests keep what they
// were told, for as long as they were told: a daemon that is replaced by a newer
// one must not cut them off.
func (a *Advertiser) Close() error {
	a.end()
	a.ended.Because(net.ErrClosed)
	err := a.raw.Close()
	a.loops.Wait()
	return err
}
