package vm

import (
	"cmp"
	"net/netip"
	"strings"
	"time"
)

// DefaultNetwork is the name of the network of a NIC if the request names none. It is created
// at the first start of the daemon.
const DefaultNetwork = "vman0"

// MaxNetworkName is the maximum length of a network name: IFNAMSIZ of Linux without the
// terminating zero byte, since the name is also the name of the bridge.
const MaxNetworkName = 15

// userGuestHost is the host number in the subnet that QEMU's user-mode network gives its guest.
const userGuestHost = 15

// Limits of the settings of a network.
const (
	minMTU     = 576  // bytes: every IPv4 host accepts it (RFC 791)
	minMTUIPv6 = 1280 // bytes (RFC 8200)
	maxMTU     = 9216 // bytes
	usualMTU   = 1500 // bytes: of a network without a setting
	maxServers = 8
	maxRoutes  = 32
	maxDomain  = 200 // characters; leaves room for the id of a VM
	minSubnet  = 16  // bits of the prefix
	maxSubnet  = 29
	maxUser    = 27 // bits of the prefix with mode user: the guest has address 15 of the subnet
)

// NetworkMode determines how a virtual network is connected.
type NetworkMode string

// The modes of networks.
const (
	// NetworkNAT has its own bridge. Guests reach other networks through the addresses of the
	// host; connections to guests need a port forward.
	NetworkNAT NetworkMode = "nat"
	// NetworkIsolated has its own bridge. Guests reach one another and the host only.
	NetworkIsolated NetworkMode = "isolated"
	// NetworkBridge uses an existing bridge of the host. The network behind the bridge gives
	// guests their addresses.
	NetworkBridge NetworkMode = "bridge"
	// NetworkUser needs no privileges. Each guest reaches other networks through sockets of
	// its own host process; connections to guests need a port forward.
	NetworkUser NetworkMode = "user"
)

// Managed reports whether vmand assigns the addresses of guests on networks of mode m, a
// different one to each.
func (m NetworkMode) Managed() bool { return m == NetworkNAT || m == NetworkIsolated }

// A Network is the record of a virtual network. DNS, NTP, Routes, SearchDomains, DHCPOptions and
// PXE are announced to guests by DHCP.
type Network struct {
	Seq  int64  // order of creation, unique; set by the store
	Name string // a DNS label of at most [MaxNetworkName] characters, unique
	Mode NetworkMode
	// Bridge is the bridge on the host: Name, or an existing bridge with mode bridge. It is
	// empty with mode user.
	Bridge  string
	Subnet  netip.Prefix // IPv4, masked; zero with mode bridge
	Gateway netip.Addr   // the address of the host in Subnet; zero with mode bridge
	IPv6    netip.Prefix // a /64, masked; zero without IPv6; modes nat and isolated only
	// DNS are the name servers for guests. If it is empty, guests use the gateway, where vmand
	// answers queries for Domain and forwards all others.
	DNS        []netip.Addr
	NTP        []netip.Addr // time servers for guests
	Routes     []Route      // in addition to the default route
	Domain     string       // the DNS name of a guest is <id>.<Domain>; empty with mode bridge
	MTU        int          // bytes; 0: 1500
	VLAN       int          // 802.1Q tag of frames on the bridge, 1 to 4094; 0: none; mode bridge only
	IsolateVMs bool         // guests cannot reach one another
	Restrict   bool         // guests can reach neither other networks nor the host; mode user only
	// SearchDomains are announced to guests in addition to Domain; see [Network.SearchList].
	SearchDomains []string
	DHCPOptions   []DHCPOption
	PXE           *PXE // nil: guests that boot from the network get no boot file
	DNSRecords    []DNSRecord
	DNSForwarders []DNSForwarder
	CreatedAt     time.Time
	UpdatedAt     time.Time
	Revision      int64 // increases with every change; set by the store
}

// A Route is a static route that DHCP announces to guests (RFC 3442).
type Route struct {
	Destination netip.Prefix `json:"destination"` // IPv4
	Gateway     netip.Addr   `json:"gateway"`
}

// Version returns the recorded version of n.
func (n Network) Version() Version { return Version{n.Seq, n.Revision} }

// DefaultGateway returns the gateway of n if the request gives none: the first address of its
// subnet, or the second with mode user, as is usual with QEMU.
func (n Network) DefaultGateway() netip.Addr {
	first := n.Subnet.Masked().Addr().Next()
	if n.Mode == NetworkUser {
		return first.Next()
	}
	return first
}

// GatewayIPv6 returns the address of the host in n.IPv6: the first one. It is zero without IPv6.
func (n Network) GatewayIPv6() netip.Addr {
	if !n.IPv6.IsValid() {
		return netip.Addr{}
	}
	return n.IPv6.Addr().Next()
}

