package manager_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"vmand/manager"
	"vmand/vm"
)

func (w *world) edit(id string, e vm.VMEdits) vm.VM {
	w.t.Helper()
	v, err := w.VMs.Update(w.t.Context(), id, e, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// due makes the automatic restart of a VM due now.
func (w *world) due(id string) {
	w.t.Helper()
	v, err := w.store.VM(w.t.Context(), id)
	if err != nil || v.RestartAt.IsZero() {
		w.t.Fatalf("VM %s has its restart at %s, %v", id, v.RestartAt, err)
	}
	v.RestartAt = time.Now().Add(-time.Second)
	must(w.t)(w.store.Apply(w.t.Context(), vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}))
}

func TestRestartPolicyByReasonOfTheEnd(t *testing.T) {
	tests := []struct {
		policy vm.RestartPolicy
		seen   vm.RunStatus
		want   bool
	}{
		{vm.RestartNever, "gone", false}, {vm.RestartNever, "shutdown", false}, {vm.RestartNever, "guest-panicked", false},
		{vm.RestartOnFailure, "gone", true}, {vm.RestartOnFailure, "shutdown", false}, {vm.RestartOnFailure, "guest-panicked", true},
		{vm.RestartOnFailure, "io-error", false}, {vm.RestartOnFailure, "watchdog", true}, {vm.RestartOnFailure, "paused", false},
		{vm.RestartAlways, "gone", true}, {vm.RestartAlways, "shutdown", true}, {vm.RestartAlways, "internal-error", true},
	}
	for _, tt := range tests {
		t.Run(string(tt.policy)+" and "+string(tt.seen), func(t *testing.T) {
			w := newWorld(t)
			w.create("a")
			w.edit("a", vm.VMEdits{Restart: &tt.policy})
			w.do("a", vm.OpStart)
			w.driver.Set("a", tt.seen)
			must(t)(w.Settle(t.Context(), vm.VMResource("a")))
			v, err := w.store.VM(t.Context(), "a")
			if err != nil || v.RestartAt.IsZero() == tt.want {
				t.Fatalf("the next restart is at %s, %v; want one: %t", v.RestartAt, err, tt.want)
			}
			_, err = w.VMs.RestartDue(t.Context(), "a")
			wantCode(t, err, vm.CodeState, "no restart")
			if !tt.want {
				return
			}
			w.due("a")
			op, err := w.VMs.RestartDue(t.Context(), "a")
			must(t)(err)
			if op, err = w.Operations.Wait(t.Context(), op.ID); err != nil || op.State != vm.OpSucceeded || op.RequestedBy != "restart-policy" {
				t.Errorf("restarted by %+v, %v", op, err)
			}
			if v := w.wantVM("a", vm.Running, vm.ReasonRequested); v.Restarts != 1 || !v.RestartAt.IsZero() {
				t.Errorf("restarted as %+v", v)
			}
		})
	}
}

func TestRestartDelayGrows(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	policy := vm.RestartAlways
	w.edit("a", vm.VMEdits{Restart: &policy})
	w.do("a", vm.OpStart)
	var waits []time.Duration
	for range 11 {
		w.driver.Set("a", "gone")
		before := time.Now()
		must(t)(w.Settle(t.Context(), vm.VMResource("a")))
		v := w.wantVM("a", vm.Errored, vm.ReasonCrashed)
		waits = append(waits, v.RestartAt.Sub(before).Round(time.Second))
		w.due("a")
		op, err := w.VMs.RestartDue(t.Context(), "a")
		must(t)(err)
		must(t)(w.Operations.Wait(t.Context(), op.ID))
	}
	want := []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300}
	for i := range want {
		if waits[i] != want[i]*time.Second {
			t.Fatalf("delays %v; want %v seconds", waits, want)
		}
	}
	// Ten minutes of running and an explicit start both reset the delay.
	v := w.wantVM("a", vm.Running, vm.ReasonRequested)
	v.StartedAt = time.Now().Add(-10 * time.Minute)
	must(t)(w.store.Apply(t.Context(), vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}))
	w.driver.Set("a", "gone")
	must(t)(w.Settle(t.Context(), vm.VMResource("a")))
	if v := w.wantVM("a", vm.Errored, vm.ReasonCrashed); time.Until(v.RestartAt) > 2*time.Second || v.Restarts != 0 {
		t.Errorf("after ten minutes: VM %+v", v)
	}
	w.do("a", vm.OpStart)
	if v := w.wantVM("a", vm.Running, vm.ReasonRequested); v.Restarts != 0 || !v.RestartAt.IsZero() {
		t.Errorf("after an explicit start: VM %+v", v)
	}
}

