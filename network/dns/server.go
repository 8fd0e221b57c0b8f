// Package dns answers the guests of a network: by itself for the network's own
// names and addresses, by asking the host's resolvers for the rest.
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

// What guests may make the server do.
const (
	queriesPerSecond  = 200 // of one client
	queriesBurst      = 400
	clientsRoom       = 4096 // that are told apart
	workers           = 4    // of each socket
	maxForwards       = 128  // at once
	maxForwardsClient = 32   // of one client
	maxQuery          = 4096 // bytes
	lookupTime        = 2 * time.Second
)

// A Directory knows who has which name and address. A miss is an error of class
// [vm.ErrNotFound].
type Directory interface {
	LeaseByName(ctx context.Context, network, hostname string) (vm.Lease, error)
	LeaseByIP(ctx context.Context, network string, ip netip.Addr) (vm.Lease, error)
}

// Options are what a [Server] is made of.
type Options struct {
	Interface string     // the server is bound to it; it has the gateway's addresses
	Network   vm.Network // of mode nat or isolated
	Directory Directory
	Upstreams []netip.AddrPort // who is asked for the rest; nil: whom /etc/resolv.conf names, now and later
	Log       *slog.Logger
}

// A Server answers DNS queries on one interface.
type Server struct {
	name      string // of the interface
	directory Directory
	log       *guard.Log
	clients   *guard.Clients[netip.Addr]
	upstreams *upstreams
	cache     *cache

	ctx   context.Context // of the server's life
	end   context.CancelFunc
	work  sync.WaitGroup
	ended guard.End

	forwards *quota // queries that others are asked about now
	streams  *quota // TCP connections

	mu        sync.Mutex
	zone      zone
	listeners map[netip.Addr]*listener
}

// New makes a server that serves until [Server.Close]. Its sockets are made in
// the network namespace of the calling thread.
func New(o Options) (*Server, error) {
	s := &Server{
		name:      o.Interface,
		directory: o.Directory,
		log:       guard.NewLog(o.Log.With("network", o.Network.Name)),
		clients:   guard.NewClients[netip.Addr](queriesPerSecond, queriesBurst, clientsRoom),
		upstreams: &upstreams{fixed: o.Upstreams, file: resolvConf},
		cache:     newCache(),
		forwards:  newQuota(maxForwards, maxForwardsClient),
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

// Update makes the server answer from now on what n says. Sockets that this takes
// are made in the network namespace of the calling thread; [Server.Err] reports
// if they cannot be.
func (s *Server) Update(n vm.Network) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone = newZone(n)
	if s.ctx.Err() != nil {
		return
	}
	wanted := map[netip.Addr]bool{n.Gateway: true}
	if a := n.GatewayIPv6(); a.IsValid() {
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
			s.ended.Because(err)
			return
		}
		s.listeners[a] = l
	}
}

// A listener is the sockets of one address.
type listener struct {
	ctx   context.Context
	end   context.CancelFunc
	udp   *net.UDPConn
	tcp   *net.TCPListener
	index int // of the interface
}

func (l *listener) close() error {
	l.end()
	return errors.Join(l.udp.Close(), l.tcp.Close())
}

// listen starts to serve at an address; s.mu is held.
func (s *Server) listen(a netip.Addr) (*listener, error) {
	bind := net.ListenConfig{Control: s.bind}
	address := netip.AddrPortFrom(a, 53).String()
	udp, err := bind.ListenPacket(s.ctx, "udp", address)
	if err != nil {
		return nil, fmt.Errorf("listen to DNS on %s: %w", s.name, err)
	}
	tcp, err := bind.Listen(s.ctx, "tcp", address)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to DNS on %s: %w", s.name, err), udp.Close())
	}
	l := &listener{udp: udp.(*net.UDPConn), tcp: tcp.(*net.TCPListener)}
	l.ctx, l.end = context.WithCancel(s.ctx)
	if l.index, err = guard.InterfaceIndex(l.udp, s.name); err != nil {
		return nil, errors.Join(err, l.close())
	}
	s.work.Go(func() {
		s.ended.Because(guard.Datagrams[netip.AddrPort]{
			Read: l.udp.ReadFromUDPAddrPort, Size: maxQuery, Workers: workers, Log: s.log,
			Handle: func(b []byte, from netip.AddrPort) { s.handle(l.udp, b, from) },
		}.Serve(l.ctx))
	})
	s.work.Go(func() { s.ended.Because(s.accept(l)) })
	return l, nil
}

// bind binds a socket to the interface. The address may be of no use yet: one of
// IPv6 is not until the bridge has its first port.
func (s *Server) bind(network, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
		if network[len(network)-1] == '6' {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
		}
		failed = errors.Join(unix.BindToDevice(int(fd), s.name), unix.SetsockoptInt(int(fd), level, option, 1))
	})
	return errors.Join(err, failed)
}

// Err returns nil while the server serves, else why it does not: a socket has
// failed or could not be made, the interface is gone, or it was closed.
func (s *Server) Err() error {
	if err := s.ended.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if err := guard.StillThere(l.udp, s.name, l.index); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the server and waits for its goroutines.
func (s *Server) Close() error {
	s.end()
	s.ended.Because(net.ErrClosed)
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

func (s *Server) config() zone {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.zone
}

// handle answers one datagram. Others are asked by a goroutine of its own, so
// that a slow one of them does not delay what is known here.
func (s *Server) handle(udp *net.UDPConn, b []byte, from netip.AddrPort) {
	client := from.Addr().Unmap().WithZone("")
	if !s.clients.Allow(bucket(client)) {
		return
	}
	q := new(dns.Msg)
	if err := q.Unpack(b); err != nil {
		if r := unreadable(b); r != nil {
			s.write(udp, r, from)
		}
		return
	}
	if q.Response {
		return
	}
	z := s.config()
	r, final := screen(q, client, z)
	if final || s.local(s.ctx, z, q, r) {
		s.reply(udp, r, q, from)
		return
	}
	if !s.forwards.take(bucket(client)) {
		r.Rcode = dns.RcodeServerFailure
		s.reply(udp, r, q, from)
		return
	}
	s.work.Go(func() {
		defer s.log.Recover()
		defer s.forwards.give(bucket(client))
		s.remote(s.ctx, z, q, r)
		s.reply(udp, r, q, from)
	})
}

// bucket returns whom the limits of a client are of. A guest may have as many
// link-local addresses as it likes, so all of them together are one client.
func bucket(client netip.Addr) netip.Addr {
	if client.Is6() && client.IsLinkLocalUnicast() {
		return netip.MustParseAddr("fe80::")
	}
	return client
}

func (s *Server) reply(udp *net.UDPConn, r, q *dns.Msg, to netip.AddrPort) {
	b, err := pack(r, q, false)
	if err != nil {
		s.log.Warn("an answer cannot be put together", "err", err)
		return
	}
	s.write(udp, b, to)
}

func (s *Server) write(udp *net.UDPConn, b []byte, to netip.AddrPort) {
	if a := to.Addr(); a.Zone() != "" { // the socket is bound to the interface
		to = netip.AddrPortFrom(a.WithZone(""), to.Port())
	}
	if _, err := udp.WriteToUDPAddrPort(b, to); err != nil && s.ctx.Err() == nil {
		s.log.Warn("a DNS answer cannot be sent", "err", err)
	}
}
