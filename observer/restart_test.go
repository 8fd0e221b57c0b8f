package observer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vmand/vm"
)

// RestartDue restarts a VM whose restart is due, as the manager does.
func (w *world) RestartDue(ctx context.Context, id string) (vm.Operation, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.restarts = append(w.restarts, id)
	if err := w.refuse[id]; err != nil {
		return vm.Operation{}, err
	}
	v := w.vms[id]
	if v.RestartAt.IsZero() || v.RestartAt.After(time.Now()) {
		return vm.Operation{}, &vm.Fault{Code: vm.CodeState, Detail: "no restart is due"}
	}
	v.State, v.Reason, v.RestartAt, v.StartedAt = vm.Running, vm.ReasonRequested, time.Time{}, time.Now()
	v.Restarts++
	w.vms[id] = v
	w.seen.VMs[id] = vm.Observation{PID: 43, Status: vm.StatusRunning}
	w.happen(vm.NewEvent("vm.state", vm.VMResource(id), map[string]any{}))
	return vm.Operation{ID: "op"}, nil
}

// asked returns the number of calls of RestartDue for a VM.
func (w *world) asked(id string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.restarts {
		if r == id {
			n++
		}
	}
	return n
}

// crashed returns a crashed VM with a restart at a time.
func crashed(id string, at time.Time) vm.VM {
	return vm.VM{ID: id, State: vm.Errored, Reason: vm.ReasonCrashed, RestartAt: at}
}

func TestRestartAfterACrashBetweenPasses(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.onSettle = func(v *vm.VM) { v.RestartAt = time.Now().Add(time.Second) }
	observe(t, w, func(o *Observer) {
		after(interval + 500*time.Millisecond)
		w.change(func() { delete(w.seen.VMs, "a") })
		crash := time.Now()
		o.Nudge("a")
		after(900 * time.Millisecond)
		if v := w.recorded("a"); v.State != vm.Errored || w.asked("a") != 0 {
			t.Fatalf("before the restart is due: VM %+v, %d calls; want error and no calls", v, w.asked("a"))
		}
		after(300 * time.Millisecond)
		v := w.recorded("a")
		if late := v.StartedAt.Sub(crash) - time.Second; v.State != vm.Running || late < 0 || late > 200*time.Millisecond {
			t.Errorf("VM %+v, restarted %s late; want running, at most 200 ms late", v, late)
		}
		after(interval)
		if n := w.asked("a"); n != 1 {
			t.Errorf("%d calls of RestartDue, want 1", n)
		}
	})
}

func TestOverdueRestartsBeginAtStart(t *testing.T) {
	w := newWorld()
	for n := range 20 {
		id := fmt.Sprint("vm-", n)
		w.run(id)
		w.vms[id] = crashed(id, time.Unix(1, 0))
		delete(w.seen.VMs, id)
	}
	observe(t, w, func(*Observer) {
		for n := range 20 {
			if v := w.recorded(fmt.Sprint("vm-", n)); v.State != vm.Running {
				t.Errorf("VM %+v, want running", v)
			}
		}
	})
}

func TestRestartAfterAFailedOperation(t *testing.T) {
	w := newWorld()
	w.run("a")
	observe(t, w, func(*Observer) {
		after(time.Second)
		w.change(func() { delete(w.seen.VMs, "a") })
		w.put(crashed("a", time.Now().Add(time.Second)))
		after(1100 * time.Millisecond)
		if v := w.recorded("a"); v.State != vm.Running {
			t.Errorf("VM %+v, want running", v)
		}
		// A cancelled restart does not happen.
		w.change(func() { delete(w.seen.VMs, "a") })
		w.put(crashed("a", time.Now().Add(time.Second)))
		after(500 * time.Millisecond)
		w.put(crashed("a", time.Time{}))
		after(2 * time.Second)
		if n := w.asked("a"); n != 1 {
			t.Errorf("%d calls of RestartDue, want only the first", n)
		}
	})
}

func TestRestartOfABusyVMIsRetriedSoon(t *testing.T) {
	w := newWorld()
	w.run("a")
	observe(t, w, func(*Observer) {
		w.change(func() {
			delete(w.seen.VMs, "a")
			w.refuse["a"] = fmt.Errorf("settling: %w", vm.ErrBusy)
		})
		w.put(crashed("a", time.Now().Add(time.Second)))
		after(1500 * time.Millisecond)
		if n := w.asked("a"); n < 2 || n > 4 {
			t.Errorf("%d calls of RestartDue in half a second, want about 3", n)
		}
		w.change(func() { delete(w.refuse, "a") })
		after(busyPause + newsPause)
		if v := w.recorded("a"); v.State != vm.Running {
			t.Errorf("VM %+v, want running", v)
		}
	})
}

