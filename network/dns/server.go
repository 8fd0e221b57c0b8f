// Package dns answers the guests of a network: by itself for the network's own
// names and addresses, by asking the host's resolvers for the rest.
package dns

import (
	"context"
	"log/slog"
	"net/netip"

	"vmand/vm"
)

// A Directory knows who has which name and address. A miss is an error of class
// [vm.ErrNotFound].
type Directory interface {
	LeaseByName(ctx context.Context, network, hostname string) (vm.Lease, error)
	LeaseByIP(ctx context.Context, network string, ip netip.Addr) (vm.Lease, error)
}

// Options are what a [Server] is made of.
type Options struct {
	Interface string            // the server is bound to it; it has the gateway's addresses
	Network   vm.VirtualNetwork // of mode nat or isolated
	Directory Directory
	Upstreams []netip.AddrPort // who is asked for the rest; nil: whom /etc/resolv.conf names, now and later
	Log       *slog.Logger
}

// A Server answers DNS queries on one interface.
type Server struct{}

// New makes a server that serves until [Server.Close]. Its sockets are made in
// the network namespace of the calling thread.
func New(o Options) (*Server, error) { return &Server{}, nil }

// Update makes the server answer from now on what n says.
func (s *Server) Update(n vm.VirtualNetwork) {}

// Err returns nil while the server serves, else why it does not.
func (s *Server) Err() error { return nil }

// Close ends the server and waits for its goroutines.
func (s *Server) Close() error { return nil }
