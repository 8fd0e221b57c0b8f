package vm

import (
	"net/netip"
)

// DefaultNetwork is the name of the network that a VM is on when nothing else is
// asked for. It is made at the daemon's first start.
const DefaultNetwork = "vman0"

// MaxNetworkName is IFNAMSIZ of Linux, less its final zero byte.
const MaxNetworkName = 15

// userGuestHost is the last octet that QEMU's user-mode network gives its guest.
const userGuestHost = 15

// DefaultGateway returns the gateway of a network that does not say another: the
// first address of its subnet, or with mode user the second, where users of QEMU
// know it.
func (n Network) DefaultGateway() netip.Addr {
	first := n.Subnet.Masked().Addr().Next()
	if n.Mode == NetworkUser {
		return first.Next()
	}
	return first
}

// NetworkEdits are what can be changed of a network; nil leaves a thing as it is.
type NetworkEdits struct {
	// Subnet, Gateway and IPv6 can change only while no VM is on the network. With
	// another Subnet and no Gateway, the gateway is its first address. A zero IPv6
	// takes IPv6 away.
	Subnet               *netip.Prefix
	Gateway              *netip.Addr
	IPv6                 *netip.Prefix
	DNS, NTP             *[]netip.Addr
	Routes               *[]Route
	Domain               *string
	MTU, VLAN            *int // of VMs that run: at their next start
	IsolateVMs, Restrict *bool
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// Apply changes n, and reports whether that needs the network to be unused.
func (e NetworkEdits) Apply(n *Network) (addresses bool) {
	was := *n
	if e.Subnet != nil && *e.Subnet != n.Subnet {
		n.Subnet = *e.Subnet
		if e.Gateway == nil && n.Subnet.IsValid() {
			n.Gateway = n.DefaultGateway()
		}
	}
	set(&n.Gateway, e.Gateway)
	set(&n.IPv6, e.IPv6)
	set(&n.DNS, e.DNS)
	set(&n.NTP, e.NTP)
	set(&n.Routes, e.Routes)
	set(&n.Domain, e.Domain)
	set(&n.MTU, e.MTU)
	set(&n.VLAN, e.VLAN)
	set(&n.IsolateVMs, e.IsolateVMs)
	set(&n.Restrict, e.Restrict)
	return n.Subnet != was.Subnet || n.Gateway != was.Gateway || n.IPv6 != was.IPv6
}

// A NetworkReport is a network as it is recorded and as it is on the host.
type NetworkReport struct {
	Network Network
	Leases  []Lease // in order of their addresses
	Free    int     // addresses that are not taken; -1 if vmand does not give them out
	Status  NetworkStatus
}
