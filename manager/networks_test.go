package manager_test

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"vmand/vm"
)

func (w *world) vm(id string) vm.VM {
	w.t.Helper()
	v, err := w.store.VM(w.t.Context(), id)
	must(w.t)(err)
	return v
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestAddressIsAssignedAtCreation(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.create("b")
	for id, want := range map[string]string{"a": "192.168.100.2", "b": "192.168.100.3"} {
		v := w.vm(id)
		if ip, source := v.LocalIP(); ip != addr(want) || source != vm.SourceAssigned || !v.ReachableFromHost() {
			t.Errorf("VM %s has %s (%s), want %s", id, ip, source, want)
		}
		if v.NICs[0].MAC != vm.MACOf(v.UUID, 0) {
			t.Errorf("MAC %s", v.NICs[0].MAC)
		}
	}
	must(t)(w.VMs.Delete(t.Context(), "a", nil, false))
	w.create("c")
	c := w.vm("c")
	if ip, _ := c.LocalIP(); ip != addr("192.168.100.2") {
		t.Errorf("address %s, want the lowest free one, 192.168.100.2", ip)
	}
}

func TestDeclinedAddressIsNotAssigned(t *testing.T) {
	w := newWorld(t)
	w.network.SetDeclined(addr("192.168.100.2"))
	w.create("a")
	v := w.vm("a")
	if ip, _ := v.LocalIP(); ip != addr("192.168.100.3") {
		t.Errorf("address %s, want 192.168.100.3, because another machine uses 192.168.100.2", ip)
	}
}

func TestConcurrentCreationsGetDistinctAddresses(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "vm-" + string(rune('a'+i%26)) + string(rune('a'+i/26)), Template: "small"}))
		})
	}
	wg.Wait()
	leases, err := w.store.Leases(t.Context(), vm.DefaultNetwork)
	must(t)(err)
	for i, l := range leases {
		if want := netip.AddrFrom4([4]byte{192, 168, 100, byte(i + 2)}); l.IP != want {
			t.Errorf("lease %d is %s, want %s", i, l.IP, want)
		}
	}
	if len(leases) != 40 {
		t.Errorf("%d leases", len(leases))
	}
}

func TestInvalidAddressesAndNICsAreRefused(t *testing.T) {
	w := newWorld(t)
	must(t)(w.Networks.Create(t.Context(), vm.Network{Name: "tiny", Mode: vm.NetworkIsolated, Subnet: prefix("10.9.9.0/29")}))
	must(t)(w.Networks.Create(t.Context(), vm.Network{Name: "lan", Mode: vm.NetworkBridge, Bridge: "br0"}))
	for i := range 5 {
		must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "t" + string(rune('0'+i)), Template: "small", NICs: &[]vm.NewNIC{{Network: "tiny"}}}))
	}
	tests := map[string]struct {
		nic  vm.NewNIC
		code vm.Code
		says string
	}{
		"exhausted":         {vm.NewNIC{Network: "tiny"}, vm.CodeAddressesExhausted, "tiny"},
		"taken":             {vm.NewNIC{Network: "tiny", IP: addr("10.9.9.3")}, vm.CodeInUse, "10.9.9.3"},
		"the gateway":       {vm.NewNIC{Network: "tiny", IP: addr("10.9.9.1")}, vm.CodeInvalid, "/nics/0/ip"},
		"the broadcast":     {vm.NewNIC{Network: "tiny", IP: addr("10.9.9.7")}, vm.CodeInvalid, "/nics/0/ip"},
		"outside":           {vm.NewNIC{Network: "tiny", IP: addr("10.9.8.2")}, vm.CodeInvalid, "/nics/0/ip"},
		"unmanaged network": {vm.NewNIC{Network: "lan", IP: addr("10.0.0.2")}, vm.CodeInvalid, "/nics/0/ip"},
		"unknown network":   {vm.NewNIC{Network: "none"}, vm.CodeInvalid, "/nics/0/network"},
		"a group address":   {vm.NewNIC{MAC: "01:00:5e:00:00:01"}, vm.CodeInvalid, "/nics/0/mac"},
		"no MAC":            {vm.NewNIC{MAC: "52:54"}, vm.CodeInvalid, "/nics/0/mac"},
		"an unknown model":  {vm.NewNIC{Model: "ne2k"}, vm.CodeInvalid, "/nics/0/model"},
		"a negative rate":   {vm.NewNIC{RateOut: -1}, vm.CodeInvalid, "/nics/0/rate_out"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := w.VMs.Create(t.Context(), vm.NewVM{ID: "x", Template: "small", NICs: &[]vm.NewNIC{tt.nic}})
			wantCode(t, err, tt.code, tt.says)
		})
	}
	_, err := w.VMs.Create(t.Context(), vm.NewVM{ID: "x", Template: "small", NICs: &[]vm.NewNIC{{}, {}, {}, {}, {}, {}, {}, {}, {}}})
	wantCode(t, err, vm.CodeInvalid, "/nics")
	// What was refused has taken no address.
	must(t)(w.VMs.Delete(t.Context(), "t3", nil, false))
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "x", Template: "small", NICs: &[]vm.NewNIC{{Network: "tiny", IP: addr("10.9.9.5")}}}))
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "y", Template: "small", NICs: &[]vm.NewNIC{}}))
	y := w.vm("y")
	if ip, source := y.LocalIP(); ip.IsValid() || source != "" || y.ReachableFromHost() {
		t.Errorf("a VM without NICs has %s (%s)", ip, source)
	}
}