// AddressIPv6 returns the IPv6 address of the NIC with the given IPv4 address: both have the
// same offset in their subnets. It is zero without IPv6 or if ip is not in the subnet.
func (n Network) AddressIPv6(ip netip.Addr) netip.Addr {
	if !n.IPv6.IsValid() || !ip.Is4() || !n.Subnet.Contains(ip) {
		return netip.Addr{}
	}
	a, first, v4 := n.IPv6.Addr().As16(), n.Subnet.Addr().As4(), ip.As4()
	for i := range 4 { // no borrow: the subnet is masked
		a[12+i] = v4[i] - first[i]
	}
	return netip.AddrFrom16(a)
}

// UserGuest returns the address of the guest on a network of mode user.
func (n Network) UserGuest() netip.Addr {
	a := n.Subnet.Addr()
	for range userGuestHost {
		a = a.Next()
	}
	return a
}

// HostRange returns the first and the last host address of the IPv4 subnet of n.
func (n Network) HostRange() (first, last netip.Addr) {
	return n.Subnet.Addr().Next(), LastAddr(n.Subnet).Prev()
}

// CanAssign reports whether a is a host address of the IPv4 subnet of n other than the gateway.
func (n Network) CanAssign(a netip.Addr) bool {
	return isHostAddr(n.Subnet, a) && a != n.Gateway
}

// isHostAddr reports whether a is a host address of the IPv4 subnet s: not its first address
// and not its broadcast address.
func isHostAddr(s netip.Prefix, a netip.Addr) bool {
	return a.Is4() && s.Contains(a) && a != s.Addr() && a != LastAddr(s)
}

// LastAddr returns the last address of s: of an IPv4 subnet the broadcast address.
func LastAddr(s netip.Prefix) netip.Addr {
	a := s.Masked().Addr().AsSlice()
	for i := s.Bits(); i < 8*len(a); i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(a) // of an address, so it has the right length
	return last
}

// CheckMode returns a [Fault] of code [CodeInvalid] if the mode of n is unknown, or if n has a
// setting that its mode does not support.
func (n Network) CheckMode() error {
	switch n.Mode {
	case NetworkNAT, NetworkIsolated, NetworkBridge, NetworkUser:
	default:
		return InvalidField("/mode", "must be nat, isolated, bridge or user")
	}
	managed := n.Mode.Managed()
	settings := []struct {
		field            string
		given, supported bool
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
		{"/search_domains", len(n.SearchDomains) > 0, managed},
		{"/dhcp_options", len(n.DHCPOptions) > 0, managed},
		{"/pxe", n.PXE != nil, managed},
		{"/dns_records", len(n.DNSRecords) > 0, managed},
		{"/dns_forwarders", len(n.DNSForwarders) > 0, managed},
	}
	for _, s := range settings {
		if s.given && !s.supported {
			return InvalidField(s.field, "is not supported by networks of mode %s", n.Mode)
		}
	}
	if n.Mode == NetworkBridge && n.Bridge == "" {
		return InvalidField("/bridge", "must name a bridge of the host")
	}
	return nil
}

// Check returns a [Fault] of code [CodeInvalid] if n is invalid regardless of other networks
// and of the host. All defaults of n must be filled in.
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
		return InvalidField("/domain", "must be a DNS name in lower case of at most %d characters, such as vm.example.org",
			maxDomain)
	}
	if err := checkServers("/dns", n.DNS); err != nil {
		return err
	}
	if err := checkServers("/ntp", n.NTP); err != nil {
		return err
	}
	if err := n.checkRoutes(); err != nil {
		return err
	}
	for _, check := range []func() error{
		n.checkSearchDomains, n.checkDHCPOptions, n.checkPXE, n.checkDNSRecords, n.checkDNSForwarders,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkAddresses checks the subnets and the gateway of n.
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
	case !isHostRange(s.Addr()) || s.Addr().As4()[0] >= 240:
		return InvalidField("/subnet", "%s is in a range that is not for hosts", s)
	case n.Mode == NetworkUser && s.Bits() > maxUser:
		return InvalidField("/subnet", "must be a /%d to a /%d with mode user: its guest has address %d of the subnet",
			minSubnet, maxUser, userGuestHost)
	case !isHostAddr(s, n.Gateway):
		return InvalidField("/gateway", "%s is not a host address in %s", n.Gateway, s)
	case n.Mode == NetworkUser && n.Gateway == n.UserGuest():
		return InvalidField("/gateway", "%s is the address of the guest", n.Gateway)
	}
	six := n.IPv6
	if !six.IsValid() {
		return nil
	}
	if !six.Addr().Is6() || six.Addr().Is4In6() || six.Bits() != 64 || six != six.Masked() || !isHostRange(six.Addr()) {
		return InvalidField("/ipv6_subnet", "%s is not a /64 such as fd00:1:2:3::/64", six)
	}
	return nil
}