func TestFailedRestartIsRetried(t *testing.T) {
	w := newWorld()
	w.run("a")
	observe(t, w, func(*Observer) {
		w.change(func() {
			delete(w.seen.VMs, "a")
			w.refuse["a"] = &vm.Fault{Code: vm.CodeInsufficientMemory, Detail: "no memory"}
		})
		w.put(crashed("a", time.Now()))
		after(time.Minute)
		if n := w.asked("a"); n < 10 || n > 14 {
			t.Errorf("%d calls of RestartDue in a minute, want about 12", n)
		}
		w.change(func() { delete(w.refuse, "a") })
		after(refusedPause)
		if v := w.recorded("a"); v.State != vm.Running {
			t.Errorf("VM %+v, want running", v)
		}
	})
}

func TestEarlyRestartIsPostponed(t *testing.T) {
	w := newWorld()
	w.run("a")
	observe(t, w, func(o *Observer) {
		at := time.Now().Add(3 * time.Second)
		w.change(func() {
			delete(w.seen.VMs, "a")
			w.vms["a"] = crashed("a", at)
		})
		o.restarts.set("a", time.Now()) // as a pass with outdated records does
		after(2900 * time.Millisecond)
		if n := w.asked("a"); n != 1 {
			t.Errorf("%d calls of RestartDue, want only the early one", n)
		}
		after(200 * time.Millisecond)
		if v := w.recorded("a"); v.State != vm.Running {
			t.Errorf("VM %+v, want running", v)
		}
		o.restarts.set("a", time.Now()) // a restart that is no longer due is dropped
		o.restarts.set("deleted", time.Now())
		after(time.Minute)
		if n, m := w.asked("a"), w.asked("deleted"); n != 3 || m != 1 {
			t.Errorf("%d and %d calls of RestartDue, want 3 and 1", n, m)
		}
	})
}

func TestRestartDoesNotDelayAPass(t *testing.T) {
	w := newWorld()
	w.run("a")
	slow := &slowRestarter{world: w, held: make(chan struct{})}
	synctest.Test(t, func(t *testing.T) {
		w.news, slow.held = make(chan struct{}), make(chan struct{})
		o := New(Options{Interval: interval}, Deps{w, w, slow, slow, slow, discard})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			o.Run(ctx)
			close(done)
		}()
		synctest.Wait()
		w.change(func() { delete(w.seen.VMs, "a") })
		w.put(crashed("a", time.Now()))
		after(3 * interval)
		if surveys, _, _ := w.did(); surveys != 4 {
			t.Errorf("%d surveys in three intervals with a hanging restart, want 4", surveys)
		}
		close(slow.held)
		stop()
		<-done
	})
}

// A slowRestarter blocks until held is closed and ignores its context.
type slowRestarter struct {
	*world
	held chan struct{}
}

func (s *slowRestarter) RestartDue(ctx context.Context, id string) (vm.Operation, error) {
	<-s.held
	return vm.Operation{}, ctx.Err()
}

func TestPassSchedulesRestartsIfEventsCannotBeRead(t *testing.T) {
	for _, what := range []string{"last event", "events", "vm"} {
		t.Run(what, func(t *testing.T) {
			w := newWorld()
			w.run("a")
			w.failRead[what] = errors.New("no luck")
			observe(t, w, func(*Observer) {
				w.change(func() { delete(w.seen.VMs, "a") })
				w.put(crashed("a", time.Now()))
				after(time.Second)
				if n := w.asked("a"); n != 0 {
					t.Fatalf("%d calls of RestartDue, want none before the pass", n)
				}
				after(interval)
				if v := w.recorded("a"); v.State != vm.Running {
					t.Errorf("VM %+v, want running", v)
				}
			})
		})
	}
}

func TestRestartReadsAllPagesOfEvents(t *testing.T) {
	w := newWorld()
	w.run("a")
	observe(t, w, func(*Observer) {
		w.change(func() {
			delete(w.seen.VMs, "a")
			for range 2 * newsPage {
				w.happen(vm.NewEvent("vm.updated", vm.VMResource("other"), map[string]any{}))
			}
		})
		w.put(crashed("a", time.Now()))
		after(2 * newsPause)
		if !slices.Equal(w.restarts, []string{"a"}) {
			t.Errorf("calls of RestartDue for %q, want a", w.restarts)
		}
	})
}
