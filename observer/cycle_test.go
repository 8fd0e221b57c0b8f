package observer

import (
	"slices"
	"testing"
	"testing/synctest"

	"vmand/vm"
)

// kinds returns the numbers of light and of whole passes.
func (w *world) kinds() (light, whole int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.light, w.surveys - w.light
}

// alter changes the world under its lock without a foreign write, as the daemon itself does.
func (w *world) alter(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func TestWholePasses(t *testing.T) {
	tests := map[string]struct {
		prepare func(w *world)
		before  int // passes before the change
		change  func(w *world)
		passes  int // after the change
		whole   int // whole passes among them
	}{
		"no change":                       {passes: 11, whole: 0},
		"every 12th pass":                 {passes: 12, whole: 1},
		"twice in two minutes":            {passes: 24, whole: 2},
		"another process writes":          {change: func(w *world) { w.foreign++ }, passes: 3, whole: 1},
		"a file is created":               {change: func(w *world) { w.seen.DiskFiles["stray"] = 1 }, passes: 4, whole: 2}, // and one to confirm
		"an event of a VM without issues": {change: func(w *world) { w.happen(vm.NewEvent("vm.state", vm.VMResource("a"), nil)) }, passes: 3, whole: 0},
		"an event of a disk with an issue": {
			prepare: func(w *world) { w.seen.DiskFiles["stray"] = 1 },
			before:  2,
			change:  func(w *world) { w.happen(vm.NewEvent("disk.state", vm.DiskResource("stray"), nil)) },
			passes:  3,
			whole:   1,
		},
		"an issue that was confirmed":  {prepare: func(w *world) { w.seen.DiskFiles["stray"] = 1 }, before: 2, passes: 10, whole: 0},
		"a process vanishes":           {change: func(w *world) { delete(w.seen.VMs, "a") }, passes: 3, whole: 0},
		"an operation holds an orphan": {prepare: func(w *world) { w.seen.DiskFiles["stray"], w.busy["disks/stray"] = 1, true }, before: 2, passes: 3, whole: 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.run("a")
			w.vms["off"] = vm.VM{ID: "off", State: vm.Stopped, Reason: vm.ReasonRequested}
			w.seen.VMFiles["off"] = true
			if tt.prepare != nil {
				tt.prepare(w)
			}
			observe(t, w, func(*Observer) {
				for range tt.before {
					after(interval)
				}
				_, was := w.kinds()
				if tt.change != nil {
					w.alter(func() { tt.change(w) })
				}
				for range tt.passes {
					after(interval)
				}
				if light, whole := w.kinds(); whole-was != tt.whole || light+whole != 1+tt.before+tt.passes {
					t.Errorf("%d whole passes after the change, want %d; %d passes in total", whole-was, tt.whole, light+whole)
				}
			})
		})
	}
}

func TestLightPassKeepsIssuesItCannotCheck(t *testing.T) {
	tests := map[string]struct {
		prepare func(w *world)
		issue   string
		cure    func(w *world) // the next pass must notice it
	}{
		"files of a disk without a record": {
			func(w *world) { w.seen.DiskFiles["stray"] = 1 }, "orphan_disk disks/stray",
			func(w *world) { delete(w.seen.DiskFiles, "stray") },
		},
		"an adopted disk": {
			func(w *world) { w.seen.DiskFiles["stray"] = 1 }, "orphan_disk disks/stray",
			func(w *world) {
				w.disks["stray"] = vm.Disk{ID: "stray", State: vm.DiskAvailable, DiskFile: vm.DiskFile{SizeMiB: 1}}
				w.happen(vm.NewEvent("operation.ended", vm.DiskResource("stray"), nil))
			},
		},
		"files of a VM without a record": {
			func(w *world) { w.seen.VMFiles["stray"] = true }, "orphan_disk vms/stray",
			func(w *world) { delete(w.seen.VMFiles, "stray") },
		},
		"a missing root disk of a stopped VM": {
			func(w *world) { delete(w.seen.VMFiles, "off") }, "missing_disk vms/off",
			func(w *world) { w.seen.VMFiles["off"] = true },
		},
		"a missing root disk of a running VM": {
			func(w *world) { delete(w.seen.VMFiles, "a") }, "missing_disk vms/a",
			func(w *world) { w.seen.VMFiles["a"] = true },
		},
		"a process without a record": {
			func(w *world) { w.seen.VMs["stray"] = vm.Observation{PID: 7, Status: vm.StatusRunning} }, "orphan_process vms/stray",
			func(w *world) { delete(w.seen.VMs, "stray") },
		},
		"a disk of another VM": {
			func(w *world) {
				w.vms["off"] = vm.VM{ID: "off", State: vm.Stopped, Reason: vm.ReasonRequested}
				w.disks["d"] = vm.Disk{ID: "d", VMID: "off", State: vm.DiskAttached}
				w.seen.DiskFiles["d"] = 0
				w.seen.VMs["a"] = vm.Observation{PID: 42, Status: vm.StatusRunning, Plugged: []string{"d"}}
			}, "runtime_drift vms/a",
			func(w *world) { w.seen.VMs["a"] = vm.Observation{PID: 42, Status: vm.StatusRunning} },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.run("a")
			w.vms["off"] = vm.VM{ID: "off", State: vm.Stopped, Reason: vm.ReasonRequested}
			w.seen.VMFiles["off"] = true
			tt.prepare(w)
			observe(t, w, func(o *Observer) {
				after(interval)
				expectIssues(t, o, tt.issue)
				first := o.Status().Issues[0]
				for range 2 * wholeEvery {
					after(interval)
					if got := o.Status().Issues; len(got) != 1 || got[0] != first {
						t.Fatalf("issues %+v, want still %+v", got, first)
					}
				}
				if light, whole := w.kinds(); light < 20 || whole > 5 {
					t.Errorf("%d light and %d whole passes", light, whole)
				}
				if got := w.ownEvents(); len(got) != 1 {
					t.Errorf("recorded events %q, want one", got)
				}
				w.alter(func() { tt.cure(w) })
				after(interval)
				expectIssues(t, o)
			})
		})
	}
}

