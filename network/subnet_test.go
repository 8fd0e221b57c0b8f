package network

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vmand/vm"
)

func TestAFreeSubnetOverlapsNothing(t *testing.T) {
	used := func(prefixes ...string) (all []usedSubnet) {
		for _, p := range prefixes {
			all = append(all, usedSubnet{netip.MustParsePrefix(p), "", "the host has a route to " + p})
		}
		return all
	}
	for _, c := range []struct {
		used []usedSubnet
		want string
	}{
		{nil, "192.168.100.0/24"},
		{used("192.168.101.0/24", "10.0.0.0/8"), "192.168.100.0/24"},
		{used("192.168.100.7/32"), "192.168.101.0/24"},
		{used("192.168.0.0/16"), "172.16.0.0/24"},
		{used("192.168.0.0/16", "172.16.0.0/13"), "172.24.0.0/24"},
		{used("192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/15"), "10.2.0.0/24"},
		{used("192.168.96.0/19", "192.168.128.0/17"), "192.168.0.0/24"},
		{used("192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/8"), ""},
	} {
		got, why, ok := freeSubnet(netip.MustParsePrefix("192.168.100.0/24"), c.used)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%v: %s, %v, want %s", c.used, got, ok, c.want)
		}
		if ok && (why == "") != (c.want == "192.168.100.0/24") {
			t.Errorf("%v: why %q", c.used, why)
		}
	}
}

func TestSubnetsOfTheHostsRoutesAreNotFree(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	newOutside(t)
	taken := []netip.Prefix{netip.MustParsePrefix("192.168.100.0/23")}
	free, why, err := n.FreeSubnet(t.Context(), netip.MustParsePrefix("203.0.113.0/24"), taken)
	if err != nil || free.String() != "192.168.102.0/24" || !strings.Contains(why, "up0") {
		t.Errorf("FreeSubnet = %s, %q, %v", free, why, err)
	}
	nw := natNetwork()
	nw.Subnet, nw.Gateway = netip.MustParsePrefix("203.0.113.0/24"), addr("203.0.113.1")
	if err := n.Admit(t.Context(), nw); codeOf(err) != vm.CodeInUse {
		t.Errorf("Admit: %v", err)
	}
}

