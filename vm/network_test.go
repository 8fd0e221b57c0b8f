package vm

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func natNetwork() Network {
	return Network{
		Name:    "lan",
		Mode:    NetworkNAT,
		Bridge:  "lan",
		Subnet:  netip.MustParsePrefix("192.168.100.0/24"),
		Gateway: netip.MustParseAddr("192.168.100.1"),
		Domain:  "lan.example.org",
	}
}

func TestNetworkEditsApply(t *testing.T) {
	subnet, six := netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")
	gateway := netip.MustParseAddr("192.168.100.254")
	servers, routes := []netip.Addr{netip.MustParseAddr("9.9.9.9")}, []Route{{subnet, gateway}}
	domain, mtu, vlan, yes := "example.org", 9000, 7, true
	same := natNetwork().Subnet
	edit := func(change func(*Network)) Network {
		n := natNetwork()
		change(&n)
		return n
	}
	withSix := edit(func(n *Network) { n.IPv6 = six })
	for _, c := range []struct {
		name      string
		from      Network
		edits     NetworkEdits
		want      Network
		addresses bool
	}{
		{"nothing", natNetwork(), NetworkEdits{}, natNetwork(), false},
		{
			"another subnet moves the gateway", natNetwork(), NetworkEdits{Subnet: &subnet},
			edit(func(n *Network) { n.Subnet, n.Gateway = subnet, netip.MustParseAddr("10.0.0.1") }), true,
		},
		{
			"another subnet with its gateway", natNetwork(), NetworkEdits{Subnet: &subnet, Gateway: &gateway},
			edit(func(n *Network) { n.Subnet, n.Gateway = subnet, gateway }), true,
		},
		{
			"the same subnet keeps the gateway", edit(func(n *Network) { n.Gateway = gateway }),
			NetworkEdits{Subnet: &same}, edit(func(n *Network) { n.Gateway = gateway }), false,
		},
		{
			"another gateway", natNetwork(), NetworkEdits{Gateway: &gateway},
			edit(func(n *Network) { n.Gateway = gateway }), true,
		},
		{"IPv6 is added", natNetwork(), NetworkEdits{IPv6: &six}, withSix, true},
		{"IPv6 is removed", withSix, NetworkEdits{IPv6: new(netip.Prefix)}, natNetwork(), true},
		{
			"settings without addresses", natNetwork(),
			NetworkEdits{
				DNS: &servers, NTP: &servers, Routes: &routes, Domain: &domain,
				MTU: &mtu, VLAN: &vlan, IsolateVMs: &yes, Restrict: &yes,
			},
			edit(func(n *Network) {
				n.DNS, n.NTP, n.Routes, n.Domain = servers, servers, routes, domain
				n.MTU, n.VLAN, n.IsolateVMs, n.Restrict = mtu, vlan, true, true
			}), false,
		},
	} {
		got := c.from
		if addresses := c.edits.Apply(&got); addresses != c.addresses || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %t; want %+v, %t", c.name, got, addresses, c.want, c.addresses)
		}
	}
}