func TestLightPassSettlesActiveVMs(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.run("b")
	w.vms["off"] = vm.VM{ID: "off", State: vm.Stopped, Reason: vm.ReasonRequested}
	w.seen.VMFiles["off"] = true
	observe(t, w, func(o *Observer) {
		w.alter(func() {
			delete(w.seen.VMs, "a")
			w.seen.VMs["off"] = vm.Observation{PID: 43, Status: vm.StatusRunning}
		})
		after(interval)
		expectIssues(t, o, "vm_state_mismatch vms/a: recorded the truth", "vm_state_mismatch vms/off: recorded the truth")
		after(interval)
		expectIssues(t, o)
		if light, whole := w.kinds(); light != 2 || whole != 1 {
			t.Errorf("%d light and %d whole passes, want 2 and 1", light, whole)
		}
	})
}

func TestPartialPlanReportsNoMissingFiles(t *testing.T) {
	seen := surveyOf("a", vm.Observation{PID: 42, Status: vm.StatusRunning, Plugged: []string{"d"}})
	seen.DiskFiles = nil
	recorded := Recorded{
		Partial: true,
		VMs: []vm.VM{
			{ID: "a", State: vm.Running, Reason: vm.ReasonRequested},
			{ID: "failed", State: vm.Errored, Reason: vm.ReasonCrashed}, // has no process: its files are not in the survey
		},
		Disks: []vm.Disk{
			{ID: "d", VMID: "a", State: vm.DiskAttached, DiskFile: vm.DiskFile{SizeMiB: 1024}},
			{ID: "bad", State: vm.DiskError},
		},
	}
	if plan := Plan(recorded, seen, 0, neverBusy); len(plan) != 0 {
		t.Errorf("plan %+v, want no actions", plan)
	}
	seen.VMFiles["a"] = false
	if got := names(Plan(recorded, seen, 0, neverBusy)); !slices.Equal(got, []string{"missing_disk vms/a"}) {
		t.Errorf("plan %q, want a missing root disk of the VM with a process", got)
	}
}

func TestPassIsWholeIfEventsCannotBeRead(t *testing.T) {
	for _, what := range []string{"last event", "events"} {
		t.Run(what, func(t *testing.T) {
			w := newWorld()
			w.seen.DiskFiles["stray"] = 1
			observe(t, w, func(o *Observer) {
				after(2 * interval)
				w.alter(func() {
					w.failRead[what] = vm.ErrUnavailable
					w.happen(vm.NewEvent("vm.state", vm.VMResource("a"), nil))
				})
				_, was := w.kinds()
				after(interval)
				synctest.Wait()
				if _, whole := w.kinds(); whole != was+1 || o.Status().Status != StatusOK {
					t.Errorf("%d more whole passes, status %+v; want 1 and ok", whole-was, o.Status())
				}
				expectIssues(t, o, "orphan_disk disks/stray")
			})
		})
	}
}