// addRoute adds a route on an interface, in a routing table.
func addRoute(t testing.TB, to, name string, table int) *netlink.Route {
	t.Helper()
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		t.Fatal(err)
	}
	r := &netlink.Route{Dst: dst, LinkIndex: link(t, name).Attrs().Index, Table: table, Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRoutesOfAllTablesAreLookedAtWhenANetworkIsMade(t *testing.T) {
	n := newHost(t)
	newOutside(t)
	nw := natNetwork()
	addRoute(t, "0.0.0.0/1", "up0", 0) // a VPN that takes all traffic
	addRoute(t, "128.0.0.0/1", "up0", 100)
	if err := n.Admit(t.Context(), nw); err != nil {
		t.Fatalf("Admit with halves of a default route: %v", err)
	}
	addRoute(t, "192.168.0.0/16", "up0", 100)
	err := n.Admit(t.Context(), nw)
	if codeOf(err) != vm.CodeInUse || !strings.Contains(err.Error(), "on up0 in the routing table 100") {
		t.Errorf("Admit with a route in another table: %v", err)
	}
	rule := netlink.NewRule()
	rule.Table, rule.Priority = 200, 50
	if _, rule.Dst, err = net.ParseCIDR("10.9.0.0/16"); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	ruled := nw
	ruled.Subnet, ruled.Gateway = netip.MustParsePrefix("10.9.1.0/24"), addr("10.9.1.1")
	if err := n.Admit(t.Context(), ruled); err == nil || !strings.Contains(err.Error(), "looks up 10.9.0.0/16") {
		t.Errorf("Admit with a routing rule for the subnet: %v", err)
	}
	free, why, err := n.FreeSubnet(t.Context(), nw.Subnet, nil)
	if err != nil || free.Overlaps(netip.MustParsePrefix("192.168.0.0/16")) || !strings.Contains(why, "table 100") {
		t.Errorf("FreeSubnet = %s, %q, %v", free, why, err)
	}
}

func TestARouteOverASubnetThatAppearsLaterIsReported(t *testing.T) {
	for _, c := range []struct {
		name, to string
		table    int
	}{
		{"the whole subnet", "192.168.100.0/24", 100},
		{"a part of the subnet", "192.168.100.128/25", 0},
		{"a larger network", "192.168.0.0/16", 0},
		{"the IPv6 subnet", "fd00:64::/48", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newHost(t)
			newOutside(t)
			nw := natNetwork()
			up(t, n, nw)
			w := vm.Wanted{Networks: []vm.Network{nw}}
			settledPass(t, n, w)
			if s := n.Status(t.Context(), nw); len(s.Problems) != 0 {
				t.Fatalf("problems before: %+v", s.Problems)
			}
			r := addRoute(t, c.to, "up0", c.table)
			survey, err := n.Reconcile(t.Context(), w, true)
			if err != nil || len(survey.Problems) != 1 || survey.Problems[0].Kind != vm.ProblemOverlap ||
				!strings.Contains(survey.Problems[0].Detail, c.to+" on up0") {
				t.Errorf("problems %+v, %v", survey.Problems, err)
			}
			if s := n.Status(t.Context(), nw); !slices.Equal(s.Problems, survey.Problems) {
				t.Errorf("the status has the problems %+v", s.Problems)
			}
			if err := netlink.RouteDel(r); err != nil {
				t.Fatal(err)
			}
			if s := n.Status(t.Context(), nw); len(s.Problems) != 0 {
				t.Errorf("problems without the route: %+v", s.Problems)
			}
		})
	}
}

