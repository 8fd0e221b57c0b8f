// Package dhcp tells the guests of a network the addresses that are recorded for
// them, by DHCPv4 and DHCPv6. It has no pool and decides nothing: who has which
// address is asked of a directory, by the MAC of the NIC alone.
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

// What guests may make the server do.
const (
	requestsPerSecond = 10 // of one MAC; a client that works sends 4 messages and then one a day
	requestsBurst     = 30
	clientsRoom       = 4096 // MACs that are told apart
	workers           = 4
	lookupTime        = 2 * time.Second // clients ask again after 4 (RFC 2131, section 4.1)
)

// A Directory knows who has which address. A miss is an error of class
// [vm.ErrNotFound].
type Directory interface {
	LeaseByMAC(ctx context.Context, network, mac string) (vm.Lease, error)
}

// Options are what a [Server] is made of.
type Options struct {
	Interface string     // the server is bound to it; it has the gateway's addresses
	Network   vm.Network // of mode nat or isolated
	Directory Directory
	// Acked, if not nil, is called after a DHCPv4 address was confirmed. It must not
	// block and must be safe for concurrent use.
	Acked func(vm.Lease)
	Log   *slog.Logger
}

// A Server answers DHCP on one interface.
type Server struct {
	name      string
	index     int // of the interface
	directory Directory
	log       *guard.Log
	clients   *guard.Clients[[6]byte]
	leases    *leases
	acked     func(vm.Lease)
	v4        *sockets

	ctx     context.Context // of the server's life
	end     context.CancelFunc
	readers sync.WaitGroup
	ended   guard.End

	mu      sync.Mutex
	network vm.Network
	v6      *sockets // nil without IPv6
	end6    context.CancelFunc
}

// New makes a server that serves until [Server.Close]. Its sockets are made in
// the network namespace of the calling thread.
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
		clients:   guard.NewClients[[6]byte](requestsPerSecond, requestsBurst, clientsRoom),
		leases:    newLeases(),
		acked:     o.Acked,
		v4:        v4,
		network:   o.Network,
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.Update(o.Network)
	if err := s.Err(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.serve(s.ctx, v4, s.handle4)
	return s, nil
}

// Update makes the server tell from now on what n says. Sockets that this takes
// are made in the network namespace of the calling thread; [Server.Err] reports
// if they cannot be.
func (s *Server) Update(n vm.Network) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.network = n
	switch {
	case s.ctx.Err() != nil:
	case n.IPv6.IsValid() && s.v6 == nil:
		v6, err := listen6(s.name)
		if err != nil {
			s.ended.Because(err)
			return
		}
		s.v6 = v6
		var ctx context.Context
		ctx, s.end6 = context.WithCancel(s.ctx)
		s.serve(ctx, v6, func(packet []byte, mac [6]byte) { s.handle6(v6, packet, mac) })
	case !n.IPv6.IsValid() && s.v6 != nil:
		s.close6()
	}
}

// serve starts the reader of some sockets.
func (s *Server) serve(ctx context.Context, from *sockets, handle func([]byte, [6]byte)) {
	s.readers.Go(func() {
		s.ended.Because(guard.Datagrams[[6]byte]{Read: from.read, Handle: handle, Size: maxPacket, Workers: workers, Log: s.log}.Serve(ctx))
	})
}

// close6 ends the reader of DHCPv6; s.mu is held.
func (s *Server) close6() error {
	if s.v6 == nil {
		return nil
	}
	s.end6()
	err := s.v6.Close()
	s.v6 = nil
	return err
}

// Leases returns what has been confirmed since the server started, by MAC.
func (s *Server) Leases() map[string]vm.Lease { return s.leases.all(time.Now()) }

// Err returns nil while the server serves, else why it does not: a socket has
// failed or could not be made, the interface is gone, or it was closed.
func (s *Server) Err() error {
	if err := s.ended.Err(); err != nil {
		return err
	}
	return guard.StillThere(s.v4.udp, s.name, s.index)
}

