package observer

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmand/vm"
)

func neverBusy(vm.Resource) bool { return false }

// sightings are the possible observations of a VM, by a short name.
var sightings = map[string]vm.Observation{
	"gone":      {},
	"mute":      {PID: 42},
	"running":   {PID: 42, Status: vm.StatusRunning},
	"paused":    {PID: 42, Status: vm.StatusPaused},
	"shutdown":  {PID: 42, Status: vm.StatusShutdown},
	"prelaunch": {PID: 42, Status: vm.StatusPrelaunch},
	"io-error":  {PID: 42, Status: "io-error"},
	"panicked":  {PID: 42, Status: "guest-panicked"},
}

// surveyOf returns a survey of one VM with its root disk, with or without a process.
func surveyOf(id string, o vm.Observation) vm.Survey {
	s := vm.Survey{VMs: map[string]vm.Observation{}, VMFiles: map[string]bool{id: true}, DiskFiles: map[string]int64{}}
	if o.Alive() {
		s.VMs[id] = o
	}
	return s
}

func TestPlanVMStates(t *testing.T) {
	// The sightings that agree with each recorded state; all others must be settled.
	agree := []struct {
		state  vm.State
		reason vm.Reason
		with   []string
	}{
		{vm.Stopped, vm.ReasonRequested, []string{"gone"}},
		{vm.Starting, vm.ReasonRequested, nil},
		{vm.Running, vm.ReasonRequested, []string{"mute", "running"}},
		{vm.Paused, vm.ReasonRequested, []string{"mute", "paused"}},
		{vm.Paused, vm.ReasonIOError, []string{"mute", "paused", "io-error"}},
		{vm.Paused, vm.ReasonDiskFull, []string{"mute", "paused", "io-error"}},
		{vm.Paused, vm.ReasonPanicked, []string{"mute", "paused", "panicked"}},
		{vm.Stopping, vm.ReasonRequested, nil},
		{vm.Errored, vm.ReasonCrashed, []string{"gone"}},
		{vm.Errored, vm.ReasonUnreachable, []string{"mute"}},
	}
	covered := map[vm.State]bool{}
	for _, row := range agree {
		covered[row.state] = true
		for name, seen := range sightings {
			t.Run(fmt.Sprintf("%s (%s) seen %s", row.state, row.reason, name), func(t *testing.T) {
				recorded := Recorded{VMs: []vm.VM{{ID: "a", State: row.state, Reason: row.reason}}}
				plan := Plan(recorded, surveyOf("a", seen), 0, neverBusy)
				plan = slices.DeleteFunc(plan, func(a Action) bool { return a.Type == QMPUnreachable })
				if slices.Contains(row.with, name) {
					if len(plan) != 0 {
						t.Fatalf("Plan = %+v, want no actions", plan)
					}
					return
				}
				if len(plan) != 1 || plan[0].Type != VMStateMismatch || plan[0].Resource.String() != "vms/a" || !plan[0].Settle {
					t.Fatalf("Plan = %+v, want to settle vms/a", plan)
				}
				if !strings.Contains(plan[0].Details, string(row.state)) {
					t.Errorf("details %q do not name the recorded state", plan[0].Details)
				}
			})
		}
	}
	for _, s := range vm.States {
		if !covered[s] {
			t.Errorf("state %s is not in the table", s)
		}
	}
}

