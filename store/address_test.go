package store

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vmand/vm"
)

func TestTwoNICsCannotHaveOneAddress(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	makeNetwork(t, s, "dmz")
	owner := withNICs(1, makeNIC(2, "lan", "10.0.0.7"))
	owner.NICs[0].IPv6 = netip.MustParseAddr("fd00::7")
	other := withNICs(2, makeNIC(0, "lan", "10.0.0.8"))
	apply(t, s, vm.Change{NewVM: &owner})
	apply(t, s, vm.Change{NewVM: &other})

	sameMAC, sameIPv6, lost := makeNIC(0, "lan", "10.0.0.9"), makeNIC(0, "lan", "10.0.0.9"),
		makeNIC(0, "none", "10.0.0.9")
	sameMAC.MAC, sameIPv6.IPv6 = owner.NICs[0].MAC, owner.NICs[0].IPv6
	twin := makeNIC(1, "lan", "10.0.0.9")
	for _, tt := range []struct {
		name   string
		nics   []vm.NIC
		code   vm.Code
		detail string
	}{
		{"the address", []vm.NIC{makeNIC(0, "lan", "10.0.0.7")}, vm.CodeInUse,
			`address 10.0.0.7 on network lan is in use by NIC 2 of VM vm-000001`},
		{"the MAC", []vm.NIC{sameMAC}, vm.CodeInUse,
			`MAC address ` + sameMAC.MAC + ` on network lan is in use by NIC 2 of VM vm-000001`},
		{"the IPv6 address", []vm.NIC{sameIPv6}, vm.CodeInUse,
			`address fd00::7 on network lan is in use by NIC 2 of VM vm-000001`},
		{"the second NIC", []vm.NIC{makeNIC(0, "dmz", "10.0.0.7"), makeNIC(1, "lan", "10.0.0.7")}, vm.CodeInUse,
			`address 10.0.0.7 on network lan`},
		{"twice in one VM", []vm.NIC{makeNIC(0, "lan", "10.0.0.9"), twin}, vm.CodeInUse,
			"address 10.0.0.9 on network lan is in use by NIC 0 of VM "},
		{"no such network", []vm.NIC{lost}, vm.CodeNotFound, `network "none" not found`},
		{"two in a slot", []vm.NIC{makeNIC(0, "lan", "10.0.0.9"), makeNIC(0, "lan", "10.0.0.10")}, "",
			"constraint failed"},
	} {
		v, u := withNICs(3, tt.nics...), other
		u.NICs = tt.nics
		for _, c := range []vm.Change{{NewVM: &v}, {VM: &vm.VMUpdate{From: u.State, VM: u}}} {
			err := s.applyErr(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), tt.detail) {
				t.Errorf("%s: got %v; want %q in it", tt.name, err, tt.detail)
				continue
			}
			if tt.code != "" {
				wantFault(t, err, tt.code)
			} else if errors.As(err, new(*vm.Fault)) {
				t.Errorf("%s: got the fault %v; want an error of no class", tt.name, err)
			}
		}
	}
	if _, err := s.VM(t.Context(), makeVM(3).ID); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("the refused VM exists: %v", err)
	}
	if got := s.mustVM(t, other.ID); !reflect.DeepEqual(got.NICs, other.NICs) {
		t.Errorf("the NICs are %+v; want them unchanged", got.NICs)
	}
	elsewhere := withNICs(3, makeNIC(0, "dmz", "10.0.0.7"))
	elsewhere.NICs[0].MAC = owner.NICs[0].MAC
	apply(t, s, vm.Change{NewVM: &elsewhere})
}

func TestNICsOfOneVMMaySwapAddresses(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	v := withNICs(1, makeNIC(0, "lan", "10.0.0.7"), makeNIC(1, "lan", "10.0.0.8"))
	apply(t, s, vm.Change{NewVM: &v})
	v.NICs = []vm.NIC{makeNIC(0, "lan", "10.0.0.8"), makeNIC(1, "lan", "10.0.0.7")}
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	if l, err := s.LeaseByIP(t.Context(), "lan", netip.MustParseAddr("10.0.0.7")); err != nil || l.Slot != 1 {
		t.Errorf("10.0.0.7 belongs to %+v, %v; want NIC 1", l, err)
	}
	v.NICs = v.NICs[:1] // the address of the removed NIC is free
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	w := withNICs(2, makeNIC(0, "lan", "10.0.0.7"))
	apply(t, s, vm.Change{NewVM: &w})
	apply(t, s, vm.Change{DeleteVM: v.ID})
	if leases, err := s.Leases(t.Context(), "lan"); err != nil || len(leases) != 1 || leases[0].VMID != w.ID {
		t.Errorf("the leases are %+v, %v; want the lease of the remaining VM", leases, err)
	}
}

