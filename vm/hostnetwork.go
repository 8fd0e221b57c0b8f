package vm

import (
	"context"
	"net/netip"
)

// HostNetwork is the host's side of the networks. Each method has an end: it returns
// when ctx is done at the latest. All may be called at any time by any
// goroutine; the package manager never calls two that change the same VM at once.
type HostNetwork interface {
	// Check reports why this host cannot have networks of a mode, as a [Fault] of
	// code [CodeNetworkUnavailable] that says what to do; nil if it can.
	Check(mode NetworkMode) error
	// FreeSubnet returns wish, unless the host has a route to a part of it or it
	// overlaps one of taken: then the next /24 of the private addresses (RFC 1918)
	// that is free, and why, in words.
	FreeSubnet(ctx context.Context, wish netip.Prefix, taken []netip.Prefix) (free netip.Prefix, why string, err error)
	// Admit reports whether n, which is not there yet, could be made: the bridge
	// exists with mode bridge, and nothing of its name otherwise; no route of the
	// host leads into its subnet.
	Admit(ctx context.Context, n Network) error
	// Up makes n, or what is missing or wrong of it, and serves it (DHCP, DNS,
	// router advertisements) as n says now. Down removes all of it; it succeeds if
	// there is nothing.
	Up(ctx context.Context, n Network) error
	Down(ctx context.Context, n Network) error

	// Connect makes the host's side of the given ones of v's NICs, for a QEMU that
	// is about to get them, and lets pass what v may send and get. Whoever called
	// it closes the ports when QEMU has them: what nobody has open vanishes.
	Connect(ctx context.Context, v VM, nics []NIC, networks map[string]Network) ([]Port, error)
	// Update lets pass, of a VM that has a process, what its NICs and forwards now
	// say: addresses, rates, port forwards. Those of a user-mode NIC are QEMU's.
	Update(ctx context.Context, v VM, networks map[string]Network) error
	// Disconnect removes what Connect and Update made for a VM; it succeeds if
	// there is nothing.
	Disconnect(ctx context.Context, id string) error

	// CheckHostPort reports whether a forward could listen: [CodeInUse] if a
	// program of the host does, invalid if the host has no such address.
	CheckHostPort(ctx context.Context, f PortForward) error
	// Probe reports whether something answers on a TCP port of a guest: nil if it
	// does. It fails with a [Fault] of code [CodeInvalid] if the port cannot be
	// reached from the host, whatever the guest does.
	Probe(ctx context.Context, v VM, port int) error

	// Reconcile compares the host with what is wanted. With repair it makes the
	// host so; without, it changes nothing.
	Reconcile(ctx context.Context, w Wanted, repair bool) (NetworkSurvey, error)
	// Status looks at one network.
	Status(ctx context.Context, n Network) NetworkStatus
}

// Wanted is all that is to be there of networks.
type Wanted struct {
	Networks []Network
	VMs      []VM // those that have a process
}

// A NetworkSurvey is what a look at all networks has found.
type NetworkSurvey struct {
	Drift   []Drift
	Learned map[string][]LearnedAddress // by VM id: addresses that nobody gave out, as seen by the host
}

// A Drift is something on the host that is not as it is wanted.
type Drift struct {
	Resource Resource // a network or a VM
	Details  string
	Repaired bool
	Err      error // why it could not be repaired
}

// A NetworkStatus is how a network is on the host.
type NetworkStatus struct {
	Interfaces []string         // on the host: the bridge first, then the VMs' taps
	Leases     map[string]Lease // by MAC: what DHCP has confirmed since the daemon started; with Acked and Expires only
	Problems   []NetworkProblem
}

// A NetworkProblem is something on the host that is in a network's way.
type NetworkProblem struct {
	Detail string
	Fix    string // what to do, a command where there is one
}
