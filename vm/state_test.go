package vm_test

import (
	"testing"

	"vmand/vm"
)

var ops = []vm.Op{
	vm.OpStart,
	vm.OpStop,
	vm.OpRestart,
	vm.OpPause,
	vm.OpResume,
	vm.OpReset,
	vm.OpNMI,
	vm.OpDelete,
}

// allowed is the state machine by state instead of by operation: the operations that may begin,
// and the states during and after each.
var allowed = map[vm.State]map[vm.Op][2]vm.State{
	vm.Stopped: {
		vm.OpStart:  {vm.Starting, vm.Running},
		vm.OpDelete: {vm.Stopping, vm.Stopped},
	},
	vm.Running: {
		vm.OpStop:    {vm.Stopping, vm.Stopped},
		vm.OpRestart: {vm.Stopping, vm.Running},
		vm.OpPause:   {vm.Running, vm.Paused},
		vm.OpReset:   {vm.Running, vm.Running},
		vm.OpNMI:     {vm.Running, vm.Running},
		vm.OpDelete:  {vm.Stopping, vm.Stopped},
	},
	vm.Paused: {
		vm.OpStop:    {vm.Stopping, vm.Stopped},
		vm.OpRestart: {vm.Stopping, vm.Running},
		vm.OpResume:  {vm.Paused, vm.Running},
		vm.OpReset:   {vm.Paused, vm.Running},
		vm.OpDelete:  {vm.Stopping, vm.Stopped},
	},
	vm.Errored: {
		vm.OpStart:  {vm.Starting, vm.Running},
		vm.OpStop:   {vm.Stopping, vm.Stopped},
		vm.OpDelete: {vm.Stopping, vm.Stopped},
	},
}

func TestEveryOperationInEveryState(t *testing.T) {
	for _, s := range vm.States {
		for _, op := range ops {
			want, may := allowed[s][op]
			via, to, ok := s.Begin(op)
			if ok != may || ok && (via != want[0] || to != want[1]) {
				t.Errorf("%s in state %s: got %s, %s, %t; want %s, %s, %t", op, s, via, to, ok, want[0], want[1], may)
			}
		}
	}
}

func TestSettleLeavesNoTransitionalState(t *testing.T) {
	statuses := []vm.RunStatus{
		vm.StatusMute,
		vm.StatusRunning,
		vm.StatusPaused,
		vm.StatusPrelaunch,
		vm.StatusShutdown,
		"io-error",
		"guest-panicked",
		"internal-error",
		"watchdog",
		"inmigrate",
		"suspended",
		"unknown to vmand",
	}
	for _, s := range vm.States {
		seen := []vm.Observation{{}}
		for _, status := range statuses {
			seen = append(seen, vm.Observation{PID: 1, Status: status})
		}
		for _, o := range seen {
			v := vm.Settle(s, vm.ReasonRequested, o)
			if v.State.Transitional() {
				t.Errorf("Settle(%s, %+v) = %s; want a settled state", s, o, v.State)
			}
			if v.State == vm.Stopped && o.Alive() && !v.End {
				t.Errorf("Settle(%s, %+v) returns stopped but does not end the process", s, o)
			}
			again := vm.Settle(v.State, v.Reason, o)
			if !v.End && (again.State != v.State || again.Reason != v.Reason) {
				t.Errorf("Settle(%s, %+v) = %s/%s, then %s/%s: it is not stable",
					s, o, v.State, v.Reason, again.State, again.Reason)
			}
		}
	}
}

// The run states of QEMU 7.2 (qapi/run-state.json) in which the guest does not run.
func TestPauseHasAReasonIfQEMUHasOne(t *testing.T) {
	for _, status := range []vm.RunStatus{
		"debug", "inmigrate", "internal-error", "io-error", "paused", "postmigrate", "prelaunch",
		"finish-migrate", "restore-vm", "save-vm", "suspended", "watchdog", "guest-panicked", "colo",
	} {
		for _, recorded := range []vm.State{vm.Running, vm.Paused} {
			for _, why := range []vm.Reason{vm.ReasonRequested, vm.ReasonUnknown} {
				got := vm.Settle(recorded, why, vm.Observation{PID: 1, Status: status})
				if got.State != vm.Paused || got.Reason == vm.ReasonUnknown || got.Reason == "" {
					t.Errorf("Settle(%s, %s, %s) = %+v, want paused with a reason", recorded, why, status, got)
				}
			}
		}
	}
}

