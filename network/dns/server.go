// Package dns answers the queries of a network's guests. It answers for the names and
// addresses of the network itself, and forwards all other queries to the host's resolvers.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"vmand/network/guard"
	"vmand/vm"
)

// Limits of the work that guests can cause. An ordinary guest does not meet them: a mail
// server or a crawler looks up hundreds of names at once.
const (
	queriesPerSecond = 1000 // of one client
	queriesBurst     = 2000
	maxClients       = 4096 // clients with a limit of their own
	workers          = 4    // of each socket
	maxQueue         = 1024 // queries of one socket that wait for a worker
	maxQuery         = 4096 // bytes
	receiveBuffer    = 2 << 20
	lookupTime       = 2 * time.Second

	maxForwards        = 256 // at once; each has a socket
	maxForwardsClient  = 64  // at once, of one client
	maxForwardsWaiting = 2048
	maxWaitingClient   = 1024
)

// A Directory finds the recorded lease of a name or an address. It returns an error of class
// [vm.ErrNotFound] if there is none.
type Directory interface {
	LeaseByName(ctx context.Context, networkName, hostname string) (vm.Lease, error)
	LeaseByIP(ctx context.Context, networkName string, ip netip.Addr) (vm.Lease, error)
}

// Options configure a [Server].
type Options struct {
	Interface string     // has the gateway's addresses; the server is bound to it
	Network   vm.Network // of mode nat or isolated
	Directory Directory
	Upstreams []netip.AddrPort // receive forwarded queries; nil: those of /etc/resolv.conf, which is reread
	Log       *slog.Logger
}

// A Server answers DNS queries on one interface. It is safe for concurrent use.
type Server struct {
	name      string // of the interface
	directory Directory
	log       *guard.Log
	clients   *guard.Clients[netip.Addr]
	upstreams *upstreams
	cache     *cache

	ctx     context.Context // done after Close
	end     context.CancelFunc
	work    sync.WaitGroup
	failure guard.Failure

	forwards *gate  // forwarded queries
	streams  *quota // TCP connections
	limited  limited

	mu        sync.Mutex // guards the fields below
	zone      zone
	listeners map[netip.Addr]*listener
}