// Close ends the server and waits for its goroutines.
func (s *Server) Close() error {
	s.end()
	s.ended.Because(net.ErrClosed)
	s.mu.Lock()
	err := s.close6()
	s.mu.Unlock()
	err = errors.Join(err, s.v4.Close())
	s.readers.Wait()
	return err
}

func (s *Server) config() vm.Network {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.network
}

// lookup returns the recorded lease of a MAC; not ok if there is none, or the
// MAC asks too often, or the directory fails: then the server is silent.
func (s *Server) lookup(n vm.Network, mac [6]byte) (vm.Lease, bool) {
	if !s.clients.Allow(mac) {
		return vm.Lease{}, false
	}
	ctx, cancel := context.WithTimeout(s.ctx, lookupTime)
	defer cancel()
	l, err := s.directory.LeaseByMAC(ctx, n.Name, net.HardwareAddr(mac[:]).String())
	switch {
	case errors.Is(err, vm.ErrNotFound):
		return vm.Lease{}, false
	case err != nil:
		if s.ctx.Err() == nil {
			s.log.Warn("a lease cannot be looked up, so a DHCP client gets no answer", "err", err)
		}
		return vm.Lease{}, false
	}
	s.clients.Know(mac)
	l.MAC = net.HardwareAddr(mac[:]).String()
	return l, true
}

// handle4 answers one IPv4 packet with a DHCPv4 message in it.
func (s *Server) handle4(packet []byte, mac [6]byte) {
	payload, ok := payload4(packet)
	if !ok {
		return
	}
	m, err := dhcpv4.FromBytes(payload)
	if err != nil || !acceptable4(m) || [6]byte(m.ClientHWAddr) != mac {
		return // whoever asks for another machine is that machine's enemy
	}
	n := s.config()
	lease, ok := s.lookup(n, mac)
	if !ok || !lease.IP.Is4() {
		return
	}
	r, what := reply4(m, n, lease)
	if r != nil {
		if err := s.v4.send(r.ToBytes(), destination4(r)); err != nil {
			if s.ctx.Err() == nil {
				s.log.Warn("a DHCP answer cannot be sent", "mac", lease.MAC, "err", err)
			}
			return
		}
	}
	s.record(lease, what, true)
}

// handle6 answers one IPv6 packet with a DHCPv6 message in it.
func (s *Server) handle6(v6 *sockets, packet []byte, mac [6]byte) {
	payload, source, ok := payload6(packet)
	if !ok || !source.IsLinkLocalUnicast() {
		return // clients use a link-local address (RFC 8415, section 13.1)
	}
	m, err := dhcpv6.MessageFromBytes(payload) // fails for a relay's
	if err != nil {
		return
	}
	n := s.config()
	if !acceptable6(m, serverDUID(n)) {
		return
	}
	lease, ok := s.lookup(n, mac)
	if !ok {
		return
	}
	r, what := reply6(m, n, lease)
	if r == nil {
		return
	}
	if err := v6.send(r.ToBytes(), netip.AddrPortFrom(source, dhcpv6.DefaultClientPort)); err != nil {
		if s.ctx.Err() == nil {
			s.log.Warn("a DHCPv6 answer cannot be sent", "mac", lease.MAC, "err", err)
		}
		return
	}
	if what == released {
		what = nothing // the lease that is listed is of both families
	}
	s.record(lease, what, false)
}

// record notes what an exchange meant.
func (s *Server) record(l vm.Lease, what outcome, tell bool) {
	switch what {
	case confirmed:
		if l = s.leases.confirm(l, time.Now()); tell && s.acked != nil {
			s.acked(l)
		}
	case released:
		s.leases.forget(l.MAC)
	case declined:
		s.leases.forget(l.MAC)
		s.log.Warn("a guest says that its address is in use by another machine", "vm", l.VMID, "mac", l.MAC, "ip", l.IP)
	}
}
