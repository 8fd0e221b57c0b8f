package manager_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vmand/vm"
)

func TestNICLifecycle(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	for _, running := range []bool{false, true} {
		if running {
			w.do("a", vm.OpStart)
		}
		n, op, err := w.NICs.Attach(t.Context(), "a", vm.NewNIC{})
		must(t)(err)
		if n.Slot != 1 || n.State != vm.NICAttached || n.IP != addr("192.168.100.3") || op.State != vm.OpSucceeded {
			t.Errorf("running %t: attached NIC %+v, operation %+v", running, n, op)
		}
		if got := w.vm("a").NICs; len(got) != 2 || !got[1].Equal(n) {
			t.Errorf("recorded NICs or forwards %+v", got)
		}
		_, gone, _, err := w.NICs.Detach(t.Context(), "a", 1, nil)
		if err != nil || !gone || len(w.vm("a").NICs) != 1 {
			t.Errorf("running %t: gone %t, %v, %+v", running, gone, err, w.vm("a").NICs)
		}
	}
	_, _, _, err := w.NICs.Detach(t.Context(), "a", 1, nil)
	wantCode(t, err, vm.CodeNotFound)
	_, _, _, err = w.NICs.Detach(t.Context(), "a", 0, vm.Match{{Seq: 1, Revision: 1}})
	wantCode(t, err, vm.CodePrecondition)
	for range vm.MaxNICs - 1 {
		_, _, err := w.NICs.Attach(t.Context(), "a", vm.NewNIC{})
		must(t)(err)
	}
	_, _, err = w.NICs.Attach(t.Context(), "a", vm.NewNIC{})
	wantCode(t, err, vm.CodeLimitReached)
}

func TestUnreleasedNICStaysDetaching(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	w.driver.Hook = func(_ context.Context, m, _ string) error {
		if m == "DetachNIC" {
			return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "the guest has not released the device"}
		}
		return nil
	}
	n, gone, op, err := w.NICs.Detach(t.Context(), "a", 0, nil)
	if err != nil || gone || n.State != vm.NICDetaching || op.State != vm.OpFailed {
		t.Fatalf("detached: %+v, %t, %+v, %v", n, gone, op, err)
	}
	must(t)(w.Settle(t.Context(), vm.VMResource("a")))
	if got := w.vm("a").NICs; len(got) != 1 || got[0].State != vm.NICDetaching {
		t.Errorf("settled while the guest holds the NIC: %+v", got)
	}
	w.driver.Hook = nil
	if r, err := w.Settle(t.Context(), vm.VMResource("a")); err != nil || !r.Changed || len(w.vm("a").NICs) != 0 {
		t.Errorf("settled after the release: %+v, %v, %+v", r, err, w.vm("a").NICs)
	}
	// A power-off also finishes a detach.
	must(t)(w.NICs.Attach(t.Context(), "a", vm.NewNIC{}))
	w.driver.Hook = func(_ context.Context, m, _ string) error {
		if m == "DetachNIC" {
			return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "the guest has not released the device"}
		}
		return nil
	}
	must(t)(w.NICs.Detach(t.Context(), "a", 0, nil))
	w.do("a", vm.OpStop)
	if got := w.vm("a").NICs; len(got) != 0 {
		t.Errorf("stopped with %+v", got)
	}
}

func TestFailedAttachLeavesNoNIC(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	w.driver.Hook = func(_ context.Context, m, _ string) error {
		if m == "AttachNIC" {
			return &vm.Fault{Code: vm.CodeOperationFailed, Detail: "QEMU said no"}
		}
		return nil
	}
	_, _, err := w.NICs.Attach(t.Context(), "a", vm.NewNIC{})
	wantCode(t, err, vm.CodeOperationFailed, "said no")
	if got := w.vm("a").NICs; len(got) != 1 {
		t.Errorf("recorded NICs or forwards %+v", got)
	}
	w.driver.Hook = nil
	n, _, err := w.NICs.Attach(t.Context(), "a", vm.NewNIC{})
	must(t)(err)
	if n.IP != addr("192.168.100.3") {
		t.Errorf("the failed NIC keeps its address: the next NIC has %s", n.IP)
	}
}