func TestNetworkCheck(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	subnet := func(s, gateway string) func(*Network) {
		return func(n *Network) { n.Subnet, n.Gateway = prefix(s), addr(gateway) }
	}
	dns := func(servers ...netip.Addr) func(*Network) {
		return func(n *Network) { n.DNS = servers }
	}
	routes := func(routes ...Route) func(*Network) {
		return func(n *Network) { n.Routes = routes }
	}
	user := func(change func(*Network)) func(*Network) {
		return func(n *Network) {
			*n = Network{Name: "user", Mode: NetworkUser, Subnet: prefix("10.0.2.0/24"), Gateway: addr("10.0.2.2")}
			change(n)
		}
	}
	bridge := func(change func(*Network)) func(*Network) {
		return func(n *Network) {
			*n = Network{Name: "br", Mode: NetworkBridge, Bridge: "br0", VLAN: 4094, MTU: 9000}
			change(n)
		}
	}
	nothing := func(*Network) {}
	for _, c := range []struct {
		name   string
		change func(*Network)
		field  string // of the fault; empty: valid
		says   string // a part of the detail
	}{
		{"mode nat", nothing, "", ""},
		{"mode user", user(nothing), "", ""},
		{"mode bridge", bridge(nothing), "", ""},
		{"an unknown mode", func(n *Network) { n.Mode = "vepa" }, "/mode", "isolated"},
		{"no bridge", bridge(func(n *Network) { n.Bridge = "" }), "/bridge", "bridge of the host"},
		{"a bridge with mode nat", func(n *Network) { n.Bridge = "br0" }, "/bridge", "mode nat"},
		{"a subnet with mode bridge", bridge(func(n *Network) { n.Subnet = prefix("10.0.0.0/24") }), "/subnet", "mode bridge"},
		{"a VLAN with mode nat", func(n *Network) { n.VLAN = 1 }, "/vlan_id", "mode nat"},
		{"name servers with mode user", user(dns(addr("9.9.9.9"))), "/dns", "mode user"},
		{"restrict with mode nat", func(n *Network) { n.Restrict = true }, "/restrict", "mode nat"},

		{"the largest subnet", subnet("10.1.0.0/16", "10.1.0.1"), "", ""},
		{"the smallest subnet", subnet("10.1.0.0/29", "10.1.0.6"), "", ""},
		{"a larger subnet", subnet("10.0.0.0/15", "10.0.0.1"), "/subnet", "/16"},
		{"a smaller subnet", subnet("10.0.0.0/30", "10.0.0.1"), "/subnet", "/29"},
		{"host bits", subnet("10.0.0.1/24", "10.0.0.1"), "/subnet", "10.0.0.1/24"},
		{"IPv6 as IPv4", subnet("fd00::/24", "10.0.0.1"), "/subnet", "IPv4"},
		{"loopback", subnet("127.0.0.0/24", "127.0.0.1"), "/subnet", "range"},
		{"multicast", subnet("224.0.0.0/24", "224.0.0.1"), "/subnet", "range"},
		{"class E", subnet("240.0.0.0/24", "240.0.0.1"), "/subnet", "range"},
		{"a gateway outside", subnet("10.0.0.0/24", "10.0.1.1"), "/gateway", "10.0.1.1"},
		{"the first address", subnet("10.0.0.0/24", "10.0.0.0"), "/gateway", "10.0.0.0"},
		{"the broadcast address", subnet("10.0.0.0/24", "10.0.0.255"), "/gateway", "10.0.0.255"},
		{"no room for the guest", user(subnet("10.0.0.0/28", "10.0.0.1")), "/subnet", "/27"},
		{"the address of the guest", user(subnet("10.0.0.0/24", "10.0.0.15")), "/gateway", "guest"},

		{"IPv6", func(n *Network) { n.IPv6 = prefix("fd00::/64") }, "", ""},
		{"not a /64", func(n *Network) { n.IPv6 = prefix("fd00::/56") }, "/ipv6_subnet", "/64"},
		{"link-local IPv6", func(n *Network) { n.IPv6 = prefix("fe80::/64") }, "/ipv6_subnet", "/64"},

		{"the smallest MTU", func(n *Network) { n.MTU = minMTU }, "", ""},
		{"a smaller MTU", func(n *Network) { n.MTU = minMTU - 1 }, "/mtu", "576"},
		{"an MTU too small for IPv6", func(n *Network) { n.MTU, n.IPv6 = 1279, prefix("fd00::/64") }, "/mtu", "1280"},
		{"a large MTU", func(n *Network) { n.MTU = maxMTU + 1 }, "/mtu", "9216"},
		{"a large VLAN id", bridge(func(n *Network) { n.VLAN = 4095 }), "/vlan_id", "4094"},
		{"a domain in upper case", func(n *Network) { n.Domain = "Example.org" }, "/domain", "lower case"},
		{"a long domain", func(n *Network) { n.Domain = strings.Repeat("a.", 100) + "a" }, "/domain", "200"},

		{"a name server", dns(addr("9.9.9.9")), "", ""},
		{"an IPv6 name server", dns(addr("fd00::1")), "/dns", "fd00::1"},
		{"too many name servers", dns(make([]netip.Addr, maxServers+1)...), "/dns", "8 entries"},
		{"an unspecified time server", func(n *Network) { n.NTP = []netip.Addr{addr("0.0.0.0")} }, "/ntp", "0.0.0.0"},

		{"a route", routes(Route{prefix("10.0.0.0/8"), addr("192.168.100.9")}), "", ""},
		{"a route with host bits", routes(Route{prefix("10.0.0.1/8"), addr("192.168.100.9")}), "/routes", "10.0.0.1/8"},
		{"a route via another subnet", routes(Route{prefix("10.0.0.0/8"), addr("10.0.0.1")}), "/routes", "via 10.0.0.1"},
		{"too many routes", routes(make([]Route, maxRoutes+1)...), "/routes", "32 entries"},
	} {
		n := natNetwork()
		c.change(&n)
		wantField(t, c.name, n.Check(), "", c.field, c.says)
	}
}

