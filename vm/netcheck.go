package vm

import (
	"net/netip"
	"strings"
)

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
	case !UsableAddr(s, n.Gateway):
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

// UserGuest returns the address of the one guest of a user-mode network.
func (n Network) UserGuest() netip.Addr {
	a := n.Subnet.Addr()
	for range userGuestHost {
		a = a.Next()
	}
	return a
}

// usable reports whether a host in the subnet can have the address.
func UsableAddr(s netip.Prefix, a netip.Addr) bool {
	return a.Is4() && s.Contains(a) && a != s.Addr() && a != LastAddr(s)
}

// LastAddr returns the last address of an IPv4 subnet, its broadcast address.
func LastAddr(s netip.Prefix) netip.Addr {
	a := s.Masked().Addr().As4()
	for i := s.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
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