func TestNICsAreSettledAfterAKill(t *testing.T) {
	tests := map[string]struct {
		kind    vm.Kind
		state   vm.NICState
		plugged bool
		want    int // NICs
		ended   vm.OpState
	}{
		"a finished attach":          {vm.NICAttach, vm.NICAttaching, true, 1, vm.OpSucceeded},
		"an attach before the plug":  {vm.NICAttach, vm.NICAttaching, false, 0, vm.OpFailed},
		"a finished detach":          {vm.NICDetach, vm.NICDetaching, false, 0, vm.OpSucceeded},
		"a detach before its answer": {vm.NICDetach, vm.NICDetaching, true, 0, vm.OpSucceeded},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small", NICs: &[]vm.NewNIC{}}))
			w.do("a", vm.OpStart)
			n, _, err := w.NICs.Attach(t.Context(), "a", vm.NewNIC{})
			must(t)(err)
			if !tt.plugged {
				must(t)(w.driver.DetachNIC(t.Context(), "a", 0))
			}
			v := w.vm("a")
			n.State = tt.state
			v.NICs = []vm.NIC{n}
			at := v.CreatedAt
			op := vm.Operation{ID: "op", Kind: tt.kind, Resource: vm.VMResource("a"), State: vm.OpRunning, Target: vm.Target{NIC: new(int)}, RequestedBy: "test", CreatedAt: at, StartedAt: at, Log: []vm.LogLine{}}
			must(t)(w.store.Apply(t.Context(), vm.Change{Operation: &op, VM: &vm.VMUpdate{From: vm.Running, VM: v}}))
			must(t)(w.Settle(t.Context(), vm.VMResource("a")))
			got := w.vm("a").NICs
			ended, err := w.store.Operation(t.Context(), "op")
			if err != nil || len(got) != tt.want || ended.State != tt.ended {
				t.Errorf("NICs %+v, operation %s, %v", got, ended.State, err)
			}
			if len(got) == 1 && got[0].State != vm.NICAttached {
				t.Errorf("the NIC is %s", got[0].State)
			}
		})
	}
}

func TestPortForwardLifecycle(t *testing.T) {
	w := newWorld(t)
	must(t)(w.Networks.Create(t.Context(), vm.Network{Name: "lab", Mode: vm.NetworkIsolated}))
	must(t)(w.Networks.Create(t.Context(), vm.Network{Name: "mine", Mode: vm.NetworkUser}))
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small", NICs: &[]vm.NewNIC{{}, {Network: "lab"}, {Network: "mine"}}}))
	w.create("b")
	w.do("a", vm.OpStart)
	f, err := w.Forwards.Add(t.Context(), "a", vm.PortForward{HostPort: 8080, GuestPort: 80})
	must(t)(err)
	if f.Protocol != vm.TCP || f.HostAddress.String() != "0.0.0.0" || !slices.Equal(w.vm("a").Forwards, []vm.PortForward{f}) {
		t.Errorf("added %+v", f)
	}
	for name, tt := range map[string]struct {
		vm   string
		f    vm.PortForward
		code vm.Code
		says string
	}{
		"port in use":       {"b", vm.PortForward{HostPort: 8080, GuestPort: 80}, vm.CodeInUse, "8080"},
		"overlapping port":  {"b", vm.PortForward{HostAddress: addr("127.0.0.1"), HostPort: 8080, GuestPort: 80}, vm.CodeInUse, "8080"},
		"unknown NIC":       {"b", vm.PortForward{Slot: 1, HostPort: 1, GuestPort: 80}, vm.CodeInvalid, "/nic"},
		"an isolated NIC":   {"a", vm.PortForward{Slot: 1, HostPort: 1, GuestPort: 80}, vm.CodeInvalid, "isolated"},
		"no host port":      {"b", vm.PortForward{GuestPort: 80}, vm.CodeInvalid, "/host_port"},
		"no guest port":     {"b", vm.PortForward{HostPort: 80}, vm.CodeInvalid, "/guest_port"},
		"IPv6":              {"b", vm.PortForward{HostAddress: addr("::1"), HostPort: 80, GuestPort: 80}, vm.CodeInvalid, "/host_address"},
		"no IPv6 address":   {"b", vm.PortForward{HostAddress: addr("::"), HostPort: 80, GuestPort: 80}, vm.CodeInvalid, "ipv6_subnet"},
		"IPv6, mode user":   {"a", vm.PortForward{Slot: 2, HostAddress: addr("::"), HostPort: 80, GuestPort: 80}, vm.CodeInvalid, "IPv4 only"},
		"a long range":      {"b", vm.PortForward{HostPort: 80, GuestPort: 80, Ports: 1001}, vm.CodeInvalid, "/ports"},
		"a late range":      {"b", vm.PortForward{HostPort: 65530, GuestPort: 80, Ports: 10}, vm.CodeInvalid, "/ports"},
		"a port in a range": {"b", vm.PortForward{HostPort: 8000, GuestPort: 80, Ports: 100}, vm.CodeInUse, "8080"},
		"many of mode user": {"a", vm.PortForward{Slot: 2, HostPort: 80, GuestPort: 80, Ports: 257}, vm.CodeLimitReached, "257 forwarded ports"},
		"another protocol":  {"b", vm.PortForward{Protocol: "sctp", HostPort: 80, GuestPort: 80}, vm.CodeInvalid, "/protocol"},
	} {
		_, err := w.Forwards.Add(t.Context(), tt.vm, tt.f)
		if err == nil {
			t.Errorf("%s: the forward was accepted", name)
			continue
		}
		wantCode(t, err, tt.code, tt.says)
	}
	must(t)(w.Forwards.Add(t.Context(), "b", vm.PortForward{Protocol: vm.UDP, HostPort: 8080, GuestPort: 80}))
	must(t)(w.Forwards.Add(t.Context(), "a", vm.PortForward{Slot: 2, HostPort: 8081, GuestPort: 80}))
	must(t)(w.Networks.Create(t.Context(), vm.Network{Name: "six", Mode: vm.NetworkNAT, Subnet: netip.MustParsePrefix("10.6.0.0/24"),
		IPv6: netip.MustParsePrefix("fd00:6::/64")}))
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "c", Template: "small", NICs: &[]vm.NewNIC{{Network: "six"}}}))
	f6, err := w.Forwards.Add(t.Context(), "c", vm.PortForward{HostAddress: addr("::"), HostPort: 8000, GuestPort: 80, Ports: 100})
	must(t)(err)
	if f6.Ports != 100 {
		t.Errorf("added %+v", f6)
	}
	if calls := strings.Join(w.driver.Calls(), ","); !strings.Contains(calls, "SetForwards a") {
		t.Errorf("calls of the driver %s", calls)
	}
	must(t)(w.Forwards.Remove(t.Context(), "a", f.ID, nil))
	wantCode(t, w.Forwards.Remove(t.Context(), "a", f.ID, nil), vm.CodeNotFound)
	must(t)(w.Forwards.Add(t.Context(), "b", vm.PortForward{HostPort: 8080, GuestPort: 80}))
}