func TestElementsFollowTheRecords(t *testing.T) {
	nw := natNetwork()
	v := guest("web", nw, 10)
	v.NICs[0].RateOut = 8
	v.NICs[0].Extra = prefixes("192.168.100.240/28", "fd00:64::5/128")
	v.Forwards = []vm.PortForward{
		{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80},
		{Protocol: vm.UDP, HostAddress: addr("203.0.113.1"), HostPort: 53, GuestPort: 5353},
		{Slot: 4, Protocol: vm.TCP, HostPort: 1, GuestPort: 1}, // of a NIC that was detached
		{Protocol: vm.TCP, HostAddress: netip.IPv6Unspecified(), HostPort: 8080, GuestPort: 80, Ports: 2},
		{Protocol: vm.UDP, HostAddress: addr("2001:db8::1"), HostPort: 53, GuestPort: 5353},
	}
	tap := string(ifname(tapName("web", 0)))
	mac, v4, v6 := v.NICs[0].MAC, "\xc0\xa8\x64\x0a", string(addr("fd00:64::a").AsSlice())
	got := vmElements(v)
	want := []element{
		{set: setAssigned, key: tap},
		{set: setHairpins, key: tap + tap},
		{set: setMACs, key: tap + string(bytesOfMAC(t, mac)) + "\x00\x00"},
		{set: setIPs, key: tap + v4},
		{set: setIPs6, key: tap + string(addr("fd00:64::a").AsSlice())},
		{set: setExtras, key: tap + "\xc0\xa8\x64\xf0", last: tap + "\xc0\xa8\x64\xff"},
		{set: setExtras6, key: tap + string(addr("fd00:64::5").AsSlice()), last: tap + string(addr("fd00:64::5").AsSlice())},
		{set: setRates, key: tap, data: "\x00\x00\x00\x00\x00\x00\x03\xe8"},
		{set: setAnywhere, key: "\x06\x00\x00\x00\x1f\x90\x00\x00", data: v4 + "\x00\x50\x00\x00"},
		{set: setForwards, key: "\xcb\x00\x71\x01\x11\x00\x00\x00\x00\x35\x00\x00", data: v4 + "\x14\xe9\x00\x00"},
		{set: setAnywhere6, key: "\x06\x00\x00\x00\x1f\x90\x00\x00", data: v6 + "\x00\x50\x00\x00"},
		{set: setAnywhere6, key: "\x06\x00\x00\x00\x1f\x91\x00\x00", data: v6 + "\x00\x51\x00\x00"},
		{
			set: setForwards6, key: string(addr("2001:db8::1").AsSlice()) + "\x11\x00\x00\x00\x00\x35\x00\x00",
			data: v6 + "\x14\xe9\x00\x00",
		},
	}
	if !slices.Equal(got, want) {
		t.Errorf("elements\n%+v\nwant\n%+v", got, want)
	}
	bridge := string(ifname("vman0"))
	wantNetwork := []element{
		{set: setBridges, key: bridge},
		{set: setServed, key: bridge + "\xc0\xa8\x64\x01" + "\x00\x35\x00\x00"},
		{set: setServed, key: bridge + "\xc0\xa8\x64\x01" + "\x00\x43\x00\x00"},
		{set: setServed6, key: bridge + string(addr("fd00:64::1").AsSlice()) + "\x00\x35\x00\x00"},
		{set: setWithin, key: bridge + bridge},
		{set: setNAT, key: bridge},
		{set: setSubnets, key: "\xc0\xa8\x64\x00"},
		{set: setSubnets, key: "\xc0\xa8\x65\x00", end: true},
		{set: setGuests6, key: string(addr("fd00:64::").AsSlice())},
		{set: setGuests6, key: string(addr("fd00:64:0:1::").AsSlice()), end: true},
		{set: setSubnets6, key: string(addr("fd00:64::").AsSlice())},
		{set: setSubnets6, key: string(addr("fd00:64:0:1::").AsSlice()), end: true},
	}
	if got := networkElements(nw); !slices.Equal(got, wantNetwork) {
		t.Errorf("elements\n%+v\nwant\n%+v", got, wantNetwork)
	}
	nw.Mode, nw.IsolateVMs = vm.NetworkIsolated, true
	if got := networkElements(nw); !slices.Equal(got, wantNetwork[:4]) {
		t.Errorf("elements of an isolated network with isolated guests: %+v", got)
	}
}

func bytesOfMAC(t *testing.T, mac string) []byte {
	v := vm.VM{NICs: []vm.NIC{{MAC: mac}}}
	return mustMAC(t, v)
}

func TestARangeEndsAfterItsLastAddress(t *testing.T) {
	for prefix, after := range map[string]string{
		"10.0.0.0/24":        "10.0.1.0",
		"10.0.255.0/24":      "10.1.0.0",
		"10.0.0.0/8":         "11.0.0.0",
		"192.168.100.128/25": "192.168.101.0",
		"192.168.100.0/30":   "192.168.100.4",
		"fd00:0:0:ffff::/64": "fd00:0:1::",
	} {
		got := rangeElements("s", netip.MustParsePrefix(prefix))
		if got[1].key != string(addr(after).AsSlice()) || !got[1].end {
			t.Errorf("%s ends before %v, want %s", prefix, []byte(got[1].key), after)
		}
	}
}

func TestTapNamesFitAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	const uuid = "0b0e2c6e-4f0a-4a7e-9d6c-0d6d4c1f6a11"
	for _, uuid := range []string{uuid, "0b0e2c6e-4f0a-4a7e-9d6c-0d6d4c1f6a12"} {
		for slot := range vm.MaxNICs {
			name := tapName(uuid, slot)
			if len(name) > 15 || seen[name] {
				t.Errorf("%s of %s, slot %d", name, uuid, slot)
			}
			seen[name] = true
		}
	}
	// Later versions must find the same names.
	if got := tapName(uuid, 0); got != "vt443f2ca9ad-0" {
		t.Errorf("tapName = %s", got)
	}
}