func TestUserModeNICsShareOneAddress(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	for i, mode := range []vm.NetworkMode{vm.NetworkUser, vm.NetworkUser, vm.NetworkBridge} {
		v := withNICs(i, makeNIC(0, "lan", "10.0.2.15"))
		v.NICs[0].Mode, v.NICs[0].MAC = mode, vm.MACOf(v.UUID, 0)
		apply(t, s, vm.Change{NewVM: &v})
	}
	leases, err := s.Leases(t.Context(), "lan")
	if err != nil || len(leases) != 3 || leases[0].IP.IsValid() || leases[0].VMID != "vm-000000" ||
		leases[2].VMID != "vm-000002" {
		t.Errorf("the leases are %+v, %v; want three without an address, by VM", leases, err)
	}
	_, err = s.LeaseByIP(t.Context(), "lan", netip.MustParseAddr("10.0.2.15"))
	wantFault(t, err, vm.CodeNotFound)
}

func TestIndexesAreRewrittenOnlyWhenTheirSourceChanges(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	v := withNICs(0, makeNIC(0, "lan", "10.0.0.7"))
	v.Forwards = []vm.PortForward{makeForward("pf-a", vm.TCP, "0.0.0.0:80")}
	apply(t, s, vm.Change{NewVM: &v})
	written := func() (n int) {
		must(t, s.reader.Get(&n, `SELECT (SELECT count(*) FROM vm_addresses) + (SELECT count(*) FROM vm_host_ports)`))
		return n
	}
	_, err := s.writer.Exec(`DELETE FROM vm_addresses; DELETE FROM vm_host_ports`) // to detect a rewrite
	must(t, err)
	v.Description = "changed"
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	if n := written(); n != 0 {
		t.Errorf("%d rows are rewritten although their source did not change; want 0", n)
	}
	v.NICs[0].LinkDown = true
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	v.Forwards[0].GuestPort++
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	if n := written(); n != 2 {
		t.Errorf("%d rows are rewritten; want 2", n)
	}
}

func TestOneOfManyConcurrentVMsGetsAnAddress(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	var won atomic.Int32
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			v := withNICs(i, makeNIC(0, "lan", "10.0.0.7"))
			v.NICs[0].MAC = vm.MACOf(v.UUID, 0)
			v.Forwards = []vm.PortForward{makeForward("pf-a", vm.TCP, fmt.Sprintf("127.0.0.1:%d", i+1))}
			err := s.applyErr(t.Context(), vm.Change{NewVM: &v})
			var f *vm.Fault
			switch {
			case err == nil:
				won.Add(1)
			case !errors.As(err, &f) || f.Code != vm.CodeInUse || !strings.Contains(f.Detail, "10.0.0.7"):
				t.Errorf("a refused caller got %v; want a fault of code in-use", err)
			}
		})
	}
	all.Wait()
	vms, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{})
	must(t, err)
	leases, err := s.Leases(t.Context(), "lan")
	must(t, err)
	var ports int
	must(t, s.reader.Get(&ports, `SELECT count(*) FROM vm_host_ports`))
	if won.Load() != 1 || len(vms) != 1 || len(leases) != 1 || ports != 1 {
		t.Errorf("%d succeeded, there are %d VMs, %d leases and %d ports; want one of each", won.Load(), len(vms),
			len(leases), ports)
	}
}