// New starts a server that serves until [Server.Close]. It opens the sockets in the network
// namespace of the calling thread.
func New(o Options) (*Server, error) {
	s := &Server{
		name:      o.Interface,
		directory: o.Directory,
		log:       guard.NewLog(o.Log.With("network", o.Network.Name)),
		clients:   guard.NewClients[netip.Addr](queriesPerSecond, queriesBurst, maxClients),
		upstreams: &upstreams{fixed: o.Upstreams, file: resolvConf},
		cache:     newCache(),
		forwards: &gate{
			inTotal: maxForwards, perClient: maxForwardsClient,
			waitingInTotal: maxForwardsWaiting, waitingPerClient: maxWaitingClient,
			clients: map[netip.Addr]*queue{},
		},
		limited:   limited{clients: map[netip.Addr]Limited{}},
		streams:   newQuota(maxStreams, maxStreamsClient),
		listeners: map[netip.Addr]*listener{},
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.Update(o.Network)
	if err := s.Err(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Update makes the server follow a changed record. It opens sockets in the network namespace
// of the calling thread; [Server.Err] reports whether that failed.
func (s *Server) Update(nw vm.Network) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone = newZone(nw, s.zone)
	if s.ctx.Err() != nil {
		return
	}
	wanted := map[netip.Addr]bool{nw.Gateway: true}
	if a := nw.GatewayIPv6(); a.IsValid() {
		wanted[a] = true
	}
	for a, l := range s.listeners {
		if !wanted[a] {
			l.close()
			delete(s.listeners, a)
		}
	}
	for a := range wanted {
		if s.listeners[a] != nil {
			continue
		}
		l, err := s.listen(a)
		if err != nil {
			s.failure.Set(err)
			return
		}
		s.listeners[a] = l
	}
}

// A listener holds the sockets of one address. Queries of guests by UDP are read from frames,
// before the host's firewall judges them: many firewalls drop everything that they do not
// know. The UDP socket sends the replies, and receives the queries of the host itself.
type listener struct {
	ctx     context.Context // done after close
	end     context.CancelFunc
	address netip.Addr
	frames  *guard.Frames
	udp     *net.UDPConn
	tcp     *net.TCPListener
	index   int // of the interface
}

func (l *listener) close() error {
	l.end()
	err := errors.Join(l.udp.Close(), l.tcp.Close())
	if l.frames != nil {
		err = errors.Join(err, l.frames.Close())
	}
	return err
}

// openFrames opens the frames of the listener, and makes its UDP socket ignore guests.
func (l *listener) openFrames() (err error) {
	protocol, filter := uint16(unix.ETH_P_IP), guard.Filter4(53)
	if l.address.Is6() {
		protocol, filter = unix.ETH_P_IPV6, guard.Filter6(53)
	}
	if err := guard.Attach(l.udp, guard.FilterOthers(l.index)); err != nil {
		return err
	}
	if l.frames, err = guard.OpenFrames(l.index, protocol, filter); err == nil {
		l.frames.SetReadBuffer(receiveBuffer)
	}
	return err
}

// readFrame reads one query of a guest. It blocks until one arrives.
func (l *listener) readFrame(b []byte) (int, netip.AddrPort, error) {
	for {
		n, _, err := l.frames.Read(b)
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		parse := guard.ParseUDP4
		if l.address.Is6() {
			parse = guard.ParseUDP6
		}
		if u, ok := parse(b[:n]); ok && u.To == l.address {
			return copy(b, u.Payload), u.From, nil
		}
	}
}

// listen starts to serve on an address. It must be called with mu held.
func (s *Server) listen(a netip.Addr) (*listener, error) {
	bind := net.ListenConfig{Control: s.bind}
	address := netip.AddrPortFrom(a, 53).String()
	udp, err := bind.ListenPacket(s.ctx, "udp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for DNS on %s: %w", s.name, err)
	}
	tcp, err := bind.Listen(s.ctx, "tcp", address)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for DNS on %s: %w", s.name, err), udp.Close())
	}
	l := &listener{address: a, udp: udp.(*net.UDPConn), tcp: tcp.(*net.TCPListener)}
	l.ctx, l.end = context.WithCancel(s.ctx)
	if l.index, err = guard.InterfaceIndex(l.udp, s.name); err == nil {
		err = l.openFrames()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for DNS on %s: %w", s.name, err), l.close())
	}
	for _, read := range []func([]byte) (int, netip.AddrPort, error){l.readFrame, l.udp.ReadFromUDPAddrPort} {
		queries := guard.Datagrams[netip.AddrPort]{
			Read:    read,
			Handle:  func(b []byte, from netip.AddrPort) { s.handle(l.udp, b, from) },
			Size:    guard.MaxPacket,
			Workers: workers,
			Queue:   maxQueue,
			Log:     s.log,
		}
		s.work.Go(func() { s.failure.Set(queries.Serve(l.ctx)) })
	}
	s.work.Go(func() { s.failure.Set(s.accept(l)) })
	return l, nil
}

// bind binds a socket to the interface. The socket may bind to an address that cannot be
// used yet: the IPv6 address of a bridge needs a port on the bridge.
func (s *Server) bind(transport, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
		if transport[len(transport)-1] == '6' {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
		}
		failed = errors.Join(unix.BindToDevice(int(fd), s.name), unix.SetsockoptInt(int(fd), level, option, 1))
	})
	return errors.Join(err, failed)
}

// Err returns nil while the server serves. Otherwise it returns the reason: a socket failed
// or could not be opened, the interface is gone, or the server was closed.
func (s *Server) Err() error {
	if err := s.failure.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if err := guard.CheckInterface(l.udp, s.name, l.index); err != nil {
			return err
		}
	}
	return nil
}

