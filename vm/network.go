package vm

import (
	"context"
	"net/netip"
	"time"
)

// NetworkMode says what a virtual network is connected to.
type NetworkMode string

// The modes of networks.
const (
	// NetworkNAT is a bridge of its own whose guests reach out through the
	// host's addresses; nobody reaches in but by a port forward.
	NetworkNAT NetworkMode = "nat"
	// NetworkIsolated is a bridge of its own whose guests reach one another and
	// the host.
	NetworkIsolated NetworkMode = "isolated"
	// NetworkBridge is a bridge that the host already has: guests are on the
	// network the bridge is on, which gives them their addresses.
	NetworkBridge NetworkMode = "bridge"
	// NetworkUser needs no privilege: each guest reaches out through sockets of
	// a process of its own; nobody reaches in but by a port forward.
	NetworkUser NetworkMode = "user"
)

// Managed reports whether vmand gives the guests of such a network their
// addresses, each another one.
func (m NetworkMode) Managed() bool { return m == NetworkNAT || m == NetworkIsolated }

// A Network is a network that NICs of VMs are on.
type Network struct {
	Seq        int64  // order of creation, unique; set by the store
	Name       string // a DNS label of at most 15 characters, unique: it names the bridge too
	Mode       NetworkMode
	Bridge     string       // the interface on the host: Name, or with mode bridge one that exists; empty with mode user
	Subnet     netip.Prefix // IPv4, masked; zero with mode bridge
	Gateway    netip.Addr   // the host's address in Subnet; zero with mode bridge
	IPv6       netip.Prefix // a /64, masked; zero for no IPv6; of modes nat and isolated only
	DNS        []netip.Addr // servers that guests are told of; none: the gateway, which answers for Domain and forwards the rest
	NTP        []netip.Addr // servers that guests are told of
	Routes     []Route      // that guests are told of, besides the one to the gateway
	Domain     string       // guests are called <id>.<Domain>; empty with mode bridge
	MTU        int          // bytes; 0: 1500
	VLAN       int          // 802.1Q id that frames have outside the guests, 1 to 4094; 0: none; of mode bridge only
	IsolateVMs bool         // guests do not reach one another
	Restrict   bool         // of mode user: guests do not reach out, nor the host
	CreatedAt  time.Time
	UpdatedAt  time.Time
	Revision   int64 // goes up with every change; set by the store
}

// A Route is a way that guests are told of (RFC 3442).
type Route struct {
	Destination netip.Prefix `json:"destination"` // IPv4
	Gateway     netip.Addr   `json:"gateway"`
}

// GatewayIPv6 returns the host's address in n.IPv6, its first; zero without one.
func (n Network) GatewayIPv6() netip.Addr {
	if !n.IPv6.IsValid() {
		return netip.Addr{}
	}
	return n.IPv6.Addr().Next()
}

// AddressIPv6 returns the IPv6 address of the NIC that has an IPv4 address of
// n: the same distance from the start of the subnet. Zero without IPv6.
func (n Network) AddressIPv6(ip netip.Addr) netip.Addr {
	if !n.IPv6.IsValid() || !ip.Is4() || !n.Subnet.Contains(ip) {
		return netip.Addr{}
	}
	a, first, v4 := n.IPv6.Addr().As16(), n.Subnet.Addr().As4(), ip.As4()
	for i := range 4 { // the subnet is masked, so there is no borrow
		a[12+i] = v4[i] - first[i]
	}
	return netip.AddrFrom16(a)
}

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

// A Lease says who has an address on a network.
type Lease struct {
	Network  string
	VMID     string
	Slot     int
	MAC      string
	IP       netip.Addr // zero with modes bridge and user
	IPv6     netip.Addr // zero without one
	Hostname string     // that DHCP gives and DNS knows; the VM's id
	Acked    time.Time  // when DHCP last confirmed it; zero if it has not
	Expires  time.Time  // zero if DHCP has not confirmed it
}