func TestExplicitStopPreventsRestarts(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	policy := vm.RestartAlways
	w.edit("a", vm.VMEdits{Restart: &policy})
	w.do("a", vm.OpStart)
	w.driver.Set("a", "gone")
	must(t)(w.Settle(t.Context(), vm.VMResource("a")))
	w.due("a")
	w.do("a", vm.OpStop)
	_, err := w.VMs.RestartDue(t.Context(), "a")
	wantCode(t, err, vm.CodeState, "no restart")
	if v := w.wantVM("a", vm.Stopped, vm.ReasonRequested); !v.RestartAt.IsZero() {
		t.Errorf("stopped: %+v", v)
	}
}

func TestAutostartIsOncePerBoot(t *testing.T) {
	w := newWorld(t)
	running := vm.DesiredRunning
	for i, id := range []string{"last", "first", "stopped", "not-wanted"} {
		w.create(id)
		e := vm.VMEdits{Autostart: &vm.Autostart{Enabled: id != "not-wanted", Order: 10 - i}}
		if id != "stopped" {
			e.Desired = &running
		}
		w.edit(id, e)
	}
	must(t)(w.VMs.Autostart(t.Context(), "boot-1"))
	var started []string
	for _, call := range w.driver.Calls() {
		if len(call) > 6 && call[:6] == "Start " {
			started = append(started, call[6:])
		}
	}
	if len(started) != 2 || started[0] != "first" || started[1] != "last" {
		t.Errorf("started %q", started)
	}
	w.driver.Set("first", "gone")
	must(t)(w.Settle(t.Context(), vm.VMResource("first")))
	must(t)(w.VMs.Autostart(t.Context(), "boot-1"))
	w.wantVM("first", vm.Errored, vm.ReasonCrashed)
	must(t)(w.VMs.Autostart(t.Context(), "boot-2"))
	w.wantVM("first", vm.Running, vm.ReasonRequested)
}

func TestNoPolicyRestartAfterAHostBoot(t *testing.T) {
	w := newWorld(t)
	policy := vm.RestartAlways
	must(t)(w.VMs.Autostart(t.Context(), "boot-1"))
	for _, id := range []string{"ran", "was-due", "runs"} {
		w.create(id)
		w.edit(id, vm.VMEdits{Restart: &policy})
		w.do(id, vm.OpStart)
	}
	w.driver.Set("was-due", "gone")
	must(t)(w.Settle(t.Context(), vm.VMResource("was-due")))
	w.due("was-due")
	must(t)(w.VMs.AfterBoot(t.Context(), "boot-1")) // the same boot: a no-op
	w.due("was-due")
	w.driver.Set("ran", "gone")
	must(t)(w.VMs.AfterBoot(t.Context(), "boot-2"))
	must(t)(w.Recover(t.Context()))
	must(t)(w.VMs.Autostart(t.Context(), "boot-2"))
	for _, id := range []string{"ran", "was-due"} {
		if v := w.wantVM(id, vm.Errored, vm.ReasonCrashed); !v.RestartAt.IsZero() || v.Desired != vm.DesiredRunning {
			t.Errorf("%s: %+v", id, v)
		}
	}
	if v := w.wantVM("ran", vm.Errored, vm.ReasonCrashed); !strings.Contains(v.ReasonDetail, "booted") {
		t.Errorf("the detail is %q", v.ReasonDetail)
	}
	w.wantVM("runs", vm.Running, vm.ReasonRequested)
	// A VM started after the boot is restarted by its policy.
	<-time.After(2 * time.Millisecond) // recorded times have millisecond resolution
	w.do("ran", vm.OpStart)
	w.driver.Set("ran", "gone")
	must(t)(w.Settle(t.Context(), vm.VMResource("ran")))
	w.due("ran")
}

