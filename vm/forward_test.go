package vm

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestPortForwardCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*PortForward)
		field  string // of the fault; empty: valid
	}{
		{"valid", func(*PortForward) {}, ""},
		{"UDP from one address", func(f *PortForward) { f.Protocol, f.HostAddress = UDP, netip.MustParseAddr("192.0.2.1") }, ""},
		{"another protocol", func(f *PortForward) { f.Protocol = "sctp" }, "/protocol"},
		{"every IPv6 address", func(f *PortForward) { f.HostAddress = netip.IPv6Unspecified() }, ""},
		{"one IPv6 address", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("2001:db8::1") }, ""},
		{"IPv6 loopback", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("::1") }, "/host_address"},
		{"link-local", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("fe80::1") }, "/host_address"},
		{"IPv4 in IPv6", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("::ffff:192.0.2.1") }, "/host_address"},
		{"IPv6 multicast", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("ff02::1") }, "/host_address"},
		{"no address", func(f *PortForward) { f.HostAddress = netip.Addr{} }, "/host_address"},
		{"the longest range", func(f *PortForward) { f.GuestPort, f.Ports = 1, MaxPorts }, ""},
		{"a range to the last port", func(f *PortForward) { f.GuestPort, f.Ports = 65526, 10 }, ""},
		{"a range past the last port", func(f *PortForward) { f.GuestPort, f.Ports = 65527, 10 }, "/ports"},
		{"a range past the last host port", func(f *PortForward) { f.HostPort, f.GuestPort, f.Ports = 65527, 1, 10 }, "/ports"},
		{"too long a range", func(f *PortForward) { f.GuestPort, f.Ports = 1, MaxPorts+1 }, "/ports"},
		{"a negative range", func(f *PortForward) { f.Ports = -1 }, "/ports"},
		{"multicast", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("224.0.0.1") }, "/host_address"},
		{"all hosts", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("255.255.255.255") }, "/host_address"},
		{"this network", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("0.0.0.1") }, "/host_address"},
		{"no host port", func(f *PortForward) { f.HostPort = 0 }, "/host_port"},
		{"a large guest port", func(f *PortForward) { f.GuestPort = 65536 }, "/guest_port"},
	} {
		f := PortForward{Protocol: TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 1, GuestPort: 65535}
		c.change(&f)
		wantField(t, c.name, f.Check(), "", c.field, "")
	}
}

func TestForwardsTo(t *testing.T) {
	all := []PortForward{{ID: "pf-a", Slot: 1}, {ID: "pf-b"}, {ID: "pf-c", Slot: 1}}
	if got, want := ForwardsTo(all, 1), []PortForward{all[0], all[2]}; !reflect.DeepEqual(got, want) {
		t.Errorf("ForwardsTo slot 1 = %v; want %v", got, want)
	}
	if all[1].ID != "pf-b" {
		t.Errorf("ForwardsTo changed its argument to %v", all)
	}
}

func TestCheckForwards(t *testing.T) {
	v := VM{ID: "web", NICs: []NIC{{Slot: 0, Mode: NetworkNAT}, {Slot: 1, Mode: NetworkUser}}}
	many := func(count, slot, ports int) []PortForward {
		return slices.Repeat([]PortForward{{Slot: slot, Ports: ports}}, count)
	}
	for _, c := range []struct {
		name     string
		forwards []PortForward
		says     string // empty: valid
	}{
		{"none", nil, ""},
		{"the most forwards", many(MaxForwards, 0, 0), ""},
		{"too many forwards", many(MaxForwards+1, 0, 0), "more than 64 port forwards"},
		{"the most ports", many(10, 0, MaxPorts), ""},
		{"too many ports", append(many(10, 0, MaxPorts), many(1, 0, 1)...), "10001 forwarded ports"},
		{"the most ports of mode user", many(2, 1, MaxUserPorts/2), ""},
		{"too many ports of mode user", append(many(1, 1, MaxUserPorts), many(1, 1, 0)...), "257 forwarded ports on networks of mode user"},
	} {
		v.Forwards = c.forwards
		err := v.CheckForwards()
		var f *Fault
		if c.says == "" && err != nil || c.says != "" && (!errors.As(err, &f) || f.Code != CodeLimitReached || !strings.Contains(f.Detail, c.says)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}
