package vm

import (
	"net/netip"
	"slices"
	"testing"
)

func extraNetwork() Network {
	return Network{
		Name: "lan", Mode: NetworkNAT, Subnet: netip.MustParsePrefix("10.0.0.0/24"),
		Gateway: netip.MustParseAddr("10.0.0.1"), IPv6: netip.MustParsePrefix("fd00:1::/64"),
	}
}

func prefixes(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestCheckExtraAddresses(t *testing.T) {
	var most []netip.Prefix
	for i := range MaxExtraAddresses {
		most = append(most, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}), 32))
	}
	bridge, four, last := extraNetwork(), extraNetwork(), extraNetwork()
	last.Gateway = netip.MustParseAddr("10.0.0.254")
	bridge.Mode, four.IPv6 = NetworkBridge, netip.Prefix{}
	for _, c := range []struct {
		name    string
		network Network
		list    []netip.Prefix
		field   string // of the fault; empty: valid
		says    string
	}{
		{"none", extraNetwork(), nil, "", ""},
		{"none on a bridge", bridge, nil, "", ""},
		{"addresses", extraNetwork(), prefixes("10.0.0.200/32", "10.0.0.224/28", "fd00:1::5/128", "fd00:1:0:0:1::/80"), "", ""},
		{"the most", extraNetwork(), most, "", ""},
		{"too many", extraNetwork(), append(slices.Clone(most), prefixes("10.0.0.99/32")...), "/x", "at most 16"},
		{"a bridge", bridge, prefixes("10.0.0.200/32"), "/x", "mode bridge"},
		{"an invalid one", extraNetwork(), []netip.Prefix{{}}, "/x/0", "10.0.0.2/32"},
		{"IPv4 in IPv6", extraNetwork(), []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.9"), 128)}, "/x/0", ""},
		{"outside", extraNetwork(), prefixes("10.0.0.9/32", "10.0.1.9/32"), "/x/1", "10.0.1.9/32 is not in the subnet 10.0.0.0/24"},
		{"IPv6 outside", extraNetwork(), prefixes("fd00:2::9/128"), "/x/0", "fd00:1::/64"},
		{"larger than the subnet", extraNetwork(), prefixes("10.0.0.0/8"), "/x/0", "not in the subnet"},
		{"no ipv6_subnet", four, prefixes("fd00:1::9/128"), "/x/0", "has no ipv6_subnet"},
		{"the gateway", extraNetwork(), prefixes("10.0.0.1/32"), "/x/0", "contains 10.0.0.1, the gateway"},
		{"around the gateway", extraNetwork(), prefixes("10.0.0.0/30"), "/x/0", "gateway"},
		{"the IPv6 gateway", extraNetwork(), prefixes("fd00:1::/80"), "/x/0", "contains fd00:1::1, the gateway"},
		{"the network address", extraNetwork(), prefixes("10.0.0.0/32"), "/x/0", "not a host address"},
		{"the broadcast address", extraNetwork(), prefixes("10.0.0.255/32"), "/x/0", "not a host address"},
		{"around the broadcast address", extraNetwork(), prefixes("10.0.0.240/28"), "/x/0", "contains 10.0.0.255, the broadcast"},
		{"around the network address", last, prefixes("10.0.0.0/31"), "/x/0", "contains 10.0.0.0, the network"},
		{"host bits", extraNetwork(), prefixes("10.0.0.244/28"), "/x/0", "use 10.0.0.240/28 or 10.0.0.244/32"},
		{"an overlap", extraNetwork(), prefixes("10.0.0.224/28", "10.0.0.230/32"), "/x/1", "overlaps the entry 10.0.0.224/28"},
		{"twice", extraNetwork(), prefixes("10.0.0.9/32", "10.0.0.9/32"), "/x/1", "overlaps"},
	} {
		wantField(t, c.name, c.network.CheckExtraAddresses("/x", c.list), "", c.field, c.says)
	}
}

func TestAssignedIn(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.0.0.200/32":     "10.0.0.200 10.0.0.200",
		"10.0.0.240/28":     "10.0.0.240 10.0.0.255",
		"10.0.1.0/24":       "",
		"fd00:1::a/128":     "10.0.0.10 10.0.0.10",
		"fd00:1::f0/124":    "10.0.0.240 10.0.0.255",
		"fd00:1::/64":       "10.0.0.0 10.0.0.255",
		"fd00:1::/112":      "10.0.0.0 10.0.0.255",
		"fd00:1::100/120":   "",
		"fd00:1:0:0:1::/80": "",
		"fd00:1::1:0:0/96":  "",
		"fd00:2::a/128":     "",
		"fd00:1::8000:0/97": "",
		"fd00:1::fff0/124":  "",
		"fd00:1:0:0::/96":   "10.0.0.0 10.0.0.255",
	} {
		got := ""
		if first, last, ok := extraNetwork().AssignedIn(netip.MustParsePrefix(prefix)); ok {
			got = first.String() + " " + last.String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", prefix, got, want)
		}
	}
}
