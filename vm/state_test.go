package vm_test

import (
	"testing"

	"vmand/vm"
)

var ops = []vm.Op{vm.OpStart, vm.OpStop, vm.OpRestart, vm.OpPause, vm.OpResume, vm.OpReset, vm.OpDelete}

// allowed is the state machine written the other way round: per state what may
// begin, and the states recorded during and after.
var allowed = map[vm.State]map[vm.Op][2]vm.State{
	vm.Stopped: {vm.OpStart: {vm.Starting, vm.Running}, vm.OpDelete: {vm.Stopping, vm.Stopped}},
	vm.Running: {vm.OpStop: {vm.Stopping, vm.Stopped}, vm.OpRestart: {vm.Stopping, vm.Running}, vm.OpPause: {vm.Running, vm.Paused},
		vm.OpReset: {vm.Running, vm.Running}, vm.OpDelete: {vm.Stopping, vm.Stopped}},
	vm.Paused: {vm.OpStop: {vm.Stopping, vm.Stopped}, vm.OpRestart: {vm.Stopping, vm.Running}, vm.OpResume: {vm.Paused, vm.Running},
		vm.OpReset: {vm.Paused, vm.Running}, vm.OpDelete: {vm.Stopping, vm.Stopped}},
	vm.Errored: {vm.OpStart: {vm.Starting, vm.Running}, vm.OpStop: {vm.Stopping, vm.Stopped}, vm.OpDelete: {vm.Stopping, vm.Stopped}},
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

func TestSettleNeverLeavesAnIntent(t *testing.T) {
	statuses := []vm.RunStatus{vm.StatusMute, vm.StatusRunning, vm.StatusPaused, vm.StatusPrelaunch, vm.StatusShutdown, "io-error",
		"guest-panicked", "internal-error", "watchdog", "inmigrate", "suspended", "never heard of"}
	for _, s := range vm.States {
		seen := []vm.Observation{{}}
		for _, status := range statuses {
			seen = append(seen, vm.Observation{PID: 1, Status: status})
		}
		for _, o := range seen {
			v := vm.Settle(s, vm.ReasonRequested, o)
			if v.State.Transitional() {
				t.Errorf("Settle(%s, %+v) = %s, an intent", s, o, v.State)
			}
			if v.State == vm.Stopped && o.Alive() && !v.End {
				t.Errorf("Settle(%s, %+v) says stopped and leaves the process", s, o)
			}
			if again := vm.Settle(v.State, v.Reason, o); !v.End && (again.State != v.State || again.Reason != v.Reason) {
				t.Errorf("Settle(%s, %+v) = %s/%s, and then %s/%s: it does not come to rest", s, o, v.State, v.Reason, again.State, again.Reason)
			}
		}
	}
}

func TestSettle(t *testing.T) {
	gone := vm.Observation{}
	at := func(s vm.RunStatus) vm.Observation { return vm.Observation{PID: 7, Status: s} }
	tests := map[string]struct {
		recorded vm.State
		why      vm.Reason
		seen     vm.Observation
		want     vm.Verdict
	}{
		"off and gone is off":                     {vm.Stopped, vm.ReasonGuestShutdown, gone, vm.Verdict{State: vm.Stopped, Reason: vm.ReasonGuestShutdown}},
		"a launch that left nothing failed":       {vm.Starting, vm.ReasonRequested, gone, vm.Verdict{State: vm.Stopped, Reason: vm.ReasonStartFailed}},
		"a launch that worked is running":         {vm.Starting, vm.ReasonRequested, at("running"), vm.Verdict{State: vm.Running, Reason: vm.ReasonRequested}},
		"a launch never let go is ended":          {vm.Starting, vm.ReasonRequested, at("prelaunch"), vm.Verdict{State: vm.Stopped, Reason: vm.ReasonStartFailed, End: true}},
		"a reset that was cut short is paused":    {vm.Running, vm.ReasonRequested, at("prelaunch"), vm.Verdict{State: vm.Paused, Reason: vm.ReasonInterrupted}},
		"asked to stop and gone is off":           {vm.Stopping, vm.ReasonRequested, gone, vm.Verdict{State: vm.Stopped, Reason: vm.ReasonRequested}},
		"asked to stop and off is ended":          {vm.Stopping, vm.ReasonRequested, at("shutdown"), vm.Verdict{State: vm.Stopped, Reason: vm.ReasonRequested, End: true}},
		"asked to stop and running still runs":    {vm.Stopping, vm.ReasonRequested, at("running"), vm.Verdict{State: vm.Running, Reason: vm.ReasonRequested}},
		"running and gone is a crash":             {vm.Running, vm.ReasonRequested, gone, vm.Verdict{State: vm.Errored, Reason: vm.ReasonCrashed}},
		"paused and gone is a crash":              {vm.Paused, vm.ReasonIOError, gone, vm.Verdict{State: vm.Errored, Reason: vm.ReasonCrashed}},
		"the guest powered itself off":            {vm.Running, vm.ReasonRequested, at("shutdown"), vm.Verdict{State: vm.Stopped, Reason: vm.ReasonGuestShutdown, End: true}},
		"paused behind our back":                  {vm.Running, vm.ReasonRequested, at("paused"), vm.Verdict{State: vm.Paused, Reason: vm.ReasonUnknown}},
		"paused by us stays so":                   {vm.Paused, vm.ReasonRequested, at("paused"), vm.Verdict{State: vm.Paused, Reason: vm.ReasonRequested}},
		"a panicked guest is paused":              {vm.Running, vm.ReasonRequested, at("guest-panicked"), vm.Verdict{State: vm.Paused, Reason: vm.ReasonPanicked}},
		"an I/O error pauses":                     {vm.Running, vm.ReasonRequested, at("io-error"), vm.Verdict{State: vm.Paused, Reason: vm.ReasonIOError}},
		"a mute monitor changes nothing":          {vm.Running, vm.ReasonRequested, at(""), vm.Verdict{State: vm.Running, Reason: vm.ReasonRequested}},
		"a mute process of an intent is in error": {vm.Starting, vm.ReasonRequested, at(""), vm.Verdict{State: vm.Errored, Reason: vm.ReasonUnreachable}},
		"a mute process of a stopped VM as well":  {vm.Stopped, vm.ReasonCreated, at(""), vm.Verdict{State: vm.Errored, Reason: vm.ReasonUnreachable}},
		"unreachable and then gone is a crash":    {vm.Errored, vm.ReasonUnreachable, gone, vm.Verdict{State: vm.Errored, Reason: vm.ReasonCrashed}},
		"crashed stays crashed":                   {vm.Errored, vm.ReasonCrashed, gone, vm.Verdict{State: vm.Errored, Reason: vm.ReasonCrashed}},
		"came back from the dead":                 {vm.Errored, vm.ReasonUnreachable, at("running"), vm.Verdict{State: vm.Running, Reason: vm.ReasonRequested}},
		"recorded stopped by hand and running":    {vm.Stopped, vm.ReasonRequested, at("running"), vm.Verdict{State: vm.Running, Reason: vm.ReasonRequested}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := vm.Settle(tt.recorded, tt.why, tt.seen); got != tt.want {
				t.Errorf("Settle(%s, %s, %+v) = %+v; want %+v", tt.recorded, tt.why, tt.seen, got, tt.want)
			}
		})
	}
}
