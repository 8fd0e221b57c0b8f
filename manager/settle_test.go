package manager_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"vmand/vm"
)

// open records an operation as a daemon leaves it that was killed half-way.
func (w *world) open(kind vm.Kind, resource string, rest vm.Change) string {
	w.t.Helper()
	at := time.Now().UTC()
	rest.Operation = &vm.Operation{ID: "op-" + string(kind) + strings.ReplaceAll(resource, "/", "-"), Kind: kind, Resource: vm.ParseResource(resource), State: vm.OpRunning,
		RequestedBy: "test", CreatedAt: at, StartedAt: at, Log: []vm.LogLine{}}
	must(w.t)(w.store.Apply(w.t.Context(), rest))
	return rest.Operation.ID
}

func TestWhatAKilledDaemonLeftIsSettled(t *testing.T) {
	tests := map[string]struct {
		kind   vm.Kind
		intent vm.State
		seen   vm.RunStatus
		want   vm.State
		why    vm.Reason
		ended  vm.OpState
	}{
		"a start before its launch":          {vm.VMStart, vm.Starting, "gone", vm.Stopped, vm.ReasonStartFailed, vm.OpFailed},
		"a start never let go":               {vm.VMStart, vm.Starting, "prelaunch", vm.Stopped, vm.ReasonStartFailed, vm.OpFailed},
		"a start that had worked":            {vm.VMStart, vm.Starting, "running", vm.Running, vm.ReasonRequested, vm.OpSucceeded},
		"a start that does not answer":       {vm.VMStart, vm.Starting, "", vm.Errored, vm.ReasonUnreachable, vm.OpFailed},
		"a stop that the guest has not seen": {vm.VMStop, vm.Stopping, "running", vm.Running, vm.ReasonRequested, vm.OpFailed},
		"a stop that had worked":             {vm.VMStop, vm.Stopping, "gone", vm.Stopped, vm.ReasonRequested, vm.OpSucceeded},
		"a stop of a guest that is off":      {vm.VMStop, vm.Stopping, "shutdown", vm.Stopped, vm.ReasonRequested, vm.OpSucceeded},
		"a pause that had worked":            {vm.VMPause, vm.Running, "paused", vm.Paused, vm.ReasonMonitor, vm.OpSucceeded},
		"nothing, but it suspended itself":   {"", vm.Running, "suspended", vm.Paused, vm.ReasonSuspended, ""},
		"a deletion before anything":         {vm.VMDelete, vm.Stopping, "running", vm.Running, vm.ReasonRequested, vm.OpFailed},
		"a restart in the middle":            {vm.VMRestart, vm.Starting, "gone", vm.Stopped, vm.ReasonStartFailed, vm.OpFailed},
		"nothing, but it crashed meanwhile":  {"", vm.Running, "gone", vm.Errored, vm.ReasonCrashed, ""},
		"nothing, but it powered itself off": {"", vm.Running, "shutdown", vm.Stopped, vm.ReasonGuestShutdown, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create("a")
			v := w.wantVM("a", vm.Stopped, vm.ReasonCreated)
			v.State, v.Reason = tt.intent, vm.ReasonRequested
			intent := vm.Change{VM: &vm.VMUpdate{From: vm.Stopped, VM: v}}
			id := ""
			if tt.kind != "" {
				id = w.open(tt.kind, "vms/a", intent)
			} else {
				must(t)(w.store.Apply(t.Context(), intent))
			}
			w.driver.Set("a", tt.seen)
			must(t)(w.Recover(t.Context()))
			w.wantVM("a", tt.want, tt.why)
			if id != "" {
				op, err := w.store.Operation(t.Context(), id)
				if err != nil || op.State != tt.ended {
					t.Errorf("the operation is %+v, %v; want %s", op, err, tt.ended)
				}
			}
			if tt.want == vm.Stopped && w.driver.Processes() != 0 {
				t.Error("a process is left")
			}
		})
	}
}

func TestARestartCutShortCanBeRepeated(t *testing.T) {
	for _, recorded := range []vm.State{vm.Stopping, vm.Starting} {
		t.Run(string(recorded), func(t *testing.T) {
			w := newWorld(t)
			w.create("a")
			w.do("a", vm.OpStart)
			v := w.wantVM("a", vm.Running, vm.ReasonRequested)
			v.State = recorded
			w.open(vm.VMRestart, "vms/a", vm.Change{VM: &vm.VMUpdate{From: vm.Running, VM: v}})
			w.driver.Set("a", "gone")
			must(t)(w.Recover(t.Context()))
			w.do("a", vm.OpRestart)
			w.wantVM("a", vm.Running, vm.ReasonRequested)
			if n := w.driver.Processes(); n != 1 {
				t.Errorf("%d processes", n)
			}
		})
	}
}