func TestRefusedForwardIsNotRecorded(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	w.network.Hook = func(_ context.Context, method, _ string) error {
		if method == "Update" {
			return &vm.Fault{Code: vm.CodeNetworkUnavailable, Detail: "no rules here"}
		}
		return nil
	}
	_, err := w.Forwards.Add(t.Context(), "a", vm.PortForward{HostPort: 8080, GuestPort: 80})
	wantCode(t, err, vm.CodeNetworkUnavailable)
	if got := w.vm("a").Forwards; len(got) != 0 {
		t.Errorf("recorded NICs or forwards %+v", got)
	}
	_, err = w.NICs.Update(t.Context(), "a", 0, vm.NICEdits{RateIn: ptr(1000)}, nil)
	wantCode(t, err, vm.CodeNetworkUnavailable)
	if got := w.vm("a").NICs[0]; got.RateIn != 0 {
		t.Errorf("recorded NICs or forwards %+v", got)
	}
	w.network.Hook = func(_ context.Context, method, mode string) error {
		if method == "Check" && mode == string(vm.NetworkNAT) {
			return &vm.Fault{Code: vm.CodeNetworkUnavailable, Detail: "not as this daemon was started"}
		}
		return nil
	}
	_, err = w.Forwards.Add(t.Context(), "a", vm.PortForward{HostPort: 8080, GuestPort: 80})
	wantCode(t, err, vm.CodeNetworkUnavailable, "was started")
	_, err = w.NICs.Update(t.Context(), "a", 0, vm.NICEdits{RateIn: ptr(1000)}, nil)
	wantCode(t, err, vm.CodeNetworkUnavailable, "was started")
	w.network.Hook = nil
	n, err := w.NICs.Update(t.Context(), "a", 0, vm.NICEdits{RateIn: ptr(1000), LinkDown: ptr(true)}, nil)
	if err != nil || n.RateIn != 1000 || !n.LinkDown || !w.vm("a").NICs[0].Equal(n) {
		t.Errorf("updated to %+v, %v", n, err)
	}
	if calls := w.driver.Calls(); !slices.Contains(calls, "SetLink a") {
		t.Errorf("calls of the driver %v", calls)
	}
}

