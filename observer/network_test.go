package observer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"vmand/vm"
)

func TestNetworkDriftIsReportedWithItsRepair(t *testing.T) {
	tests := map[string]struct {
		repair   string
		drift    vm.Drift
		err      error
		want     string // repair of the issue
		repaired bool
	}{
		"repaired":          {RepairAuto, vm.Drift{Resource: vm.NetworkResource("vman0"), Details: "the bridge is down"}, nil, "restored the recorded configuration", true},
		"report mode":       {RepairReport, vm.Drift{Resource: vm.NetworkResource("vman0"), Details: "the bridge is down"}, nil, "", false},
		"failed repair":     {RepairAuto, vm.Drift{Resource: vm.VMResource("a"), Details: "the tap is gone", Err: errors.New("no way")}, nil, "the repair failed: no way", false},
		"failed inspection": {RepairAuto, vm.Drift{}, errors.New("no netlink"), "the repair failed: no netlink", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				if tt.drift.Resource.String() != "" {
					w.drift = []vm.Drift{tt.drift}
				}
				w.driftErr = tt.err
				o := New(Options{Interval: interval, Repair: tt.repair}, Deps{w, w, w, w, w, discard})
				o.pass(t.Context())
				issues := o.Status().Issues
				if len(issues) != 1 || issues[0].Type != NetworkDrift || issues[0].Repair != tt.want || issues[0].RepairedAt.IsZero() == tt.repaired {
					t.Fatalf("issues %+v, want one network_drift with repair %q, repaired: %t", issues, tt.want, tt.repaired)
				}
				if want := tt.repair == RepairAuto; w.repairs[0] != want {
					t.Errorf("Reconcile was called with repair %t, want %t", w.repairs[0], want)
				}
				if !slices.ContainsFunc(w.events, func(e vm.Event) bool {
					return e.Type == "observer.issue" && strings.Contains(string(e.Data), "network_drift")
				}) {
					t.Errorf("events %+v, want an observer.issue of network_drift", w.events)
				}
			})
		})
	}
}

func TestProblemsOfNetworksAreIssuesOnceForEachKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.problems = []vm.NetworkProblem{
			{Kind: vm.ProblemBlocked, Resource: vm.NetworkResource("vman0"), Detail: "INPUT drops", Fix: "iptables -I INPUT"},
			{Kind: vm.ProblemBlocked, Resource: vm.NetworkResource("vman0"), Detail: "OUTPUT drops"},
			{Kind: vm.ProblemConflict, Resource: vm.VMResource("a"), Detail: "another machine uses 192.0.2.1"},
		}
		o := New(Options{Interval: interval}, Deps{w, w, w, w, w, discard})
		for range 2 {
			o.pass(t.Context())
		}
		var got []string
		for _, i := range o.Status().Issues {
			got = append(got, string(i.Type)+" "+i.Resource.String()+" "+i.Details)
		}
		want := []string{
			"network_blocked networks/vman0 INPUT drops: iptables -I INPUT; OUTPUT drops",
			"address_conflict vms/a another machine uses 192.0.2.1",
		}
		if !slices.Equal(got, want) || len(w.events) != 2 {
			t.Errorf("issues %q and %d events, want %q and one event for each", got, len(w.events), want)
		}
		w.problems = nil
		o.pass(t.Context())
		if issues := o.Status().Issues; len(issues) != 0 {
			t.Errorf("issues of problems that are solved: %+v", issues)
		}
	})
}

func TestPlanNICs(t *testing.T) {
	nic := func(slot int, s vm.NICState) vm.NIC { return vm.NIC{Slot: slot, Network: "vman0", State: s} }
	tests := map[string]struct {
		nics   []vm.NIC
		seen   []int
		want   string
		settle bool
	}{
		"as recorded":    {[]vm.NIC{nic(0, vm.NICAttached)}, []int{0}, "", false},
		"unknown NICs":   {[]vm.NIC{nic(0, vm.NICAttached)}, nil, "", false},
		"half unplugged": {[]vm.NIC{nic(0, vm.NICDetaching)}, []int{0}, "recorded as detaching", true},
		"half plugged":   {[]vm.NIC{nic(0, vm.NICAttaching)}, []int{}, "recorded as attaching", true},
		"one NIC more":   {nil, []int{3}, "slot 3, which is not recorded", false},
		"one NIC less":   {[]vm.NIC{nic(0, vm.NICAttached), nic(1, vm.NICAttached)}, []int{0}, "NIC 1 is recorded", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := vm.VM{ID: "a", State: vm.Running, Reason: vm.ReasonRequested, NICs: tt.nics}
			seen := surveyOf("a", vm.Observation{PID: 7, Status: vm.StatusRunning, NICs: tt.seen})
			plan := Plan(Recorded{VMs: []vm.VM{v}}, seen, 0, neverBusy)
			if tt.want == "" {
				if len(plan) != 0 {
					t.Errorf("plan %+v, want no actions", plan)
				}
				return
			}
			if len(plan) != 1 || plan[0].Type != RuntimeDrift || plan[0].Settle != tt.settle || !strings.Contains(plan[0].Details, tt.want) {
				t.Errorf("plan %+v, want one runtime_drift with %q, settle: %t", plan, tt.want, tt.settle)
			}
		})
	}
}