func TestGuestPausedByAFullDiskContinuesWithFreeSpace(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	w.driver.SetFull("a", 0)
	must(t)(w.Settle(t.Context(), vm.VMResource("a")))
	if v := w.wantVM("a", vm.Paused, vm.ReasonDiskFull); v.ReasonDetail == "" {
		t.Error("the error does not name the disk")
	}
	must(t)(w.Settle(t.Context(), vm.VMResource("a")))
	w.wantVM("a", vm.Paused, vm.ReasonDiskFull)
	w.driver.SetFull("a", vm.ResumeFreeMiB)
	must(t)(w.Settle(t.Context(), vm.VMResource("a")))
	w.wantVM("a", vm.Running, vm.ReasonRequested)
}

// nextDaemon replaces the engine.
func (w *world) nextDaemon() {
	w.Engine.Close(w.t.Context())
	w.Engine = manager.New(w.store, w.driver, w.network, manager.Options{}, slog.New(slog.DiscardHandler))
}

// After the first stop for a shutdown of the host, no VM starts that nobody asked for.
func TestHostShutdownEndsAutomaticStarts(t *testing.T) {
	w := newWorld(t)
	policy := vm.RestartAlways
	for i, id := range []string{"crashed", "first", "second"} {
		w.create(id)
		w.edit(id, vm.VMEdits{Restart: &policy, Desired: new(vm.DesiredRunning), Autostart: &vm.Autostart{Enabled: id != "crashed", Order: i}})
	}
	w.do("crashed", vm.OpStart)
	w.driver.Set("crashed", "gone")
	must(t)(w.Settle(t.Context(), vm.VMResource("crashed")))
	w.due("crashed")
	starts, release := w.blockOn("Start")
	walk := make(chan error)
	go func() { walk <- w.VMs.Autostart(t.Context(), "boot") }()
	<-starts
	// "first" is being started: a stop by force ends that.
	_, op, err := w.VMs.Do(t.Context(), "first", vm.OpStop, vm.StopOptions{Force: true, HostShutdown: true})
	must(t)(op, err)
	must(t)(w.Operations.Wait(t.Context(), op.ID))
	release()
	must(t)(<-walk)
	w.driver.Hook = nil
	w.wantVM("second", vm.Stopped, vm.ReasonCreated)
	_, err = w.VMs.RestartDue(t.Context(), "crashed")
	wantCode(t, err, vm.CodeState, "while the host shuts down")
	must(t)(w.VMs.Autostart(t.Context(), "boot"))
	w.wantVM("second", vm.Stopped, vm.ReasonCreated)
	// The shutdown was cancelled: a request starts a VM, and the policies hold again.
	w.do("first", vm.OpStart)
	must(t)(w.VMs.RestartDue(t.Context(), "crashed"))
	// The next daemon does the rest of the walk.
	w.nextDaemon()
	must(t)(w.VMs.Autostart(t.Context(), "boot"))
	w.wantVM("second", vm.Running, vm.ReasonRequested)
}

func TestHostShutdownKeepsTheDesiredState(t *testing.T) {
	w := newWorld(t)
	policy := vm.RestartAlways
	for _, id := range []string{"a", "killed", "stopped"} {
		w.create(id)
		w.edit(id, vm.VMEdits{Restart: &policy, Autostart: &vm.Autostart{Enabled: true}})
		w.do(id, vm.OpStart)
	}
	w.edit("killed", vm.VMEdits{ShutdownAction: new(vm.ShutdownKill)})
	w.do("stopped", vm.OpStop)
	for _, id := range []string{"a", "killed"} {
		_, o, err := w.VMs.Do(t.Context(), id, vm.OpStop, vm.StopOptions{OwnTimeout: true, HostShutdown: true})
		must(t)(o, err)
		must(t)(w.Operations.Wait(t.Context(), o.ID))
		if v := w.wantVM(id, vm.Stopped, vm.ReasonHostShutdown); v.Desired != vm.DesiredRunning || !v.RestartAt.IsZero() {
			t.Errorf("VM %s is %+v; want desired running and no restart", id, v)
		}
	}
	calls := strings.Join(w.driver.Calls(), ",")
	if !strings.Contains(calls, "Shutdown a") || !strings.Contains(calls, "Destroy killed") {
		t.Errorf("the calls of the driver are %s; want a shutdown of a, and the end of killed", calls)
	}
	w.nextDaemon()
	must(t)(w.VMs.Autostart(t.Context(), "next boot"))
	w.wantVM("a", vm.Running, vm.ReasonRequested)
	w.wantVM("killed", vm.Running, vm.ReasonRequested)
	w.wantVM("stopped", vm.Stopped, vm.ReasonRequested)
}