func TestLeasesAreFoundByMACNameAndAddress(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	makeNetwork(t, s, "dmz")
	v := withNICs(0, makeNIC(0, "dmz", "10.0.0.20"), makeNIC(5, "lan", "10.0.0.200"), makeNIC(3, "lan", "10.0.0.30"))
	v.NICs[1].IPv6 = netip.MustParseAddr("fd00::c8")
	w := withNICs(1, makeNIC(0, "lan", "9.255.255.255"))
	apply(t, s, vm.Change{NewVM: &v})
	apply(t, s, vm.Change{NewVM: &w})
	lease := func(v vm.VM, i int) vm.Lease {
		n := v.NICs[i]
		return vm.Lease{Network: n.Network, VMID: v.ID, Slot: n.Slot, MAC: n.MAC, IP: n.IP, IPv6: n.IPv6, Hostname: v.ID}
	}
	leases, err := s.Leases(t.Context(), "lan")
	if want := []vm.Lease{lease(w, 0), lease(v, 2), lease(v, 1)}; err != nil || !reflect.DeepEqual(leases, want) {
		t.Errorf("the leases are %+v, %v; want them in the order of their addresses: %+v", leases, err, want)
	}
	if leases, err := s.Leases(t.Context(), "none"); err != nil || leases == nil || len(leases) != 0 {
		t.Errorf("on an unknown network: leases %+v, %v; want an empty list", leases, err)
	}
	addr := netip.MustParseAddr
	type find func() (vm.Lease, error)
	byMAC := func(network, mac string) find {
		return func() (vm.Lease, error) { return s.LeaseByMAC(t.Context(), network, mac) }
	}
	byName := func(network, name string) find {
		return func() (vm.Lease, error) { return s.LeaseByName(t.Context(), network, name) }
	}
	byIP := func(network string, ip netip.Addr) find {
		return func() (vm.Lease, error) { return s.LeaseByIP(t.Context(), network, ip) }
	}
	for name, tt := range map[string]struct {
		find find
		want vm.Lease // zero: not found
	}{
		"a MAC":                       {byMAC("lan", v.NICs[1].MAC), lease(v, 1)},
		"a MAC of another network":    {byMAC("dmz", v.NICs[1].MAC), vm.Lease{}},
		"no MAC":                      {byMAC("lan", ""), vm.Lease{}},
		"a name, of the lowest slot":  {byName("lan", v.ID), lease(v, 2)},
		"a name on another network":   {byName("dmz", v.ID), lease(v, 0)},
		"an unknown name":             {byName("dmz", w.ID), vm.Lease{}},
		"an address":                  {byIP("lan", addr("10.0.0.200")), lease(v, 1)},
		"an address in IPv6":          {byIP("lan", addr("::ffff:10.0.0.30")), lease(v, 2)},
		"an IPv6 address":             {byIP("lan", addr("fd00::c8")), lease(v, 1)},
		"an IPv6 address with a zone": {byIP("lan", addr("fd00::c8%eth0")), lease(v, 1)},
		"an address of another":       {byIP("dmz", addr("10.0.0.200")), vm.Lease{}},
		"an unused address":           {byIP("lan", addr("10.0.0.201")), vm.Lease{}},
		"an unused IPv6 address":      {byIP("lan", addr("fd00::1")), vm.Lease{}},
		"no address":                  {byIP("lan", netip.Addr{}), vm.Lease{}},
	} {
		got, err := tt.find()
		if got != tt.want || (err == nil) != (tt.want != vm.Lease{}) {
			t.Errorf("%s: found %+v, %v; want %+v", name, got, err, tt.want)
		}
		if err != nil && (!errors.Is(err, vm.ErrNotFound) || !strings.HasPrefix(err.Error(), "lease ")) {
			t.Errorf("%s: got %v; want the fault that the lease does not exist", name, err)
		}
	}
}

func TestALeaseIsFoundWithOneIndexLookup(t *testing.T) {
	s := open(t)
	for query, index := range map[string]string{
		leaseByMAC:  "USING INDEX vm_addresses_mac (network=? AND mac=?)",
		leaseByIP:   "USING INDEX vm_addresses_ip (network=? AND ip=?)",
		leaseByIPv6: "USING INDEX vm_addresses_ipv6 (network=? AND ipv6=?)",
		leaseByName: "USING PRIMARY KEY (vm_id=?)",
	} {
		if plan := planOf(t, s, query); len(plan) != 1 || !strings.Contains(plan[0], index) {
			t.Errorf("%s: the plan is %q; want %s alone", query, plan, index)
		}
	}
}

