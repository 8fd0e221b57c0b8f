package vm

import (
	"net/netip"
	"reflect"
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
		{"IPv6", func(f *PortForward) { f.HostAddress = netip.MustParseAddr("::1") }, "/host_address"},
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