func TestInvalidNetworksAreRefused(t *testing.T) {
	w := newWorld(t)
	tests := map[string]struct {
		n    vm.Network
		code vm.Code
		says string
	}{
		"a long name":          {vm.Network{Name: "a234567890123456", Mode: vm.NetworkNAT}, vm.CodeInvalid, "/name"},
		"the kernel name all":  {vm.Network{Name: "all", Mode: vm.NetworkNAT}, vm.CodeInvalid, "/name"},
		"kernel name default":  {vm.Network{Name: "default", Mode: vm.NetworkUser}, vm.CodeInvalid, "/name"},
		"no mode":              {vm.Network{Name: "n"}, vm.CodeInvalid, "/mode"},
		"an existing name":     {vm.Network{Name: vm.DefaultNetwork, Mode: vm.NetworkNAT}, vm.CodeExists, vm.DefaultNetwork},
		"a used subnet":        {vm.Network{Name: "n", Mode: vm.NetworkNAT, Subnet: prefix("192.168.0.0/16")}, vm.CodeInUse, "/subnet"},
		"a huge subnet":        {vm.Network{Name: "n", Mode: vm.NetworkNAT, Subnet: prefix("10.0.0.0/8")}, vm.CodeInvalid, "/subnet"},
		"a tiny subnet":        {vm.Network{Name: "n", Mode: vm.NetworkNAT, Subnet: prefix("10.0.0.0/30")}, vm.CodeInvalid, "/subnet"},
		"host bits":            {vm.Network{Name: "n", Mode: vm.NetworkNAT, Subnet: prefix("10.0.0.1/24")}, vm.CodeInvalid, "/subnet"},
		"multicast":            {vm.Network{Name: "n", Mode: vm.NetworkNAT, Subnet: prefix("224.0.1.0/24")}, vm.CodeInvalid, "/subnet"},
		"an outside gateway":   {vm.Network{Name: "n", Mode: vm.NetworkNAT, Subnet: prefix("10.0.0.0/24"), Gateway: addr("10.0.1.1")}, vm.CodeInvalid, "/gateway"},
		"IPv6 of another size": {vm.Network{Name: "n", Mode: vm.NetworkNAT, IPv6: prefix("fd00::/48")}, vm.CodeInvalid, "/ipv6_subnet"},
		"no bridge":            {vm.Network{Name: "n", Mode: vm.NetworkBridge}, vm.CodeInvalid, "/bridge"},
		"nat with a bridge":    {vm.Network{Name: "n", Mode: vm.NetworkNAT, Bridge: "br0"}, vm.CodeInvalid, "/bridge"},
		"a bridge with subnet": {vm.Network{Name: "n", Mode: vm.NetworkBridge, Bridge: "br0", Subnet: prefix("10.0.0.0/24")}, vm.CodeInvalid, "/subnet"},
		"nat with a VLAN":      {vm.Network{Name: "n", Mode: vm.NetworkNAT, VLAN: 7}, vm.CodeInvalid, "/vlan_id"},
		"a VLAN too high":      {vm.Network{Name: "n", Mode: vm.NetworkBridge, Bridge: "br0", VLAN: 4095}, vm.CodeInvalid, "/vlan_id"},
		"a small MTU":          {vm.Network{Name: "n", Mode: vm.NetworkNAT, MTU: 100}, vm.CodeInvalid, "/mtu"},
		"no domain":            {vm.Network{Name: "n", Mode: vm.NetworkNAT, Domain: "not a domain"}, vm.CodeInvalid, "/domain"},
		"no server":            {vm.Network{Name: "n", Mode: vm.NetworkNAT, DNS: []netip.Addr{addr("0.0.0.0")}}, vm.CodeInvalid, "/dns"},
		"an outside next hop":  {vm.Network{Name: "n", Mode: vm.NetworkNAT, Subnet: prefix("10.0.0.0/24"), Routes: []vm.Route{{Destination: prefix("10.1.0.0/16"), Gateway: addr("10.2.0.1")}}}, vm.CodeInvalid, "/routes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := w.Networks.Create(t.Context(), tt.n)
			wantCode(t, err, tt.code, tt.says)
		})
	}
	if calls := w.network.Calls(); !slices.Equal(calls, []string{"Admit vman0", "Up vman0"}) {
		t.Errorf("calls of the host network %v", calls)
	}
}