func TestTheLowestFreeAddressIsFound(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	makeNetwork(t, s, "dmz")
	for i, last := range []int{2, 3, 4, 6, 7, 10} {
		v := withNICs(i, makeNIC(0, "lan", fmt.Sprint("10.0.0.", last)))
		apply(t, s, vm.Change{NewVM: &v})
	}
	for _, tt := range []struct {
		network     string
		first, last int
		except      []int
		want        int // 0: none
		detail      string
	}{
		{"lan", 1, 254, nil, 1, ""},
		{"lan", 1, 254, []int{1}, 5, ""},
		{"lan", 2, 254, nil, 5, ""},
		{"lan", 3, 254, nil, 5, ""},
		{"lan", 4, 254, []int{5}, 8, ""},
		{"lan", 4, 254, []int{9, 5, 8, 5}, 11, ""},
		{"lan", 5, 254, nil, 5, ""},
		{"lan", 10, 254, nil, 11, ""},
		{"lan", 6, 8, nil, 8, ""},
		{"lan", 8, 8, nil, 8, ""},
		{"lan", 2, 4, nil, 0, `network lan has no free address: all 3 from 10.0.0.2 to 10.0.0.4 are taken`},
		{"lan", 2, 5, []int{5, 5, 200}, 0, "all 3 from 10.0.0.2 to 10.0.0.5 are taken"},
		{"lan", 10, 10, nil, 0, "all 1 from"},
		{"lan", 20, 19, nil, 0, "all 0 from"},
		{"dmz", 2, 4, nil, 2, ""},
		{"dmz", 2, 4, []int{2, 3}, 4, ""},
	} {
		ip := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
		var except []netip.Addr
		for _, i := range tt.except {
			except = append(except, ip(i))
		}
		got, err := s.FreeIP(t.Context(), tt.network, ip(tt.first), ip(tt.last), except)
		if tt.want != 0 {
			if err != nil || got != ip(tt.want) {
				t.Errorf("%+v: got %s, %v", tt, got, err)
			}
			continue
		}
		if f := wantFault(t, err, vm.CodeAddressesExhausted); got.IsValid() ||
			!strings.Contains(f.Detail, tt.detail) || f.Hint == "" {
			t.Errorf("%+v: got %s, %q, hint %q", tt, got, f.Detail, f.Hint)
		}
	}
	end := netip.MustParseAddr("255.255.255.255")
	if got, err := s.FreeIP(t.Context(), "lan", end, end, nil); err != nil || got != end {
		t.Errorf("the last IPv4 address: got %s, %v; want it to be free", got, err)
	}
	_, err := s.FreeIP(t.Context(), "lan", end, end, []netip.Addr{end})
	wantFault(t, err, vm.CodeAddressesExhausted)
	if _, err := s.FreeIP(t.Context(), "lan", netip.MustParseAddr("fd00::1"), end, nil); err == nil ||
		errors.As(err, new(*vm.Fault)) {
		t.Errorf("a range of IPv6: %v; want an error of no class", err)
	}
}

func TestAFreeAddressAmongManyIsFound(t *testing.T) {
	const n = 6_000
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	v := makeVM(0)
	apply(t, s, vm.Change{NewVM: &v})
	must(t, s.write(t.Context(), func(tx *transaction) error {
		_, err := tx.Exec(`WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ? - 1)
			INSERT INTO vm_addresses (vm_id, slot, network, mac, ip) SELECT ?, i, 'lan', i, ? + i FROM n`, n, v.ID, ipv4(crowdedIP(0)))
		return err
	}))
	for _, hole := range []int{0, 1, n/2 - 1, n / 2, n - 1, n} {
		for i := range 2 { // before and after the hole is made
			got, err := s.FreeIP(t.Context(), "lan", crowdedIP(0), netip.MustParseAddr("10.0.255.254"), nil)
			if want := []netip.Addr{crowdedIP(n), crowdedIP(hole)}[i]; err != nil || got != want {
				t.Fatalf("hole %d: got %s, %v; want %s", hole, got, err, want)
			}
			set := []any{ipv4(crowdedIP(hole)), ipv4(netip.MustParseAddr("10.1.0.0"))} // outside the range
			if i == 1 {
				set[0], set[1] = set[1], set[0]
			}
			_, err = s.writer.Exec(`UPDATE vm_addresses SET ip = ?2 WHERE ip = ?1`, set...)
			must(t, err)
		}
	}
	last := crowdedIP(n - 1)
	_, err := s.FreeIP(t.Context(), "lan", crowdedIP(0), last, nil)
	if f := wantFault(t, err, vm.CodeAddressesExhausted); !strings.Contains(f.Detail,
		"all 6000 from 10.0.0.1 to "+last.String()) {
		t.Errorf("the detail is %q", f.Detail)
	}
}
