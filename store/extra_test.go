package store

import (
	"net/netip"
	"strings"
	"testing"

	"vmand/vm"
)

// withExtra returns n with extra addresses.
func withExtra(n vm.NIC, list ...string) vm.NIC {
	n.Extra = nil
	for _, s := range list {
		n.Extra = append(n.Extra, netip.MustParsePrefix(s))
	}
	return n
}

func TestExtraAddressesAreOfNoOtherNIC(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	six := vm.Network{Name: "lan", Mode: vm.NetworkNAT, Bridge: "lan", Subnet: netip.MustParsePrefix("10.0.0.0/24"),
		Gateway: netip.MustParseAddr("10.0.0.1"), IPv6: netip.MustParsePrefix("fd00::/64"), CreatedAt: at}
	apply(t, s, vm.Change{NewNetwork: &six})
	makeNetwork(t, s, "dmz")
	nic := func(slot int, ip string, extra ...string) vm.NIC {
		n := withExtra(makeNIC(slot, "lan", ip), extra...)
		n.IPv6 = six.AddressIPv6(n.IP)
		return n
	}
	owner := withNICs(1, nic(2, "10.0.0.7", "10.0.0.32/28", "fd00::50/124", "fd00:0:0:0:1::/80"))
	apply(t, s, vm.Change{NewVM: &owner})
	other := withNICs(2, nic(0, "10.0.0.8"))
	apply(t, s, vm.Change{NewVM: &other})
	for _, tt := range []struct {
		name   string
		nics   []vm.NIC
		detail string // empty: it is recorded
	}{
		{"the same extra address", []vm.NIC{nic(0, "10.0.0.8", "10.0.0.40/32", "10.0.0.32/29", "fd00::51/128")}, ""},
		{"around its own address", []vm.NIC{nic(0, "10.0.0.8", "10.0.0.8/29", "fd00::8/125")}, ""},
		{"on another network", []vm.NIC{withExtra(makeNIC(0, "dmz", "10.0.0.33"), "10.0.0.7/32")}, ""},
		{"an assigned address", []vm.NIC{nic(0, "10.0.0.8", "10.0.0.0/29")}, "the extra addresses 10.0.0.0/29 of NIC 0 contain 10.0.0.7, which is assigned to NIC 2 of VM vm-000001"},
		{"an assigned IPv6 address", []vm.NIC{nic(0, "10.0.0.8", "fd00::7/128")}, "contain fd00::7, which is assigned to NIC 2 of VM vm-000001"},
		{"a second NIC's", []vm.NIC{nic(0, "10.0.0.8", "10.0.0.9/32"), nic(1, "10.0.0.9")}, "contain 10.0.0.9, which is assigned to NIC 1 of VM vm-000002"},
		{"an address of the extra ones", []vm.NIC{nic(0, "10.0.0.47")}, "address 10.0.0.47 on network lan belongs to the extra addresses of NIC 2 of VM vm-000001"},
		{"an IPv6 address of the extra ones", []vm.NIC{nic(0, "10.0.0.80")}, "address 10.0.0.80 on network lan belongs to the extra addresses of NIC 2 of VM vm-000001"},
	} {
		v := other
		v.NICs = tt.nics
		err := s.applyErr(t.Context(), vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
		switch {
		case tt.detail == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.detail != "":
			if f := wantFault(t, err, vm.CodeInUse); !strings.Contains(f.Detail, tt.detail) {
				t.Errorf("%s: %q, want %q", tt.name, f.Detail, tt.detail)
			}
		}
		apply(t, s, vm.Change{VM: &vm.VMUpdate{From: other.State, VM: other}})
	}

	free := func(first, last string) string {
		t.Helper()
		a, err := s.FreeIP(t.Context(), "lan", netip.MustParseAddr(first), netip.MustParseAddr(last), []netip.Addr{netip.MustParseAddr("10.0.0.48")})
		if err != nil {
			wantFault(t, err, vm.CodeAddressesExhausted)
			return ""
		}
		return a.String()
	}
	for _, c := range [][3]string{
		{"10.0.0.2", "10.0.0.254", "10.0.0.2"},
		{"10.0.0.7", "10.0.0.254", "10.0.0.9"},
		{"10.0.0.31", "10.0.0.254", "10.0.0.31"},
		{"10.0.0.32", "10.0.0.254", "10.0.0.49"}, // 48 is left out by the caller
		{"10.0.0.40", "10.0.0.47", ""},
		{"10.0.0.80", "10.0.0.254", "10.0.0.96"}, // of the IPv6 range
	} {
		if got := free(c[0], c[1]); got != c[2] {
			t.Errorf("the lowest free address from %s to %s is %q, want %q", c[0], c[1], got, c[2])
		}
	}
	reserved := func() int {
		t.Helper()
		n, err := s.ReservedIPs(t.Context(), "lan", netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.254"))
		must(t, err)
		return n
	}
	if n := reserved(); n != 32 {
		t.Errorf("%d addresses are reserved, want 32", n)
	}
	owner.NICs = []vm.NIC{nic(2, "10.0.0.33", "10.0.0.32/28", "10.0.0.240/28")} // the last one is the broadcast address
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: owner.State, VM: owner}})
	if n := reserved(); n != 30 {
		t.Errorf("%d addresses are reserved, want 30", n)
	}
	apply(t, s, vm.Change{DeleteVM: owner.ID})
	if n := reserved(); n != 0 {
		t.Errorf("%d addresses are reserved after the deletion of the VM", n)
	}
}