func TestHalfMadeThingsAreRemoved(t *testing.T) {
	w := newWorld(t)
	w.driver.AddVMFiles("half")
	w.driver.AddVMFiles("gone")
	must(t)(w.driver.CreateDisk(t.Context(), "half", vm.DiskFile{SizeMiB: 1}, nil, nil))
	must(t)(w.driver.CreateDisk(t.Context(), "gone", vm.DiskFile{SizeMiB: 1}, nil, nil))
	for _, id := range []string{
		w.open(vm.VMCreate, "vms/half", vm.Change{}),
		w.open(vm.VMDelete, "vms/gone", vm.Change{}),
		w.open(vm.DiskCreate, "disks/half", vm.Change{NewDisk: &vm.Disk{ID: "half", DiskFile: vm.DiskFile{SizeMiB: 1}, State: vm.DiskCreating, CreatedAt: time.Now()}}),
		w.open(vm.DiskDelete, "disks/gone", vm.Change{}),
	} {
		t.Cleanup(func() {
			op, err := w.store.Operation(context.Background(), id)
			want := map[bool]vm.OpState{true: vm.OpSucceeded, false: vm.OpFailed}[strings.Contains(id, "delete")]
			if err != nil || op.State != want {
				t.Errorf("operation %s is %s, %v; want %s", id, op.State, err, want)
			}
		})
	}
	must(t)(w.Recover(t.Context()))
	s, err := w.driver.Survey(t.Context())
	if err != nil || len(s.VMFiles) != 0 || len(s.DiskFiles) != 0 {
		t.Errorf("left: %+v, %v", s, err)
	}
	_, err = w.store.Disk(t.Context(), "half")
	wantCode(t, err, vm.CodeNotFound)
}

func TestAnOutcomeThatCannotBeRecordedIsSettledLater(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	full := true
	var mu sync.Mutex
	w.store.fail = func(c vm.Change) error {
		mu.Lock()
		defer mu.Unlock()
		if full && c.Operation != nil && c.Operation.State.Ended() {
			return &vm.Fault{Code: vm.CodeInsufficientStorage, Detail: "no room"}
		}
		return nil
	}
	w.do("a", vm.OpStart)
	w.wantVM("a", vm.Starting, vm.ReasonRequested)
	mu.Lock()
	full = false
	mu.Unlock()
	r, err := w.Settle(t.Context(), vm.VMResource("a"))
	if err != nil || !r.Changed || r.Was != "starting/requested" || r.Is != "running/requested" {
		t.Errorf("settled: %+v, %v", r, err)
	}
	ops, err := w.store.Operations(t.Context(), vm.OperationFilter{Open: true}, vm.Page{})
	if err != nil || len(ops) != 0 {
		t.Errorf("open operations: %+v, %v", ops, err)
	}
}

func TestAnIntentNobodyActsOnIsResolvedBeforeTheNext(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	v := w.wantVM("a", vm.Stopped, vm.ReasonCreated)
	v.State = vm.Stopping
	must(t)(w.store.Apply(t.Context(), vm.Change{VM: &vm.VMUpdate{From: vm.Stopped, VM: v}}))
	w.do("a", vm.OpStart)
	w.wantVM("a", vm.Running, vm.ReasonRequested)
}

func TestManyClientsOnFewVMs(t *testing.T) {
	w := newWorld(t)
	ids := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	for _, id := range ids {
		w.create(id)
	}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 20 {
				id := ids[rand.IntN(len(ids))]
				op := actions[rand.IntN(len(actions))]
				_, o, err := w.VMs.Do(t.Context(), id, op, vm.StopOptions{Force: rand.IntN(2) == 0})
				if err == nil {
					_, err = w.Operations.Wait(t.Context(), o.ID)
				} else if errors.Is(err, vm.ErrState) || errors.Is(err, vm.ErrBusy) {
					err = nil
				}
				if err != nil {
					t.Errorf("%s %s: %v", op, id, err)
				}
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		v, err := w.store.VM(t.Context(), id)
		if err != nil || v.State.Transitional() {
			t.Errorf("vm %s ended as %s, %v", id, v.State, err)
		}
	}
	if open, err := w.store.Operations(t.Context(), vm.OperationFilter{Open: true}, vm.Page{}); err != nil || len(open) != 0 {
		t.Errorf("open operations: %d, %v", len(open), err)
	}
}

// actions is what can be asked of a VM that exists.
var actions = []vm.Op{vm.OpStart, vm.OpStop, vm.OpRestart, vm.OpPause, vm.OpResume, vm.OpReset, vm.OpNMI}
