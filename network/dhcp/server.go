// Package dhcp gives the guests of a network their recorded addresses by DHCPv4 and
// DHCPv6. It has no pool and makes no decisions: it looks up the address of a guest in a
// directory, by the MAC address of its NIC only.
package dhcp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"vmand/network/guard"
	"vmand/vm"
)

// Limits of the work that guests can cause.
const (
	requestsPerSecond = 10 // per MAC; an ordinary client sends 4 messages and then one a day
	requestsBurst     = 30
	maxClients        = 4096 // MACs with a limit of their own
	workers           = 4
	lookupTime        = 2 * time.Second // clients repeat a request after 4 s (RFC 2131, section 4.1)
)

// A Directory finds the recorded lease of a NIC. It returns an error of class
// [vm.ErrNotFound] if there is none.
type Directory interface {
	LeaseByMAC(ctx context.Context, networkName, mac string) (vm.Lease, error)
}

// Options configure a [Server].
type Options struct {
	Interface string     // has the gateway's addresses; the server is bound to it
	Network   vm.Network // of mode nat or isolated
	Directory Directory
	// Acked, if not nil, is called after a DHCPv4 address was confirmed. It must not
	// block and must be safe for concurrent use.
	Acked func(vm.Lease)
	Log   *slog.Logger
}

// A Server answers DHCP requests on one interface. It is safe for concurrent use.
type Server struct {
	name      string // of the interface
	index     int    // of the interface
	directory Directory
	log       *guard.Log
	clients   *guard.Clients[[6]byte]
	leases    *leases
	conflicts *conflicts
	acked     func(vm.Lease)
	v4        *sockets

	ctx     context.Context // done after Close
	end     context.CancelFunc
	readers sync.WaitGroup
	failure guard.Failure

	mu     sync.Mutex // guards the fields below
	record vm.Network
	v6     *sockets // nil without IPv6
	end6   context.CancelFunc
}