func TestPlanDataDisk(t *testing.T) {
	const (
		noVM       = "no VM"
		off        = "VM off"
		unplugged  = "not plugged"
		pluggedIn  = "plugged"
		unknown    = "unknown"
		elsewhere  = "plugged elsewhere"
		noSuchVM   = "no such VM"
		available  = vm.DiskAvailable
		attached   = vm.DiskAttached
		consistent = IssueType("")
	)
	tests := []struct {
		state vm.DiskState
		where string
		file  bool
		want  []IssueType
	}{
		{available, noVM, true, nil},
		{available, noVM, false, []IssueType{MissingDisk}},
		{available, off, true, []IssueType{DiskStateInconsistent}},
		{available, elsewhere, true, []IssueType{RuntimeDrift}},
		{attached, off, true, nil},
		{attached, off, false, []IssueType{MissingDisk}},
		{attached, pluggedIn, true, nil},
		{attached, unknown, true, nil},
		{attached, unplugged, true, []IssueType{DiskStateInconsistent}},
		{attached, unplugged, false, []IssueType{DiskStateInconsistent, MissingDisk}},
		{attached, elsewhere, true, []IssueType{RuntimeDrift}},
		{vm.DiskAttaching, elsewhere, true, []IssueType{DiskStateInconsistent, RuntimeDrift}},
		{attached, noVM, true, []IssueType{DiskStateInconsistent}},
		{attached, noSuchVM, true, []IssueType{DiskStateInconsistent}},
		{vm.DiskCreating, noVM, false, []IssueType{DiskStateInconsistent}},
		{vm.DiskCreating, noVM, true, []IssueType{DiskStateInconsistent}},
		{vm.DiskAttaching, off, true, []IssueType{DiskStateInconsistent}},
		{vm.DiskAttaching, pluggedIn, true, []IssueType{DiskStateInconsistent}},
		{vm.DiskDetaching, pluggedIn, true, []IssueType{DiskStateInconsistent}},
		{vm.DiskDetaching, unknown, true, []IssueType{DiskStateInconsistent}},
		{vm.DiskError, noVM, false, []IssueType{MissingDisk}},
		{vm.DiskError, noVM, true, []IssueType{DiskStateInconsistent}},
	}
	covered := map[vm.DiskState]bool{}
	for _, tt := range tests {
		covered[tt.state] = true
		t.Run(fmt.Sprintf("%s, %s, file %t", tt.state, tt.where, tt.file), func(t *testing.T) {
			d := vm.Disk{ID: "d", DiskFile: vm.DiskFile{SizeMiB: 1024}, State: tt.state, VMID: "a"}
			running := vm.Observation{PID: 42, Status: vm.StatusRunning}
			recorded := Recorded{VMs: []vm.VM{
				{ID: "a", State: vm.Running, Reason: vm.ReasonRequested},
				{ID: "b", State: vm.Running, Reason: vm.ReasonRequested},
			}}
			seen := surveyOf("a", running)
			seen.VMs["b"], seen.VMFiles["b"] = running, true
			switch tt.where {
			case noVM:
				d.VMID = ""
			case noSuchVM:
				d.VMID = "z"
			case off:
				delete(seen.VMs, "a")
				recorded.VMs[0].State = vm.Stopped
			case unplugged:
				seen.VMs["a"] = vm.Observation{PID: 42, Status: vm.StatusRunning, Plugged: []string{}}
			case pluggedIn:
				seen.VMs["a"] = vm.Observation{PID: 42, Status: vm.StatusRunning, Plugged: []string{"d"}}
			case elsewhere:
				d.VMID = map[bool]string{true: "a", false: ""}[tt.state == attached]
				seen.VMs["b"] = vm.Observation{PID: 43, Status: vm.StatusRunning, Plugged: []string{"d"}}
			}
			if tt.file {
				seen.DiskFiles["d"] = 1024
			}
			recorded.Disks = []vm.Disk{d}
			var got []IssueType
			for _, a := range Plan(recorded, seen, 0, neverBusy) {
				got = append(got, a.Type)
				want := Action{Resource: vm.DiskResource("d"), Settle: true}
				if a.Type == RuntimeDrift {
					want = Action{Resource: vm.VMResource("b")}
				}
				if a.Resource != want.Resource || a.Settle != want.Settle {
					t.Errorf("action %+v, want resource %s, settle: %t", a, want.Resource, want.Settle)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("Plan = %v, want %v", got, tt.want)
			}
		})
	}
	for _, s := range vm.DiskStates {
		if !covered[s] {
			t.Errorf("state %s is not in the table", s)
		}
	}
}

func TestPlanReportsOrphans(t *testing.T) {
	seen := vm.Survey{
		VMs:       map[string]vm.Observation{"ghost": {PID: 7, Status: vm.StatusRunning}},
		VMFiles:   map[string]bool{"ghost": true, "husk": false},
		DiskFiles: map[string]int64{"stray": 0},
	}
	plan := Plan(Recorded{}, seen, 0, neverBusy)
	want := []string{"orphan_disk disks/stray", "orphan_disk vms/ghost", "orphan_process vms/ghost", "orphan_disk vms/husk"}
	if got := names(plan); !slices.Equal(got, want) {
		t.Fatalf("Plan = %q, want %q", got, want)
	}
	for _, a := range plan {
		if a.Settle || a.Passes != 2 {
			t.Errorf("action %+v, want it only reported, by the second pass", a)
		}
	}
}

func TestPlanReportsAMissingRootDisk(t *testing.T) {
	for name, files := range map[string]map[string]bool{"no files": {}, "files without the root disk": {"a": false}} {
		t.Run(name, func(t *testing.T) {
			plan := Plan(Recorded{VMs: []vm.VM{{ID: "a", State: vm.Stopped}}}, vm.Survey{VMFiles: files}, 0, neverBusy)
			if got := names(plan); !slices.Equal(got, []string{"missing_disk vms/a"}) || plan[0].Settle {
				t.Errorf("Plan = %+v, want missing_disk vms/a, only reported", plan)
			}
		})
	}
}

func TestPlanSettlesInterruptedOperations(t *testing.T) {
	recorded := Recorded{
		VMs: []vm.VM{{ID: "a", State: vm.Running, Reason: vm.ReasonRequested}, {ID: "b", State: vm.Starting}},
		Open: []vm.Operation{
			{ID: "1", Kind: vm.VMPause, Resource: vm.VMResource("a")},
			{ID: "2", Kind: vm.DiskCreate, Resource: vm.DiskResource("d")},
			{ID: "3", Kind: vm.VMStart, Resource: vm.VMResource("b")},
		},
	}
	seen := surveyOf("a", sightings["running"])
	seen.VMFiles["b"] = true
	plan := Plan(recorded, seen, 0, neverBusy)
	want := []string{"disk_state_inconsistent disks/d", "vm_state_mismatch vms/a", "vm_state_mismatch vms/b"}
	if got := names(plan); !slices.Equal(got, want) {
		t.Errorf("Plan = %q, want each of %q once", got, want)
	}
}

func TestPlanLeavesOutBusyResources(t *testing.T) {
	recorded := Recorded{VMs: []vm.VM{{ID: "a", State: vm.Starting}, {ID: "b", State: vm.Starting}}}
	seen := vm.Survey{VMFiles: map[string]bool{"a": true, "b": true, "new": true}}
	held := func(resource vm.Resource) bool { return resource != vm.VMResource("b") }
	if got := names(Plan(recorded, seen, 0, held)); !slices.Equal(got, []string{"vm_state_mismatch vms/b"}) {
		t.Errorf("Plan = %q, want only vms/b", got)
	}
}

func names(plan []Action) []string {
	var out []string
	for _, a := range plan {
		out = append(out, string(a.Type)+" "+a.Resource.String())
	}
	return out
}

func TestPlanDiskSize(t *testing.T) {
	tests := []struct {
		state vm.DiskState
		size  int64
		want  string
	}{
		{vm.DiskAvailable, 1024, ""},
		{vm.DiskAvailable, 0, ""}, // the file cannot be read
		{vm.DiskAvailable, 2048, "disk_size_mismatch disks/d"},
		{vm.DiskAvailable, 1, "disk_size_mismatch disks/d"},
		{vm.DiskAttached, 2048, "disk_size_mismatch disks/d"},
		{vm.DiskDetaching, 2048, "disk_state_inconsistent disks/d"}, // reported first
	}
	for _, tt := range tests {
		d := vm.Disk{ID: "d", DiskFile: vm.DiskFile{SizeMiB: 1024}, State: tt.state}
		seen := surveyOf("a", vm.Observation{})
		recorded := Recorded{VMs: []vm.VM{{ID: "a", State: vm.Stopped}}, Disks: []vm.Disk{d}}
		if tt.state != vm.DiskAvailable {
			recorded.Disks[0].VMID = "a"
		}
		seen.DiskFiles["d"] = tt.size
		plan := Plan(recorded, seen, 0, neverBusy)
		if got := strings.Join(names(plan), ", "); got != tt.want {
			t.Errorf("state %s with a file of %d MiB: plan %q, want %q", tt.state, tt.size, got, tt.want)
		}
		if len(plan) == 1 && !plan[0].Settle {
			t.Errorf("action %+v, want it settled", plan[0])
		}
	}
}

func TestPlanReportsTheLostFilesOfARunningQEMU(t *testing.T) {
	seen := surveyOf("a", vm.Observation{PID: 42, Status: vm.StatusRunning, Lost: "/run/vman/a.pid"})
	plan := Plan(Recorded{VMs: []vm.VM{{ID: "a", State: vm.Running}}}, seen, 0, neverBusy)
	if got := names(plan); !slices.Equal(got, []string{"runtime_drift vms/a"}) {
		t.Fatalf("Plan = %q", got)
	}
	if a := plan[0]; a.Settle || a.Passes != 2 || !strings.Contains(a.Details, "/run/vman/a.pid") {
		t.Errorf("%+v", a)
	}
}

func TestPlanReportsUnexpectedDisksOfQEMUOnce(t *testing.T) {
	seen := surveyOf("a", vm.Observation{PID: 42, Status: vm.StatusRunning, Plugged: []string{"z", "mine", "free", "b-s"}})
	seen.VMFiles["b"] = true
	seen.VMs["ghost"] = vm.Observation{PID: 43, Status: vm.StatusRunning, Plugged: []string{"free"}}
	recorded := Recorded{VMs: []vm.VM{{ID: "a", State: vm.Running}, {ID: "b", State: vm.Stopped}}}
	for id, on := range map[string]string{"mine": "a", "free": "", "b-s": "b"} {
		d := vm.Disk{ID: id, DiskFile: vm.DiskFile{SizeMiB: 1}, State: vm.DiskAttached, VMID: on}
		if on == "" {
			d.State = vm.DiskAvailable
		}
		recorded.Disks = append(recorded.Disks, d)
		seen.DiskFiles[id] = 1
	}
	plan := Plan(recorded, seen, 0, neverBusy)
	want := []string{"orphan_process vms/ghost", "runtime_drift vms/a"}
	got := names(plan)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Fatalf("Plan = %q, want %q", got, want)
	}
	drift := plan[slices.IndexFunc(plan, func(a Action) bool { return a.Type == RuntimeDrift })]
	for _, word := range []string{
		"42",
		"b-s, which is recorded on VM b",
		"free, which is recorded without a VM",
		"z, which is not recorded",
	} {
		if !strings.Contains(drift.Details, word) {
			t.Errorf("details %q do not contain %q", drift.Details, word)
		}
	}
	if strings.Contains(drift.Details, "mine") || drift.Settle || drift.Passes != 2 {
		t.Errorf("action %+v, want it without disk mine, only reported", drift)
	}
}