func TestNetworkLifecycle(t *testing.T) {
	w := newWorld(t)
	n, err := w.Networks.Create(t.Context(), vm.Network{Name: "lab", Mode: vm.NetworkIsolated, IPv6: prefix("fd00:1:2:3::/64")})
	must(t)(err)
	if n.Subnet != prefix("10.0.0.0/24") || n.Gateway != addr("10.0.0.1") || n.Domain != "lab.internal" || n.Bridge != "lab" {
		t.Errorf("created network %+v", n)
	}
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small", NICs: &[]vm.NewNIC{{Network: "lab"}}}))
	if got := w.vm("a").NICs[0]; got.IP != addr("10.0.0.2") || got.IPv6 != addr("fd00:1:2:3::2") {
		t.Errorf("NIC %+v", got)
	}
	_, err = w.Networks.Update(t.Context(), "lab", vm.NetworkEdits{Subnet: ptr(prefix("10.5.0.0/24"))}, nil)
	wantCode(t, err, vm.CodeInUse, "VMs such as a")
	n, err = w.Networks.Update(t.Context(), "lab", vm.NetworkEdits{Domain: ptr("lab.example.org"), MTU: ptr(1400)}, nil)
	must(t)(err)
	if n.Domain != "lab.example.org" || n.MTU != 1400 || n.Revision != 2 {
		t.Errorf("updated network %+v", n)
	}
	_, err = w.Networks.Update(t.Context(), "lab", vm.NetworkEdits{MTU: ptr(1400)}, vm.Match{{Seq: n.Seq, Revision: 1}})
	wantCode(t, err, vm.CodePrecondition)
	r, err := w.Networks.Status(t.Context(), "lab")
	must(t)(err)
	if r.Free != 252 || len(r.Leases) != 1 {
		t.Errorf("report %+v", r)
	}
	wantCode(t, w.Networks.Delete(t.Context(), "lab", nil), vm.CodeInUse, "in use by 1 VM")
	must(t)(w.VMs.Delete(t.Context(), "a", nil, false))
	must(t)(w.Networks.Delete(t.Context(), "lab", nil))
	_, err = w.Networks.Status(t.Context(), "lab")
	wantCode(t, err, vm.CodeNotFound)
	if calls := w.network.Calls(); !slices.Contains(calls, "Down lab") {
		t.Errorf("calls of the host network %v", calls)
	}
}

func TestFailedCreationLeavesNoNetwork(t *testing.T) {
	w := newWorld(t)
	w.network.Hook = func(_ context.Context, method, name string) error {
		if method == "Up" {
			return &vm.Fault{Code: vm.CodeNetworkUnavailable, Detail: "no bridges here"}
		}
		return nil
	}
	_, err := w.Networks.Create(t.Context(), vm.Network{Name: "lab", Mode: vm.NetworkNAT})
	wantCode(t, err, vm.CodeNetworkUnavailable, "no bridges")
	_, err = w.Networks.Status(t.Context(), "lab")
	wantCode(t, err, vm.CodeNotFound)
	if calls := w.network.Calls(); calls[len(calls)-1] != "Down lab" {
		t.Errorf("calls of the host network %v", calls)
	}
}