// New starts a server that serves until [Server.Close]. It opens the sockets in the
// network namespace of the calling thread.
func New(o Options) (*Server, error) {
	v4, err := listen4(o.Interface)
	if err != nil {
		return nil, err
	}
	index, err := guard.InterfaceIndex(v4.udp, o.Interface)
	if err != nil {
		return nil, errors.Join(err, v4.Close())
	}
	s := &Server{
		name:      o.Interface,
		index:     index,
		directory: o.Directory,
		log:       guard.NewLog(o.Log.With("network", o.Network.Name)),
		clients:   guard.NewClients[[6]byte](requestsPerSecond, requestsBurst, maxClients),
		leases:    newLeases(),
		conflicts: newConflicts(),
		acked:     o.Acked,
		v4:        v4,
		record:    o.Network,
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.Update(o.Network)
	if err := s.Err(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.serve(s.ctx, v4, s.handle4)
	return s, nil
}

// Update makes the server follow a changed record. It opens sockets in the network
// namespace of the calling thread; [Server.Err] reports whether that failed.
func (s *Server) Update(nw vm.Network) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record = nw
	switch {
	case s.ctx.Err() != nil:
	case nw.IPv6.IsValid() && s.v6 == nil:
		v6, err := listen6(s.name)
		if err != nil {
			s.failure.Set(err)
			return
		}
		s.v6 = v6
		var ctx context.Context
		ctx, s.end6 = context.WithCancel(s.ctx)
		s.serve(ctx, v6, func(packet []byte, mac [6]byte) { s.handle6(v6, packet, mac) })
	case !nw.IPv6.IsValid() && s.v6 != nil:
		s.close6()
	}
}

// serve starts to read requests from sockets.
func (s *Server) serve(ctx context.Context, from *sockets, handle func([]byte, [6]byte)) {
	requests := guard.Datagrams[[6]byte]{
		Read:    from.frames.Read,
		Handle:  handle,
		Size:    guard.MaxPacket,
		Workers: workers,
		Log:     s.log,
	}
	s.readers.Go(func() { s.failure.Set(requests.Serve(ctx)) })
}

// close6 stops serving DHCPv6. It must be called with mu held.
func (s *Server) close6() error {
	if s.v6 == nil {
		return nil
	}
	s.end6()
	err := s.v6.Close()
	s.v6 = nil
	return err
}

// Leases returns the leases confirmed since the server started, by MAC.
func (s *Server) Leases() map[string]vm.Lease { return s.leases.all(time.Now()) }

// Err returns nil while the server serves. Otherwise it returns the reason: a socket
// failed or could not be opened, the interface is gone, or the server was closed.
func (s *Server) Err() error {
	if err := s.failure.Err(); err != nil {
		return err
	}
	return guard.CheckInterface(s.v4.udp, s.name, s.index)
}

// Close stops the server and waits for its goroutines.
func (s *Server) Close() error {
	s.end()
	s.failure.Set(net.ErrClosed)
	s.mu.Lock()
	err := s.close6()
	s.mu.Unlock()
	err = errors.Join(err, s.v4.Close())
	s.readers.Wait()
	return err
}

// network returns the present record.
func (s *Server) network() vm.Network {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record
}

// lookup returns the recorded lease of a MAC. It is not ok, and the server must not reply,
// if there is none, if the MAC exceeds its rate, or if the directory fails.
func (s *Server) lookup(nw vm.Network, mac [6]byte) (vm.Lease, bool) {
	if !s.clients.Allow(mac) {
		return vm.Lease{}, false
	}
	ctx, cancel := context.WithTimeout(s.ctx, lookupTime)
	defer cancel()
	l, err := s.directory.LeaseByMAC(ctx, nw.Name, net.HardwareAddr(mac[:]).String())
	switch {
	case errors.Is(err, vm.ErrNotFound):
		return vm.Lease{}, false
	case err != nil:
		if s.ctx.Err() == nil {
			s.log.Warn("cannot look up a lease: a DHCP client gets no reply", "err", err)
		}
		return vm.Lease{}, false
	}
	s.clients.Know(mac)
	l.MAC = net.HardwareAddr(mac[:]).String()
	return l, true
}

// handle4 handles an IPv4 packet with a DHCPv4 message from a MAC.
func (s *Server) handle4(packet []byte, mac [6]byte) {
	u, ok := guard.ParseUDP4(packet)
	if !ok {
		return
	}
	m, err := dhcpv4.FromBytes(u.Payload)
	if err != nil || !acceptable4(m) || [6]byte(m.ClientHWAddr) != mac {
		return // a request for another MAC is an attack
	}
	nw := s.network()
	lease, ok := s.lookup(nw, mac)
	if !ok || !s.conflicts.without(lease, time.Now()).IP.Is4() {
		return
	}
	r, result := reply4(m, nw, lease)
	if r != nil {
		if left := fit4(r, m, nw); len(left) > 0 {
			s.log.Warn("a DHCP reply leaves out options: the client does not accept a longer message",
				"vm", lease.VMID, "mac", lease.MAC, "details", left)
		}
		if err := s.v4.send(r.ToBytes(), destination4(r)); err != nil {
			if s.ctx.Err() == nil {
				s.log.Warn("cannot send a DHCP reply", "mac", lease.MAC, "err", err)
			}
			return
		}
	}
	if result == confirmed {
		lease = s.leases.confirm(lease, time.Now())
		if s.acked != nil {
			s.acked(lease)
		}
		return
	}
	s.noteResult(lease, lease.IP, result)
}

// handle6 handles an IPv6 packet with a DHCPv6 message from a MAC.
func (s *Server) handle6(v6 *sockets, packet []byte, mac [6]byte) {
	u, ok := guard.ParseUDP6(packet)
	source := u.From.Addr()
	if !ok || !source.IsLinkLocalUnicast() {
		return // clients send from a link-local address (RFC 8415, section 13.1)
	}
	m, err := dhcpv6.MessageFromBytes(u.Payload) // fails for the message of a relay
	if err != nil {
		return
	}
	nw := s.network()
	if !acceptable6(m, serverDUID(nw)) {
		return
	}
	lease, ok := s.lookup(nw, mac)
	if !ok {
		return
	}
	r, result := reply6(m, nw, s.conflicts.without(lease, time.Now()))
	if r == nil {
		return
	}
	if err := v6.send(r.ToBytes(), netip.AddrPortFrom(source, dhcpv6.DefaultClientPort)); err != nil {
		if s.ctx.Err() == nil {
			s.log.Warn("cannot send a DHCPv6 reply", "mac", lease.MAC, "err", err)
		}
		return
	}
	switch result {
	case confirmed:
		s.leases.confirm(lease, time.Now())
	case released: // the listed lease is that of both families
	default:
		s.noteResult(lease, lease.IPv6, result)
	}
}

// noteResult removes a released or declined lease from the list. A declined address is not
// offered for a while.
func (s *Server) noteResult(l vm.Lease, ip netip.Addr, result outcome) {
	switch result {
	case released:
		s.leases.forget(l.MAC)
	case declined:
		s.leases.forget(l.MAC)
		s.conflicts.note(l, ip, time.Now())
		s.log.Warn("a guest declined its address: another machine uses it", "vm", l.VMID, "mac", l.MAC, "ip", ip)
	}
}
