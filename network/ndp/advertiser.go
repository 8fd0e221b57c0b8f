// Package ndp sends router advertisements (RFC 4861) to the guests of a network: the IPv6
// prefix of their link, and their router. Addresses come from DHCPv6.
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

// Intervals of the advertisements (RFC 4861, sections 6.2.1, 6.2.4 and 10).
const (
	minInterval     = 200 * time.Second
	maxInterval     = 600 * time.Second
	initialInterval = 16 * time.Second // between the first few
	initialCount    = 3
	minBetween      = 3 * time.Second // to all nodes
	retryAfter      = time.Second     // after a failure, as until the bridge has a port
	maxRetryAfter   = time.Minute

	repliesPerSecond = 1 // to one guest; an ordinary one asks 3 times, 4 s apart (section 6.3.7)
	repliesBurst     = 5
	maxClients       = 1024 // guests with a limit of their own
	maxMessage       = 1500
)

var (
	routerAddress = netip.MustParseAddr("fe80::1")
	allNodes      = netip.MustParseAddr("ff02::1")
	allRouters    = netip.MustParseAddr("ff02::2")
)

// Options configure an [Advertiser].
type Options struct {
	Interface string     // has the address fe80::1; the advertiser is bound to it
	Network   vm.Network // of mode nat or isolated
	Log       *slog.Logger
}

// An Advertiser sends router advertisements on one interface. It is safe for concurrent use.
type Advertiser struct {
	name    string // of the interface
	index   int    // of the interface
	log     *guard.Log
	clients *guard.Clients[netip.Addr]
	raw     *net.IPConn
	conn    *ipv6.PacketConn

	ctx       context.Context // done after Close
	end       context.CancelFunc
	solicited chan struct{} // holds a token after a solicitation that all nodes get a reply to
	changed   chan struct{} // holds a token after a change of the record
	loops     sync.WaitGroup
	failure   guard.Failure

	mu     sync.Mutex
	record vm.Network // guarded by mu
}

// New starts an advertiser that runs until [Advertiser.Close]. It sends nothing while the
// network has no IPv6 prefix. It opens its socket in the network namespace of the calling
// thread.
func New(o Options) (*Advertiser, error) {
	bind := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), o.Interface) })
		return errors.Join(err, failed)
	}}
	socket, err := bind.ListenPacket(context.Background(), "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, fmt.Errorf("listen for ICMPv6 on %s: %w", o.Interface, err)
	}
	a := &Advertiser{
		name:      o.Interface,
		log:       guard.NewLog(o.Log.With("network", o.Network.Name)),
		clients:   guard.NewClients[netip.Addr](repliesPerSecond, repliesBurst, maxClients),
		raw:       socket.(*net.IPConn),
		conn:      ipv6.NewPacketConn(socket),
		solicited: make(chan struct{}, 1),
		changed:   make(chan struct{}, 1),
		record:    o.Network,
	}
	if err := a.prepare(); err != nil {
		err = fmt.Errorf("prepare router advertisements on %s: %w", o.Interface, err)
		return nil, errors.Join(err, socket.Close())
	}
	a.ctx, a.end = context.WithCancel(context.Background())
	a.loops.Go(a.advertise)
	solicitations := guard.Datagrams[solicitor]{
		Read:    a.read,
		Handle:  a.handle,
		Size:    maxMessage,
		Workers: 1,
		Log:     a.log,
	}
	a.loops.Go(func() { a.failure.Set(solicitations.Serve(a.ctx)) })
	return a, nil
}

// prepare makes the socket receive only router solicitations.
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
		return fmt.Errorf("request hop limits: %w", err)
	}
	if err := a.conn.SetMulticastLoopback(false); err != nil {
		return fmt.Errorf("disable multicast loopback: %w", err)
	}
	group := &net.IPAddr{IP: allRouters.AsSlice()}
	if err := a.conn.JoinGroup(&net.Interface{Index: a.index}, group); err != nil {
		return fmt.Errorf("join the all-routers group: %w", err)
	}
	return nil
}

