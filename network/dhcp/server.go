// Package dhcp tells the guests of a network the addresses that are recorded for
// them, by DHCPv4 and DHCPv6.
package dhcp

import (
	"context"
	"log/slog"

	"vmand/vm"
)

// A Directory knows who has which address. A miss is an error of class
// [vm.ErrNotFound].
type Directory interface {
	LeaseByMAC(ctx context.Context, network, mac string) (vm.Lease, error)
}

// Options are what a [Server] is made of.
type Options struct {
	Interface string            // the server is bound to it; it has the gateway's addresses
	Network   vm.VirtualNetwork // of mode nat or isolated
	Directory Directory
	Acked     func(vm.Lease) // called after a DHCPv4 address was confirmed; one at a time; nil for nobody
	Log       *slog.Logger
}

// A Server answers DHCP on one interface.
type Server struct{}

// New makes a server that serves until [Server.Close]. Its sockets are made in
// the network namespace of the calling thread.
func New(o Options) (*Server, error) { return &Server{}, nil }

// Update makes the server tell from now on what n says.
func (s *Server) Update(n vm.VirtualNetwork) {}

// Leases returns what has been confirmed since the server started, by MAC.
func (s *Server) Leases() map[string]vm.Lease { return nil }

// Err returns nil while the server serves, else why it does not.
func (s *Server) Err() error { return nil }

// Close ends the server and waits for its goroutines.
func (s *Server) Close() error { return nil }