// TestChangeRecordedWithTheIntentIsComplete settles after a kill that follows the
// intent of a change that is recorded with it.
func TestChangeRecordedWithTheIntentIsComplete(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	f, err := w.Forwards.Add(t.Context(), "a", vm.PortForward{HostPort: 8080, GuestPort: 80})
	must(t)(err)
	v := w.vm("a")
	for _, tt := range []struct {
		kind     vm.Kind
		resource string
		forward  string
		ended    vm.OpState
		forwards int
	}{
		{vm.NetworkUpdate, "networks/vman0", "", vm.OpSucceeded, 1},
		{vm.NICUpdate, "vms/a", "", vm.OpSucceeded, 1},
		{vm.ForwardRemove, "vms/a", "pf-gone", vm.OpSucceeded, 1},
		{vm.ForwardRemove, "vms/a", f.ID, vm.OpFailed, 1},
		{vm.ForwardAdd, "vms/a", f.ID, vm.OpFailed, 0}, // the repeated request adds it again
	} {
		op := vm.Operation{ID: string(tt.kind) + tt.forward, Kind: tt.kind, Resource: vm.ParseResource(tt.resource), State: vm.OpRunning, Target: vm.Target{Forward: tt.forward}, RequestedBy: "test",
			CreatedAt: v.CreatedAt, StartedAt: v.CreatedAt, Log: []vm.LogLine{}}
		must(t)(w.store.Apply(t.Context(), vm.Change{Operation: &op}))
		must(t)(w.Settle(t.Context(), vm.ParseResource(tt.resource)))
		ended, err := w.store.Operation(t.Context(), op.ID)
		if err != nil || ended.State != tt.ended || len(w.vm("a").Forwards) != tt.forwards {
			t.Errorf("%s: %s, %v, forwards %v", op.ID, ended.State, err, w.vm("a").Forwards)
		}
	}
}

func TestExtraAddressesOfNICs(t *testing.T) {
	w := newWorld(t)
	w.create("a") // 192.168.100.2
	w.create("b")
	w.do("a", vm.OpStart)
	list := []netip.Prefix{prefix("192.168.100.4/30"), prefix("192.168.100.200/32")}
	n, err := w.NICs.Update(t.Context(), "a", 0, vm.NICEdits{Extra: &list}, nil)
	if err != nil || !slices.Equal(n.Extra, list) || !w.vm("a").NICs[0].Equal(n) {
		t.Errorf("updated to %+v, %v", n, err)
	}
	if calls := w.network.Calls(); !slices.Contains(calls, "Update a") {
		t.Errorf("calls of the network %v", calls)
	}
	// Another NIC may have the same ones, and is assigned none of them.
	n, _, err = w.NICs.Attach(t.Context(), "b", vm.NewNIC{Extra: list})
	if err != nil || n.IP != addr("192.168.100.8") || !slices.Equal(n.Extra, list) {
		t.Errorf("attached %+v, %v", n, err)
	}
	if r, err := w.Networks.Status(t.Context(), vm.DefaultNetwork); err != nil || r.Free != 256-3-3-5 {
		t.Errorf("%d free addresses, %v", r.Free, err)
	}
	_, _, err = w.NICs.Attach(t.Context(), "b", vm.NewNIC{IP: addr("192.168.100.5")})
	wantCode(t, err, vm.CodeInUse, "192.168.100.5")
	_, err = w.NICs.Update(t.Context(), "b", 0, vm.NICEdits{Extra: &[]netip.Prefix{prefix("192.168.100.2/32")}}, nil)
	wantCode(t, err, vm.CodeInUse, "assigned to NIC 0 of VM a")
	_, err = w.NICs.Update(t.Context(), "b", 0, vm.NICEdits{Extra: &[]netip.Prefix{prefix("192.168.101.2/32")}}, nil)
	wantCode(t, err, vm.CodeInvalid, "/extra_addresses/0")
	if got := w.vm("b").NICs[0].Extra; len(got) != 0 {
		t.Errorf("recorded %v", got)
	}
	must(t)(w.NICs.Update(t.Context(), "a", 0, vm.NICEdits{Extra: &[]netip.Prefix{}}, nil))
	must(t)(w.NICs.Update(t.Context(), "b", 1, vm.NICEdits{Extra: &[]netip.Prefix{}}, nil))
	if n, _, err = w.NICs.Attach(t.Context(), "b", vm.NewNIC{}); err != nil || n.IP != addr("192.168.100.4") {
		t.Errorf("attached %+v, %v, want the address 192.168.100.4, which is free again", n, err)
	}
}