func TestPlanReportsAMuteMonitor(t *testing.T) {
	plan := Plan(Recorded{VMs: []vm.VM{{ID: "a", State: vm.Running}}}, surveyOf("a", sightings["mute"]), 0, neverBusy)
	if len(plan) != 1 || plan[0].Type != QMPUnreachable || plan[0].Settle || plan[0].Passes != 3 || !strings.Contains(plan[0].Details, "42") {
		t.Errorf("Plan = %+v, want one qmp_unreachable after three passes, with the process id", plan)
	}
}

func TestPlanReportsEmulationWhereKVMWorks(t *testing.T) {
	for name, tt := range map[string]struct {
		accel, now vm.Accel
		want       int
	}{
		"KVM works now":              {vm.TCG, vm.KVM, 1},
		"KVM does not work":          {vm.TCG, vm.TCG, 0},
		"nothing is known about KVM": {vm.TCG, "", 0},
		"the VM uses KVM":            {vm.KVM, vm.KVM, 0},
	} {
		t.Run(name, func(t *testing.T) {
			seen := surveyOf("a", sightings["running"])
			seen.Accel = tt.now
			plan := Plan(Recorded{VMs: []vm.VM{{ID: "a", State: vm.Running, Accel: tt.accel}}}, seen, 0, neverBusy)
			if len(plan) != tt.want {
				t.Fatalf("Plan = %+v, want %d actions", plan, tt.want)
			}
			if tt.want == 1 && (plan[0].Type != SlowAccelerator || plan[0].Settle || !strings.Contains(plan[0].Details, "restart")) {
				t.Errorf("Plan = %+v, want a slow_accelerator that says to restart the VM", plan)
			}
		})
	}
	stopped := Recorded{VMs: []vm.VM{{ID: "a", State: vm.Stopped, Accel: vm.TCG}}}
	if plan := Plan(stopped, vm.Survey{Accel: vm.KVM, VMFiles: map[string]bool{"a": true}}, 0, neverBusy); len(plan) != 0 {
		t.Errorf("Plan of a stopped VM = %+v, want no actions", plan)
	}
}