func TestSettle(t *testing.T) {
	gone := vm.Observation{}
	at := func(s vm.RunStatus) vm.Observation { return vm.Observation{PID: 7, Status: s} }
	is := func(s vm.State, r vm.Reason) vm.Verdict { return vm.Verdict{State: s, Reason: r} }
	ends := func(s vm.State, r vm.Reason) vm.Verdict { return vm.Verdict{State: s, Reason: r, End: true} }
	tests := []struct {
		name     string
		recorded vm.State
		why      vm.Reason
		seen     vm.Observation
		want     vm.Verdict
	}{
		{"off and gone is off", vm.Stopped, vm.ReasonGuestShutdown, gone, is(vm.Stopped, vm.ReasonGuestShutdown)},
		{"a launch without a process failed", vm.Starting, vm.ReasonRequested, gone, is(vm.Stopped, vm.ReasonStartFailed)},
		{"a launch that worked is running", vm.Starting, vm.ReasonRequested, at("running"), is(vm.Running, vm.ReasonRequested)},
		{"a launch never continued is ended", vm.Starting, vm.ReasonRequested, at("prelaunch"), ends(vm.Stopped, vm.ReasonStartFailed)},
		{"a reset that was cut short is paused", vm.Running, vm.ReasonRequested, at("prelaunch"), is(vm.Paused, vm.ReasonInterrupted)},
		{"asked to stop and gone is off", vm.Stopping, vm.ReasonRequested, gone, is(vm.Stopped, vm.ReasonRequested)},
		{"stopped with the host and gone is off", vm.Stopping, vm.ReasonHostShutdown, gone, is(vm.Stopped, vm.ReasonHostShutdown)},
		{"stopped with the host and off is ended", vm.Stopping, vm.ReasonHostShutdown, at("shutdown"), ends(vm.Stopped, vm.ReasonHostShutdown)},
		{"stopped with the host and running still runs", vm.Stopping, vm.ReasonHostShutdown, at("running"), is(vm.Running, vm.ReasonRequested)},
		{"asked to stop and off is ended", vm.Stopping, vm.ReasonRequested, at("shutdown"), ends(vm.Stopped, vm.ReasonRequested)},
		{"asked to stop and running still runs", vm.Stopping, vm.ReasonRequested, at("running"), is(vm.Running, vm.ReasonRequested)},
		{"running and gone is a crash", vm.Running, vm.ReasonRequested, gone, is(vm.Errored, vm.ReasonCrashed)},
		{"paused and gone is a crash", vm.Paused, vm.ReasonIOError, gone, is(vm.Errored, vm.ReasonCrashed)},
		{"the guest powered itself off", vm.Running, vm.ReasonRequested, at("shutdown"), ends(vm.Stopped, vm.ReasonGuestShutdown)},
		{"paused by another client", vm.Running, vm.ReasonRequested, at("paused"), is(vm.Paused, vm.ReasonMonitor)},
		{"a guest that suspends itself is paused", vm.Running, vm.ReasonRequested, at("suspended"), is(vm.Paused, vm.ReasonSuspended)},
		{"a guest that woke up runs", vm.Paused, vm.ReasonSuspended, at("running"), is(vm.Running, vm.ReasonRequested)},
		{"a stop of a guest that suspended itself", vm.Stopping, vm.ReasonRequested, at("suspended"), is(vm.Paused, vm.ReasonSuspended)},
		{"paused on request stays so", vm.Paused, vm.ReasonRequested, at("paused"), is(vm.Paused, vm.ReasonRequested)},
		{"a panicked guest is paused", vm.Running, vm.ReasonRequested, at("guest-panicked"), is(vm.Paused, vm.ReasonPanicked)},
		{"an I/O error pauses", vm.Running, vm.ReasonRequested, at("io-error"), is(vm.Paused, vm.ReasonIOError)},
		{"a mute monitor changes nothing", vm.Running, vm.ReasonRequested, at(""), is(vm.Running, vm.ReasonRequested)},
		{"a mute process of an intent is in error", vm.Starting, vm.ReasonRequested, at(""), is(vm.Errored, vm.ReasonUnreachable)},
		{"a mute process of a stopped VM as well", vm.Stopped, vm.ReasonCreated, at(""), is(vm.Errored, vm.ReasonUnreachable)},
		{"unreachable and then gone is a crash", vm.Errored, vm.ReasonUnreachable, gone, is(vm.Errored, vm.ReasonCrashed)},
		{"crashed stays crashed", vm.Errored, vm.ReasonCrashed, gone, is(vm.Errored, vm.ReasonCrashed)},
		{"an unreachable VM that answers again", vm.Errored, vm.ReasonUnreachable, at("running"), is(vm.Running, vm.ReasonRequested)},
		{"recorded as stopped and running", vm.Stopped, vm.ReasonRequested, at("running"), is(vm.Running, vm.ReasonRequested)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := vm.Settle(tt.recorded, tt.why, tt.seen); got != tt.want {
				t.Errorf("Settle(%s, %s, %+v) = %+v; want %+v", tt.recorded, tt.why, tt.seen, got, tt.want)
			}
		})
	}
}