// Close stops the server and waits for its goroutines.
func (s *Server) Close() error {
	s.end()
	s.failure.Set(net.ErrClosed)
	s.mu.Lock()
	var err error
	for a, l := range s.listeners {
		err = errors.Join(err, l.close())
		delete(s.listeners, a)
	}
	s.mu.Unlock()
	s.work.Wait()
	return err
}

// currentZone returns the zone of the present record.
func (s *Server) currentZone() zone {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.zone
}

// handle answers one datagram. It forwards a query on a goroutine of its own, so a slow
// upstream server does not delay local answers.
func (s *Server) handle(udp *net.UDPConn, b []byte, from netip.AddrPort) {
	client := from.Addr().Unmap().WithZone("")
	if !s.clients.Allow(limitKey(client)) {
		s.noteLimited(client)
		return
	}
	q := new(dns.Msg)
	if err := q.Unpack(b); err != nil {
		if r := formatError(b); r != nil {
			s.write(udp, r, from)
		}
		return
	}
	if q.Response {
		return
	}
	z := s.currentZone()
	r, final := screen(q, client, z)
	var forward *dns.Msg
	if !final {
		forward = s.answerLocally(s.ctx, z, q, r)
	}
	if forward == nil {
		s.reply(udp, r, q, from)
		return
	}
	ticket, ok := s.forwards.join(limitKey(client))
	if !ok {
		s.noteLimited(client)
		fail(r)
		s.reply(udp, r, q, from)
		return
	}
	s.work.Go(func() {
		defer s.log.Recover()
		s.forward(ticket, z, forward, r, client)
		s.reply(udp, r, q, from)
	})
}

// forward completes the reply r with the answer to q from an upstream server. It waits until the limits of
// forwarded queries have room for q, but not longer than clients wait for the reply.
func (s *Server) forward(place *ticket, z zone, q, r *dns.Msg, client netip.Addr) {
	defer place.leave()
	ctx, cancel := context.WithTimeout(s.ctx, forwardTime)
	defer cancel()
	if !place.wait(ctx) {
		if s.ctx.Err() == nil {
			s.noteLimited(client)
		}
		fail(r)
		return
	}
	s.answerRemotely(ctx, z, q, r)
}

// noteLimited counts a query that is not answered because of a limit. Clients outside of the
// network are not counted.
func (s *Server) noteLimited(client netip.Addr) {
	if !s.currentZone().allows(client) {
		return
	}
	s.limited.note(client, time.Now())
	s.log.Warn("a DNS query is not answered: its client sends too many", "ip", client)
}

// LimitedSince returns the clients with queries that were not answered after a time because
// of a limit, and the number of such queries since the server started.
func (s *Server) LimitedSince(t time.Time) ([]Limited, int64) { return s.limited.since(t) }

// limitKey returns the address that the limits of a client apply to. All link-local
// addresses count as one client: a guest can have any number of them.
func limitKey(client netip.Addr) netip.Addr {
	if client.Is6() && client.IsLinkLocalUnicast() {
		return netip.MustParseAddr("fe80::")
	}
	return client
}

func (s *Server) reply(udp *net.UDPConn, r, q *dns.Msg, to netip.AddrPort) {
	b, err := pack(r, q, false)
	if err != nil {
		s.log.Warn("cannot pack a DNS reply", "err", err)
		return
	}
	s.write(udp, b, to)
}

func (s *Server) write(udp *net.UDPConn, b []byte, to netip.AddrPort) {
	if a := to.Addr(); a.Zone() != "" { // the socket is bound to the interface
		to = netip.AddrPortFrom(a.WithZone(""), to.Port())
	}
	if _, err := udp.WriteToUDPAddrPort(b, to); err != nil && s.ctx.Err() == nil {
		s.log.Warn("cannot send a DNS reply", "err", err)
	}
}