func TestPlanContinuesAGuestPausedByAFullDisk(t *testing.T) {
	full := vm.VM{ID: "a", State: vm.Paused, Reason: vm.ReasonDiskFull, Desired: vm.DesiredRunning}
	for free, want := range map[int64]string{0: "", vm.ResumeFreeMiB - 1: "", vm.ResumeFreeMiB: "vm_state_mismatch vms/a"} {
		seen := surveyOf("a", vm.Observation{PID: 42, Status: "io-error", NoSpace: true, FreeMiB: free})
		plan := Plan(Recorded{VMs: []vm.VM{full}}, seen, 0, neverBusy)
		if got := strings.Join(names(plan), ", "); got != want {
			t.Errorf("%d MiB free: plan %q, want %q", free, got, want)
		}
	}
	stopped := full
	stopped.Desired = vm.DesiredStopped
	seen := surveyOf("a", vm.Observation{PID: 42, Status: "io-error", NoSpace: true, FreeMiB: 99})
	if plan := Plan(Recorded{VMs: []vm.VM{stopped}}, seen, 0, neverBusy); len(plan) != 0 {
		t.Errorf("plan of a VM with desired state stopped: %+v, want no actions", plan)
	}
}

func TestPlanReportsLowStorage(t *testing.T) {
	tests := []struct {
		free, size, low int64
		want            bool
	}{
		{1024, 2000, 1024, false},
		{1023, 2000, 1024, true},
		{5000, 100_000, 1024, false},
		{4999, 100_000, 1024, true}, // less than 5 %
		{0, 100_000, 0, false},      // turned off
		{0, 0, 1024, false},         // unknown size
	}
	for _, tt := range tests {
		plan := Plan(Recorded{}, vm.Survey{Storage: vm.Storage{Path: "/d", FreeMiB: tt.free, SizeMiB: tt.size}}, tt.low, neverBusy)
		if !tt.want {
			if len(plan) != 0 {
				t.Errorf("%+v: plan %+v, want no actions", tt, plan)
			}
			continue
		}
		if len(plan) != 1 || plan[0].Type != StorageLow || plan[0].Resource.String() != "storage//d" || plan[0].Settle || plan[0].Passes != 1 {
			t.Errorf("%+v: plan %+v, want storage_low at once", tt, plan)
		}
	}
}