func TestASettingThatRunningVMsDoNotFollowNeedsForce(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	update := func(e vm.NetworkEdits) error {
		_, err := w.Networks.Update(t.Context(), vm.DefaultNetwork, e, nil)
		return err
	}
	must(t)(update(vm.NetworkEdits{MTU: ptr(9000)})) // the VM does not run
	w.do("a", vm.OpStart)
	before := len(w.network.Calls())
	err := update(vm.NetworkEdits{MTU: ptr(1400)})
	wantCode(t, err, vm.CodeInUse, "/mtu of network vman0 cannot change while 1 VMs such as a run on it")
	if calls := w.network.Calls(); len(calls) != before {
		t.Errorf("the host was asked for %v", calls[before:])
	}
	if n, err := w.store.Network(t.Context(), vm.DefaultNetwork); err != nil || n.MTU != 9000 {
		t.Errorf("the network has the MTU %d, %v; want 9000", n.MTU, err)
	}
	must(t)(update(vm.NetworkEdits{MTU: ptr(9000), Domain: ptr("other.internal")}))
	w.do("a", vm.OpPause)
	wantCode(t, update(vm.NetworkEdits{MTU: ptr(1500)}), vm.CodeInUse)
	must(t)(update(vm.NetworkEdits{MTU: ptr(1500), Force: true}))
	w.do("a", vm.OpStop)
	must(t)(update(vm.NetworkEdits{MTU: ptr(1400)}))
}

func TestDefaultNetworkIsCreatedOnce(t *testing.T) {
	w := newWorld(t)
	must(t)(w.Networks.Delete(t.Context(), vm.DefaultNetwork, nil))
	must(t)(w.Networks.Prepare(t.Context()))
	n, err := w.store.Network(t.Context(), vm.DefaultNetwork)
	must(t)(err)
	if n.Mode != vm.NetworkNAT || n.Subnet != prefix("192.168.100.0/24") {
		t.Errorf("created network %+v", n)
	}
	must(t)(w.Networks.Delete(t.Context(), vm.DefaultNetwork, nil))
	must(t)(w.Networks.Prepare(t.Context()))
	_, err = w.store.Network(t.Context(), vm.DefaultNetwork)
	wantCode(t, err, vm.CodeNotFound)
	_, err = w.VMs.Create(t.Context(), vm.NewVM{ID: "x", Template: "small"})
	wantCode(t, err, vm.CodeInvalid, "/nics/0/network")
}

func TestWithoutPrivilegeTheDefaultNetworkIsOfModeUser(t *testing.T) {
	w := newWorld(t)
	must(t)(w.Networks.Delete(t.Context(), vm.DefaultNetwork, nil))
	w.network.Hook = func(_ context.Context, method, name string) error {
		if method == "Check" && name == string(vm.NetworkNAT) {
			return &vm.Fault{Code: vm.CodeNetworkUnavailable, Detail: "not root"}
		}
		return nil
	}
	must(t)(w.Networks.Prepare(t.Context()))
	w.create("a")
	v := w.vm("a")
	if ip, source := v.LocalIP(); ip != addr("10.0.2.15") || source != vm.SourceAssigned || v.ReachableFromHost() {
		t.Errorf("the VM has %s (%s)", ip, source)
	}
}