func TestAddressesOfANetwork(t *testing.T) {
	addr := netip.MustParseAddr
	n := natNetwork()
	n.IPv6 = netip.MustParsePrefix("fd00:1::/64")
	if first, last := n.HostRange(); first != addr("192.168.100.1") || last != addr("192.168.100.254") {
		t.Errorf("HostRange = %s, %s", first, last)
	}
	for a, want := range map[string]bool{
		"192.168.100.2":   true,
		"192.168.100.254": true,
		"192.168.100.0":   false,
		"192.168.100.1":   false, // the gateway
		"192.168.100.255": false,
		"192.168.101.2":   false,
		"fd00:1::2":       false,
	} {
		if n.CanAssign(addr(a)) != want {
			t.Errorf("CanAssign(%s) = %t; want %t", a, !want, want)
		}
	}
	if got := n.GatewayIPv6(); got != addr("fd00:1::1") {
		t.Errorf("GatewayIPv6 = %s", got)
	}
	if got := n.AddressIPv6(addr("192.168.100.17")); got != addr("fd00:1::11") {
		t.Errorf("AddressIPv6 = %s", got)
	}
	if got := n.AddressIPv6(addr("10.0.0.17")); got.IsValid() {
		t.Errorf("AddressIPv6 of another subnet = %s; want none", got)
	}
	user := Network{Mode: NetworkUser, Subnet: netip.MustParsePrefix("10.0.2.0/24")}
	if gateway, guest := user.DefaultGateway(), user.UserGuest(); gateway != addr("10.0.2.2") || guest != addr("10.0.2.15") {
		t.Errorf("mode user has gateway %s and guest %s", gateway, guest)
	}
	if got := n.DefaultGateway(); got != addr("192.168.100.1") {
		t.Errorf("DefaultGateway = %s", got)
	}
}

func TestRunningVMsDoNotFollowThreeSettings(t *testing.T) {
	for _, c := range []struct {
		change func(*Network)
		want   string
	}{
		{func(n *Network) {}, ""},
		{func(n *Network) { n.MTU = 1500 }, ""}, // 0 is 1500
		{func(n *Network) { n.MTU = 1400 }, "/mtu"},
		{func(n *Network) { n.VLAN = 7 }, "/vlan_id"},
		{func(n *Network) { n.Restrict = true }, "/restrict"},
		{func(n *Network) { n.IsolateVMs, n.Domain = true, "x" }, ""},
	} {
		changed := natNetwork()
		c.change(&changed)
		if field, _ := natNetwork().NotFollowed(changed); field != c.want {
			t.Errorf("NotFollowed = %q, want %q", field, c.want)
		}
	}
}