// A solicitor is the sender of a message.
type solicitor struct {
	source netip.Addr
	hops   int // the hop limit of the message on arrival
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

// handle replies to a solicitation. If the solicitor has no address yet or exceeds its
// limit, the reply goes to all nodes, later.
func (a *Advertiser) handle(b []byte, s solicitor) {
	if !validSolicitation(b, s.source, s.hops) {
		return
	}
	nw := a.network()
	if !nw.IPv6.IsValid() {
		return
	}
	if s.source.IsUnspecified() || !a.clients.Allow(s.source) {
		signal(a.solicited)
		return
	}
	if err := a.send(nw, false, s.source); err != nil && a.ctx.Err() == nil {
		a.log.Warn("cannot send a router advertisement", "err", err)
	}
}

// A schedule holds the state of the advertisements to all nodes.
type schedule struct {
	last  time.Time     // of the last one sent
	sent  int           // since the start or the last change
	retry time.Duration // the pause after the next failure
}

// advertise sends advertisements to all nodes until Close.
func (a *Advertiser) advertise() {
	s := schedule{retry: retryAfter}
	for {
		timer := time.NewTimer(a.sendToAll(&s))
		select {
		case <-a.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-a.changed:
			timer.Stop()
			s.sent, s.retry = 0, retryAfter
			if !a.waitBetween(s.last) {
				return
			}
		case <-a.solicited:
			timer.Stop()
			if !a.waitBetween(s.last) {
				return
			}
		}
	}
}

// waitBetween blocks until minBetween has passed since last. It returns false after Close.
func (a *Advertiser) waitBetween(last time.Time) bool {
	timer := time.NewTimer(time.Until(last.Add(minBetween)))
	defer timer.Stop()
	select {
	case <-a.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// sendToAll sends an advertisement to all nodes and returns the pause until the next one.
func (a *Advertiser) sendToAll(s *schedule) time.Duration {
	nw := a.network()
	if !nw.IPv6.IsValid() {
		return maxInterval
	}
	if err := a.send(nw, false, allNodes); err != nil {
		wait := s.retry
		s.retry = min(2*s.retry, maxRetryAfter)
		if !bridgeNotReady(err) && a.ctx.Err() == nil {
			a.log.Warn("cannot send a router advertisement", "err", err)
		}
		return wait
	}
	s.last, s.retry = time.Now(), retryAfter
	s.sent++
	if s.sent <= initialCount {
		return initialInterval
	}
	return minInterval + rand.N(maxInterval-minInterval)
}

// bridgeNotReady reports whether err is that of a bridge without a port. Its addresses cannot
// be used yet.
func bridgeNotReady(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENETDOWN)
}

// send sends the advertisement of a network to an address.
func (a *Advertiser) send(nw vm.Network, withdrawn bool, to netip.Addr) error {
	return a.write(to, func(link net.HardwareAddr) []byte { return advertisement(nw, link, withdrawn) })
}

// write sends the message that a function returns for the address of the interface. It reads
// that address each time: that of a bridge may change with its ports.
func (a *Advertiser) write(to netip.Addr, message func(link net.HardwareAddr) []byte) error {
	link, err := guard.LinkAddress(a.raw, a.name)
	if err != nil {
		return err
	}
	control := &ipv6.ControlMessage{HopLimit: hopLimit, Src: routerAddress.AsSlice(), IfIndex: a.index}
	_, err = a.conn.WriteTo(message(link), control, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// Update makes the advertiser follow a changed record. If the IPv6 prefix or a search domain was
// removed or replaced, it withdraws the old one at once. It is a no-op if the advertisement stays
// the same.
func (a *Advertiser) Update(nw vm.Network) {
	a.mu.Lock()
	old := a.record
	a.record = nw
	a.mu.Unlock()
	if old.IPv6.IsValid() && old.IPv6 != nw.IPv6 {
		if err := a.send(old, true, allNodes); err != nil && a.ctx.Err() == nil {
			a.log.Warn("cannot withdraw a router advertisement", "err", err)
		}
	}
	if removed := removedDomains(old, nw); len(removed) > 0 && old.IPv6 == nw.IPv6 && nw.IPv6.IsValid() {
		end := func(link net.HardwareAddr) []byte { return withdrawal(nw, link, removed) }
		if err := a.write(allNodes, end); err != nil && !bridgeNotReady(err) && a.ctx.Err() == nil {
			a.log.Warn("cannot withdraw search domains", "err", err)
		}
	}
	same := old.IPv6.IsValid() && nw.IPv6.IsValid() &&
		bytes.Equal(advertisement(old, nil, false), advertisement(nw, nil, false))
	if !same {
		signal(a.changed)
	}
}

// signal puts a token into a channel of size one. It does not block.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// network returns the present record.
func (a *Advertiser) network() vm.Network {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.record
}

// Err returns nil while the advertiser runs. Otherwise it returns the reason: its socket
// failed, the interface is gone, or the advertiser was closed.
func (a *Advertiser) Err() error {
	if err := a.failure.Err(); err != nil {
		return err
	}
	return guard.CheckInterface(a.raw, a.name, a.index)
}

// Close stops the advertiser and waits for its goroutines. It does not withdraw the prefix:
// guests keep it while vmand is upgraded.
func (a *Advertiser) Close() error {
	a.end()
	a.failure.Set(net.ErrClosed)
	err := a.raw.Close()
	a.loops.Wait()
	return err
}