func TestBootMarks(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	v := w.vm("a")
	if v.Boot.Spawned.IsZero() || !v.Boot.DHCP.IsZero() {
		t.Errorf("boot marks after the start: %+v", v.Boot)
	}
	at := time.Now().UTC().Truncate(time.Millisecond)
	got := make(chan error, 1)
	go func() {
		_, err := w.VMs.Await(t.Context(), "a", vm.Condition{IP: true})
		got <- err
	}()
	w.Guests.Mark("a", vm.BootDHCP, at)
	must(t)(<-got)
	w.Guests.Mark("a", vm.BootDHCP, at.Add(time.Hour)) // a renewed lease
	must(t)(w.VMs.Await(t.Context(), "a", vm.Condition{Port: 22}))
	v = w.vm("a")
	if !v.Boot.DHCP.Equal(at) || v.Boot.TCP.IsZero() {
		t.Errorf("boot marks %+v", v.Boot)
	}
	w.do("a", vm.OpStop)
	_, err := w.VMs.Await(t.Context(), "a", vm.Condition{IP: true})
	wantCode(t, err, vm.CodeState, "VM a is not running")
	w.do("a", vm.OpStart)
	if v = w.vm("a"); !v.Boot.DHCP.IsZero() || v.Boot.Spawned.IsZero() {
		t.Errorf("a new run has boot marks of the old one: %+v", v.Boot)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	stop(context.DeadlineExceeded)
	if _, err := w.VMs.Await(ctx, "a", vm.Condition{IP: true}); err != context.DeadlineExceeded {
		t.Errorf("Await returns %v", err)
	}
	for _, s := range []string{"", "ip ", "port:", "port:0", "port:65536", "port:+1", "port:022", "agents", "cloud-init:1"} {
		_, err := vm.ParseCondition(s)
		wantCode(t, err, vm.CodeInvalid, "wait_for")
	}
}

func ptr[T any](v T) *T { return &v }

// TestStartReturnsTheRecordedVM compares the VM that a start returns with the record while
// the start runs: a client names that version in its next request.
func TestStartReturnsTheRecordedVM(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	for range 2 { // the second start must reset the boot marks
		reached, release := w.blockOn("Start")
		returned, op, err := w.VMs.Do(t.Context(), "a", vm.OpStart, vm.StopOptions{})
		must(t)(err)
		<-reached
		if v := w.vm("a"); v.Revision != returned.Revision || v.State != returned.State || v.Boot != returned.Boot {
			t.Errorf("returned %s, revision %d, %+v; recorded %s, revision %d, %+v",
				returned.State, returned.Revision, returned.Boot, v.State, v.Revision, v.Boot)
		}
		release()
		must(t)(w.Operations.Wait(t.Context(), op.ID))
		w.driver.Hook = nil
		w.do("a", vm.OpStop)
	}
}

// TestForwardersMustNotFormALoop checks that no network forwards DNS queries to another one.
func TestForwardersMustNotFormALoop(t *testing.T) {
	w := newWorld(t)
	to := func(server string) []vm.DNSForwarder {
		return []vm.DNSForwarder{{Domain: "corp", Servers: []netip.AddrPort{addrPort("10.9.9.9:53"), addrPort(server)}}}
	}
	lab := vm.Network{Name: "lab", Mode: vm.NetworkNAT, Subnet: prefix("10.9.8.0/24"), DNSForwarders: to("192.168.100.1:53")}
	_, err := w.Networks.Create(t.Context(), lab)
	wantCode(t, err, vm.CodeInvalid, "/dns_forwarders/0/servers/1: 192.168.100.1 is the DNS server of network vman0")
	lab.DNSForwarders = to("192.168.100.1:5353")
	must(t)(w.Networks.Create(t.Context(), lab))
	_, err = w.Networks.Update(t.Context(), vm.DefaultNetwork, vm.NetworkEdits{DNSForwarders: ptr(to("10.9.8.1:53"))}, nil)
	wantCode(t, err, vm.CodeInvalid, "/dns_forwarders/0/servers/1: 10.9.8.1 is the DNS server of network lab")
	must(t)(w.Networks.Update(t.Context(), vm.DefaultNetwork, vm.NetworkEdits{DNSForwarders: ptr(to("10.9.8.2:53"))}, nil))
	// So is a network that would get the address of a server of another network.
	_, err = w.Networks.Create(t.Context(), vm.Network{Name: "late", Mode: vm.NetworkNAT, Subnet: prefix("10.9.9.0/24"),
		Gateway: netip.MustParseAddr("10.9.9.9")})
	wantCode(t, err, vm.CodeInvalid, "/gateway: network vman0 forwards DNS queries to 10.9.9.9")
	must(t)(w.Networks.Create(t.Context(), vm.Network{Name: "late", Mode: vm.NetworkNAT, Subnet: prefix("10.9.9.0/24")}))
	_, err = w.Networks.Update(t.Context(), "late", vm.NetworkEdits{Gateway: ptr(netip.MustParseAddr("10.9.9.9"))}, nil)
	wantCode(t, err, vm.CodeInvalid, "/gateway: network vman0 forwards DNS queries to 10.9.9.9")
	// A later change of the gateway is checked too, against the forwarders of the network itself.
	_, err = w.Networks.Update(t.Context(), "lab", vm.NetworkEdits{DNSForwarders: ptr(to("10.9.8.1:53"))}, nil)
	wantCode(t, err, vm.CodeInvalid, "is the DNS server of network lab itself")
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestBootDeviceIsPassedToTheNextStart(t *testing.T) {
	w := newWorld(t)
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small", VMEdits: vm.VMEdits{BootDevice: ptr(vm.BootNetwork)}}))
	if got := w.vm("a").BootDevice; got != vm.BootNetwork {
		t.Fatalf("the boot device is %q", got)
	}
	_, err := w.VMs.Update(t.Context(), "a", vm.VMEdits{BootDevice: ptr(vm.BootDevice("floppy"))}, nil)
	wantCode(t, err, vm.CodeInvalid, "/boot_device")
	w.do("a", vm.OpStart)
	if v, err := w.VMs.Update(t.Context(), "a", vm.VMEdits{BootDevice: ptr(vm.BootDisk)}, nil); err != nil || v.BootDevice != vm.BootDisk {
		t.Errorf("changed to %q, %v", v.BootDevice, err)
	}
}
