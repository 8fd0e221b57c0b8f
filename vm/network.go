package vm

import (
	"net/netip"
	"strings"
	"time"
)

// DefaultNetwork is the name of the network that a VM is on when nothing else is
// asked for. It is made at the daemon's first start.
const DefaultNetwork = "vman0"

// MaxNetworkName is IFNAMSIZ of Linux, less its final zero byte.
const MaxNetworkName = 15

// userGuestHost is the last octet that QEMU's user-mode network gives its guest.
const userGuestHost = 15

// Limits of what a network can be told.
const (
	minMTU     = 576 // what every IPv4 host takes (RFC 791)
	minMTUIPv6 = 1280
	maxMTU     = 9216
	maxServers = 8
	maxRoutes  = 32
	maxDomain  = 200 // characters, which leaves room for a VM's name
	minSubnet  = 16  // bits of the prefix
	maxSubnet  = 29
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

// Version returns the recorded version of the network.
func (n Network) Version() Version { return Version{n.Seq, n.Revision} }

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

// UserGuest returns the address of the one guest of a user-mode network.
func (n Network) UserGuest() netip.Addr {
	a := n.Subnet.Addr()
	for range userGuestHost {
		a = a.Next()
	}
	return a
}

// HostRange returns the first and the last address that a host in n's IPv4 subnet can have.
func (n Network) HostRange() (first, last netip.Addr) {
	return n.Subnet.Addr().Next(), lastAddr(n.Subnet).Prev()
}

// CanAssign reports whether a NIC on n can have the IPv4 address a: it is in the subnet
// and not the gateway.
func (n Network) CanAssign(a netip.Addr) bool { return isHostAddr(n.Subnet, a) && a != n.Gateway }

// isHostAddr reports whether a host in the IPv4 subnet s can have the address a.
func isHostAddr(s netip.Prefix, a netip.Addr) bool {
	return a.Is4() && s.Contains(a) && a != s.Addr() && a != lastAddr(s)
}

// lastAddr returns the last address of an IPv4 subnet, its broadcast address.
func lastAddr(s netip.Prefix) netip.Addr {
	a := s.Masked().Addr().As4()
	for i := s.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

// CheckMode makes sure that n has only what its mode knows.
func (n Network) CheckMode() error {
	managed := n.Mode.Managed()
	switch n.Mode {
	case NetworkNAT, NetworkIsolated, NetworkBridge, NetworkUser:
	default:
		return InvalidField("/mode", "must be nat, isolated, bridge or user")
	}
	for _, f := range []struct {
		field       string
		given, fits bool
	}{
		{"/bridge", n.Bridge != "" && n.Bridge != n.Name, n.Mode == NetworkBridge},
		{"/subnet", n.Subnet.IsValid(), n.Mode != NetworkBridge},
		{"/gateway", n.Gateway.IsValid(), n.Mode != NetworkBridge},
		{"/ipv6_subnet", n.IPv6.IsValid(), managed},
		{"/dns", len(n.DNS) > 0, managed},
		{"/ntp", len(n.NTP) > 0, managed},
		{"/routes", len(n.Routes) > 0, managed},
		{"/domain", n.Domain != "", n.Mode != NetworkBridge},
		{"/vlan_id", n.VLAN != 0, n.Mode == NetworkBridge},
		{"/isolate_vms", n.IsolateVMs, n.Mode != NetworkUser},
		{"/restrict", n.Restrict, n.Mode == NetworkUser},
	} {
		if f.given && !f.fits {
			return InvalidField(f.field, "a network of mode %s has none", n.Mode)
		}
	}
	if n.Mode == NetworkBridge && n.Bridge == "" {
		return InvalidField("/bridge", "must name a bridge of the host")
	}
	return nil
}

// Check makes sure that n, complete, is a network that can be.
func (n Network) Check() error {
	if err := n.CheckMode(); err != nil {
		return err
	}
	if err := n.checkAddresses(); err != nil {
		return err
	}
	least := minMTU
	if n.IPv6.IsValid() {
		least = minMTUIPv6
	}
	if n.MTU != 0 && (n.MTU < least || n.MTU > maxMTU) {
		return InvalidField("/mtu", "must be %d to %d bytes, or 0 for 1500", least, maxMTU)
	}
	if n.VLAN < 0 || n.VLAN > 4094 {
		return InvalidField("/vlan_id", "must be 1 to 4094, or 0 for none")
	}
	if n.Domain != "" && !validDomain(n.Domain) {
		return InvalidField("/domain", "must be a DNS name in lower case of at most %d characters, such as vm.example.org", maxDomain)
	}
	for field, servers := range map[string][]netip.Addr{"/dns": n.DNS, "/ntp": n.NTP} {
		if len(servers) > maxServers {
			return InvalidField(field, "must be at most %d addresses", maxServers)
		}
		for _, a := range servers {
			if !a.Is4() || a.IsUnspecified() || a.IsMulticast() {
				return InvalidField(field, "%s is not the IPv4 address of a server", a)
			}
		}
	}
	if len(n.Routes) > maxRoutes {
		return InvalidField("/routes", "must be at most %d", maxRoutes)
	}
	for _, r := range n.Routes {
		if !r.Destination.IsValid() || !r.Destination.Addr().Is4() || r.Destination != r.Destination.Masked() || !n.Subnet.Contains(r.Gateway) {
			return InvalidField("/routes", "%s by %s: must be an IPv4 subnet by an address of the network", r.Destination, r.Gateway)
		}
	}
	return nil
}

func (n Network) checkAddresses() error {
	if n.Mode == NetworkBridge {
		return nil
	}
	s := n.Subnet
	switch {
	case !s.IsValid() || !s.Addr().Is4() || s != s.Masked():
		return InvalidField("/subnet", "%s is not an IPv4 subnet such as 192.168.100.0/24", s)
	case s.Bits() < minSubnet || s.Bits() > maxSubnet:
		return InvalidField("/subnet", "must be a /%d to a /%d", minSubnet, maxSubnet)
	case s.Addr().IsMulticast() || s.Addr().IsLoopback() || s.Addr().IsLinkLocalUnicast() || s.Addr().IsUnspecified() || s.Addr().As4()[0] >= 240:
		return InvalidField("/subnet", "%s is of a range that hosts cannot have", s)
	case n.Mode == NetworkUser && s.Bits() > 27:
		return InvalidField("/subnet", "must be at most a /27 with mode user, whose guest is the 15th")
	case !isHostAddr(s, n.Gateway):
		return InvalidField("/gateway", "%s is not an address that a host in %s can have", n.Gateway, s)
	case n.Mode == NetworkUser && n.Gateway == n.UserGuest():
		return InvalidField("/gateway", "%s is the guest's", n.Gateway)
	}
	if six := n.IPv6; six.IsValid() && (!six.Addr().Is6() || six.Addr().Is4In6() || six.Bits() != 64 || six != six.Masked() ||
		six.Addr().IsMulticast() || six.Addr().IsLinkLocalUnicast() || six.Addr().IsLoopback() || six.Addr().IsUnspecified()) {
		return InvalidField("/ipv6_subnet", "%s is not a /64 such as fd00:1:2:3::/64", six)
	}
	return nil
}

func validDomain(s string) bool {
	if len(s) > maxDomain {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if !ValidName(label) {
			return false
		}
	}
	return true
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

// A NetworkReport is a network as it is recorded and as it is on the host.
type NetworkReport struct {
	Network Network
	Leases  []Lease // in order of their addresses
	Free    int     // addresses that are not taken; -1 if vmand does not give them out
	Status  NetworkStatus
}

// CheckName reports what is wrong with the name of a new network.
func (n Network) CheckName() error {
	if !ValidName(n.Name) || len(n.Name) > MaxNetworkName {
		return InvalidField("/name", "must be 1 to %d of a-z, 0-9 and '-', and begin and end with a letter or a digit", MaxNetworkName)
	}
	if n.Name == "all" || n.Name == "default" {
		return InvalidField("/name", "%q is what the kernel calls the settings of all interfaces: no interface can have that name", n.Name)
	}
	return nil
}
