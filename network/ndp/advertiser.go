// Package ndp tells the guests of a network by router advertisements (RFC 4861)
// which IPv6 prefix is on their link and who routes.
package ndp

import (
	"log/slog"

	"vmand/vm"
)

// Options are what an [Advertiser] is made of.
type Options struct {
	Interface string            // the advertiser is bound to it; it has the address fe80::1
	Network   vm.VirtualNetwork // of mode nat or isolated
	Log       *slog.Logger
}

// An Advertiser sends router advertisements on one interface.
type Advertiser struct{}

// New makes an advertiser that works until [Advertiser.Close]; without IPv6 in
// the network it has nothing to do until an [Advertiser.Update] brings it. Its
// sockets are made in the network namespace of the calling thread.
func New(o Options) (*Advertiser, error) { return &Advertiser{}, nil }

// Update makes the advertiser tell from now on what n says.
func (a *Advertiser) Update(n vm.VirtualNetwork) {}

// Err returns nil while the advertiser works, else why it does not.
func (a *Advertiser) Err() error { return nil }

// Close ends the advertiser and waits for its goroutines. Guests keep what they
// were told, for as long as they were told.
func (a *Advertiser) Close() error { return nil }
