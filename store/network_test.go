package store

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmand/vm"
)

func makeNetwork(t testing.TB, s *Store, name string) {
	t.Helper()
	apply(t, s, vm.Change{NewNetwork: &vm.Network{Name: name, Mode: vm.NetworkNAT, Bridge: name,
		Subnet: netip.MustParsePrefix("10.0.0.0/16"), Gateway: netip.MustParseAddr("10.0.0.1"), CreatedAt: at}})
}

func fullNetwork() vm.Network {
	return vm.Network{Name: "full", Mode: vm.NetworkNAT, Bridge: "full", Subnet: netip.MustParsePrefix("192.168.7.0/24"),
		Gateway: netip.MustParseAddr("192.168.7.1"), IPv6: netip.MustParsePrefix("fd00:7::/64"),
		DNS: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, NTP: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
		Routes: []vm.Route{{Destination: netip.MustParsePrefix("172.16.0.0/12"), Gateway: netip.MustParseAddr("192.168.7.9")}},
		Domain: "full.test", MTU: 1400, VLAN: 7, IsolateVMs: true, Restrict: true,
		SearchDomains: []string{"a.test", "b.test"},
		DHCPOptions: []vm.DHCPOption{
			{Code: 42, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}, {Code: 252, Text: "x", Always: true},
			{Code: 43, Hex: "0a"}, {Code: 44, UInt8: new(int64)}, {Code: 45, UInt16: new(int64)}, {Code: 46, UInt32: new(int64)},
		},
		PXE: &vm.PXE{
			BootFile:      vm.BootFile{NextServer: netip.MustParseAddr("192.0.2.3"), Filename: "a", HTTPBootURL: "http://a/"},
			Architectures: []vm.ArchitectureBoot{{Architecture: vm.BootBIOS, BootFile: vm.BootFile{Filename: "b"}}},
		},
		DNSRecords:    []vm.DNSRecord{{Name: "db", Type: vm.RecordA, Value: "192.0.2.4", TTL: 30}},
		DNSForwarders: []vm.DNSForwarder{{Domain: "corp", Servers: []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:5353")}}},
		CreatedAt:     at}
}

func TestEveryFieldOfANetworkComesBack(t *testing.T) {
	s := open(t)
	bare := vm.Network{Name: "bare", Mode: vm.NetworkBridge, Bridge: "br0", CreatedAt: at}
	var want []vm.Network
	for seq, n := range []vm.Network{fullNetwork(), bare} {
		apply(t, s, vm.Change{NewNetwork: &n})
		got, err := s.Network(t.Context(), n.Name)
		must(t, err)
		n.Seq, n.Revision, n.UpdatedAt = int64(seq+1), 1, got.UpdatedAt
		if !reflect.DeepEqual(got, n) {
			t.Errorf("read %+v; want %+v", got, n)
		}
		want = append(want, n)
	}
	list, err := s.Networks(t.Context(), vm.Page{})
	if err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("listed %+v, %v; want %+v", list, err, want)
	}
	if list, err := s.Networks(t.Context(), vm.Page{After: 1, Limit: 1}); err != nil || len(list) != 1 || list[0].Name != "bare" {
		t.Errorf("the second page is %+v, %v", list, err)
	}
}

func TestANetworkIsReplacedUnderItsName(t *testing.T) {
	s := open(t)
	makeNetwork(t, s, "full")
	before, err := s.Network(t.Context(), "full")
	must(t, err)
	n := fullNetwork()
	n.Mode, n.CreatedAt, n.Seq, n.Revision = vm.NetworkUser, at.AddDate(1, 0, 0), 99, 99
	apply(t, s, vm.Change{Network: &n})
	got, err := s.Network(t.Context(), "full")
	must(t, err)
	n.Mode, n.CreatedAt, n.Seq, n.Revision, n.UpdatedAt = before.Mode, before.CreatedAt, before.Seq, 2, got.UpdatedAt
	if !reflect.DeepEqual(got, n) || got.UpdatedAt.Before(before.UpdatedAt) {
		t.Errorf("read %+v; want %+v", got, n)
	}
	n.DNS, n.NTP, n.Routes, n.IPv6, n.Domain = []netip.Addr{}, nil, nil, netip.Prefix{}, ""
	n.SearchDomains, n.DHCPOptions, n.PXE, n.DNSRecords, n.DNSForwarders = nil, []vm.DHCPOption{}, nil, nil, nil
	apply(t, s, vm.Change{Network: &n})
	if got, err := s.Network(t.Context(), "full"); err != nil || got.DNS != nil || got.Routes != nil || got.PXE != nil || got.DHCPOptions != nil || got.IPv6.IsValid() || got.Revision != 3 {
		t.Errorf("read %+v, %v; want it without the removed values", got, err)
	}
}

func TestNetworksAreUniqueAndKeptWhileInUse(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	n := fullNetwork()
	n.Name = "lan"
	wantFault(t, s.applyErr(t.Context(), vm.Change{NewNetwork: &n}), vm.CodeExists)
	n.Name = "none"
	for _, c := range []vm.Change{{Network: &n}, {DeleteNetwork: "none"}} {
		if f := wantFault(t, s.applyErr(t.Context(), c), vm.CodeNotFound); f.Detail != `network none not found` {
			t.Errorf("the detail is %q", f.Detail)
		}
	}
	_, err := s.Network(t.Context(), "none")
	wantFault(t, err, vm.CodeNotFound)

	v, w := withNICs(0, makeNIC(0, "lan", "10.0.0.7"), makeNIC(1, "lan", "10.0.0.8")), withNICs(1, makeNIC(0, "lan", "10.0.0.9"))
	apply(t, s, vm.Change{NewVM: &v})
	apply(t, s, vm.Change{NewVM: &w})
	if f := wantFault(t, s.applyErr(t.Context(), vm.Change{DeleteNetwork: "lan"}), vm.CodeInUse); f.Detail != `network lan is in use by 2 VM(s)` {
		t.Errorf("the detail is %q; want the number of VMs in it", f.Detail)
	}
	apply(t, s, vm.Change{DeleteVM: v.ID})
	apply(t, s, vm.Change{DeleteVM: w.ID, DeleteNetwork: "lan"})
	_, err = s.Network(t.Context(), "lan")
	wantFault(t, err, vm.CodeNotFound)

	n.Name = "new"
	u := withNICs(2, makeNIC(0, "new", "10.0.0.7"))
	apply(t, s, vm.Change{NewNetwork: &n, NewVM: &u}) // in one change
}

func TestACopyHasTheNetworksAndTheirLeases(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	v := withNICs(0, makeNIC(0, "lan", "10.0.0.7"))
	v.Forwards = []vm.PortForward{makeForward("pf-a", vm.TCP, "0.0.0.0:80")}
	apply(t, s, vm.Change{NewVM: &v})
	to := filepath.Join(t.TempDir(), "copy.db")
	must(t, Copy(t.Context(), s.path, to))
	must(t, Check(t.Context(), to))
	c := openAt(t, to)
	if l, err := c.LeaseByName(t.Context(), "lan", v.ID); err != nil || l.IP != v.NICs[0].IP {
		t.Errorf("the lease is %+v, %v", l, err)
	}
	w := makeVM(1)
	w.Forwards = v.Forwards
	wantFault(t, c.applyErr(t.Context(), vm.Change{NewVM: &w}), vm.CodeInUse)
}

func TestVMsAreSelectedByNetwork(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	for _, name := range []string{"lan", "dmz", "idle"} {
		makeNetwork(t, s, name)
	}
	for i, v := range []vm.VM{
		withNICs(0, makeNIC(0, "lan", "10.0.0.7")),
		withNICs(1),
		withNICs(2, makeNIC(0, "dmz", "10.0.0.7"), makeNIC(3, "lan", "10.0.0.8"), makeNIC(4, "lan", "10.0.0.9")),
		withNICs(3, makeNIC(0, "lan", "10.0.0.10")),
	} {
		if i == 3 {
			v.State = vm.Stopped
		}
		apply(t, s, vm.Change{NewVM: &v})
	}
	for _, tt := range []struct {
		filter vm.VMFilter
		page   vm.Page
		want   string
	}{
		{vm.VMFilter{Network: "lan"}, vm.Page{}, "vm-000000 vm-000002 vm-000003"},
		{vm.VMFilter{Network: "lan"}, vm.Page{After: 1, Limit: 1}, "vm-000002"},
		{vm.VMFilter{Network: "lan", State: vm.Running, Template: "small"}, vm.Page{}, "vm-000000 vm-000002"},
		{vm.VMFilter{Network: "dmz"}, vm.Page{}, "vm-000002"},
		{vm.VMFilter{Network: "idle"}, vm.Page{}, ""},
		{vm.VMFilter{Network: "none"}, vm.Page{}, ""},
	} {
		list, err := s.VMs(t.Context(), tt.filter, tt.page)
		must(t, err)
		var ids []string
		for _, v := range list {
			ids = append(ids, v.ID)
		}
		if got := strings.Join(ids, " "); got != tt.want {
			t.Errorf("%+v of %+v selects %q; want %q", tt.page, tt.filter, got, tt.want)
		}
	}
	q := selectVMs(vm.VMFilter{Network: "lan"})
	query, _ := q.sql(vmTable.list, vm.Page{Limit: 10})
	if plan := strings.Join(planOf(t, s, query), "; "); !strings.Contains(plan, "USING PRIMARY KEY (vm_id=?)") || strings.Contains(plan, "TEMP") {
		t.Errorf("the plan is %s; want a lookup of each VM in order", plan)
	}
}