// isHostRange reports whether the first address of a subnet is in a range for hosts: not
// multicast, loopback, link-local or unspecified.
func isHostRange(a netip.Addr) bool {
	return !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsUnspecified()
}

// checkServers checks a list of servers that DHCP announces.
func checkServers(field string, servers []netip.Addr) error {
	if len(servers) > maxServers {
		return InvalidField(field, "must have at most %d entries", maxServers)
	}
	for _, a := range servers {
		if !a.Is4() || a.IsUnspecified() || a.IsMulticast() {
			return InvalidField(field, "%s is not the IPv4 address of a server", a)
		}
	}
	return nil
}

// checkRoutes checks the static routes of n.
func (n Network) checkRoutes() error {
	if len(n.Routes) > maxRoutes {
		return InvalidField("/routes", "must have at most %d entries", maxRoutes)
	}
	for _, r := range n.Routes {
		d := r.Destination
		if !d.IsValid() || !d.Addr().Is4() || d != d.Masked() || !n.Subnet.Contains(r.Gateway) {
			return InvalidField("/routes", "%s via %s: must be an IPv4 subnet via an address in the subnet of the network",
				d, r.Gateway)
		}
	}
	return nil
}

// validDomain reports whether s is a DNS name in lower case of at most maxDomain characters.
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

// NetworkEdits are the settings of a network that can change. A nil field keeps the recorded
// value.
type NetworkEdits struct {
	// Subnet, Gateway and IPv6 can change only while no NIC is on the network. A new Subnet
	// without a Gateway sets the gateway to [Network.DefaultGateway]. A zero IPv6 removes the
	// IPv6 subnet.
	Subnet   *netip.Prefix
	Gateway  *netip.Addr
	IPv6     *netip.Prefix
	DNS, NTP *[]netip.Addr
	Routes   *[]Route
	Domain   *string
	// Running VMs do not follow a change of MTU, VLAN and Restrict before their next start. Such
	// a change requires Force while VMs run on the network.
	MTU, VLAN            *int
	IsolateVMs, Restrict *bool
	Force                bool

	SearchDomains *[]string
	DHCPOptions   *[]DHCPOption
	PXE           **PXE // a pointer to nil removes it
	DNSRecords    *[]DNSRecord
	DNSForwarders *[]DNSForwarder
}

// Apply copies the fields of e to n without checking them; see [Network.Check]. It reports
// whether Subnet, Gateway or IPv6 changed, which requires that no NIC is on n.
func (e NetworkEdits) Apply(n *Network) (addressesChanged bool) {
	old := *n
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
	set(&n.SearchDomains, e.SearchDomains)
	set(&n.DHCPOptions, e.DHCPOptions)
	set(&n.PXE, e.PXE)
	set(&n.DNSRecords, e.DNSRecords)
	set(&n.DNSForwarders, e.DNSForwarders)
	return n.Subnet != old.Subnet || n.Gateway != old.Gateway || n.IPv6 != old.IPv6
}

// NotFollowed returns the JSON pointer of a setting that differs between n and changed and that
// running VMs do not follow, and its effect on them in words. The field is empty if there is
// none.
func (n Network) NotFollowed(changed Network) (field, effect string) {
	switch {
	case cmp.Or(n.MTU, usualMTU) != cmp.Or(changed.MTU, usualMTU):
		return "/mtu", "their packets of the old size would be lost"
	case n.VLAN != changed.VLAN:
		return "/vlan_id", "they stay in the old VLAN until their next start"
	case n.Restrict != changed.Restrict:
		return "/restrict", "they keep the old setting until their next start"
	}
	return "", ""
}

// A Lease maps a NIC to its addresses on a network.
type Lease struct {
	Network  string
	VMID     string
	Slot     int
	MAC      string
	IP       netip.Addr // zero with modes bridge and user
	IPv6     netip.Addr // zero without IPv6
	Hostname string     // the name in DHCP and DNS: the id of the VM
	Acked    time.Time  // time of the last DHCP acknowledgement; zero for none
	Expires  time.Time  // end of the DHCP lease; zero without an acknowledgement
}

// A NetworkReport combines the record of a network with its state on the host.
type NetworkReport struct {
	Network Network
	Leases  []Lease // in order of their addresses
	Free    int     // number of free addresses; -1 if vmand does not assign the addresses
	Status  NetworkStatus
}

// CheckName returns a [Fault] of code [CodeInvalid] if a new network cannot have the name of n.
func (n Network) CheckName() error {
	if !ValidName(n.Name) || len(n.Name) > MaxNetworkName {
		return InvalidField("/name",
			"must have 1 to %d characters of a-z, 0-9 and '-', and begin and end with a letter or a digit", MaxNetworkName)
	}
	if n.Name == "all" || n.Name == "default" {
		return InvalidField("/name", "the kernel reserves the name %s in /proc/sys/net for all interfaces", n.Name)
	}
	return nil
}
