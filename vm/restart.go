package vm

import (
	"context"
	"errors"
	"slices"
	"time"
)

// RestartPolicy says when a VM that ended without being asked to is started
// again. An explicit stop always wins: only what was last asked to run is ever
// restarted.
type RestartPolicy string

// The policies. A failure is a QEMU that vanished, a guest that panicked, or an
// internal error of QEMU; RestartAlways also restarts a guest that powered
// itself off.
const (
	RestartNever     RestartPolicy = "never"
	RestartOnFailure RestartPolicy = "on-failure"
	RestartAlways    RestartPolicy = "always"
)

// Automatic restarts wait longer each time, and begin anew with a VM that has
// been up for a while.
const (
	firstBackoff = time.Second
	lastBackoff  = 5 * time.Minute
	backoffReset = 10 * time.Minute
)

// planRestart sets when v, which has just been found in its present state, is
// to be restarted, if its policy wants that, and clears what was set otherwise.
func planRestart(v *VM, at time.Time) {
	if !wantsRestart(*v) {
		v.RestartAt = time.Time{}
		return
	}
	if !v.StartedAt.IsZero() && at.Sub(v.StartedAt) >= backoffReset {
		v.Restarts = 0
	}
	v.RestartAt = at.Add(backoff(v.Restarts))
}

// wantsRestart reports whether v's policy asks for a restart from its state.
func wantsRestart(v VM) bool {
	if v.Desired != DesiredRunning {
		return false
	}
	failed := v.State == Errored && v.Reason == ReasonCrashed ||
		v.State == Paused && (v.Reason == ReasonPanicked || v.Reason == ReasonInternalError || v.Reason == ReasonWatchdog) ||
		v.State == Stopped && v.Reason == ReasonStartFailed
	switch v.Restart {
	case RestartOnFailure:
		return failed
	case RestartAlways:
		return failed || v.State == Stopped && v.Reason == ReasonGuestShutdown
	}
	return false
}

// backoff returns how long to wait before restart number n, counted from 0.
func backoff(n int) time.Duration {
	d := firstBackoff
	for ; n > 0 && d < lastBackoff; n-- {
		d *= 2
	}
	return min(d, lastBackoff)
}

// RestartDue restarts a VM whose automatic restart is due; it fails with a
// [Fault] of class [ErrState] if none is. It returns once the intent is
// recorded.
func (m *Manager) RestartDue(ctx context.Context, id string) (Operation, error) {
	v, err := m.store.VM(ctx, id)
	if err != nil {
		return Operation{}, err
	}
	a := &action{m: m, id: id, op: OpStart, auto: true}
	if v.State == Paused { // a guest that panicked still has its process
		a.op, a.stop = OpRestart, StopOptions{Force: true}
	}
	ctx = WithCaller(ctx, Caller{Name: "restart-policy"})
	_, op, err := m.do(ctx, a)
	return op, err
}

// bootNote is the note that holds the host's boot for which Autostart is done.
const bootNote = "boot"

// AfterBoot is told the host's boot before [Manager.Recover] looks for what was
// lost. If it is another than the one for which Autostart is done, what ran in
// the boot before is not restarted by its policy, which would disregard the
// order: what is to start with the host says so.
func (m *Manager) AfterBoot(ctx context.Context, boot string) error {
	done, err := m.store.Note(ctx, bootNote)
	if err != nil || done == boot {
		return err
	}
	vms, err := m.store.VMs(ctx, VMFilter{}, Page{})
	if err != nil {
		return err
	}
	m.before = map[string]time.Time{}
	for _, v := range vms {
		m.before[v.ID] = v.StartedAt
		if v.RestartAt.IsZero() {
			continue
		}
		v.RestartAt = time.Time{}
		if err := m.apply(ctx, Change{VM: &VMUpdate{From: v.State, VM: v}}); err != nil {
			return err
		}
	}
	return nil
}

// lostWithBoot reports whether v, which has no process, was last started before
// the host was booted.
func (m *Manager) lostWithBoot(v VM) bool {
	at, known := m.before[v.ID]
	return known && at.Equal(v.StartedAt)
}

// Autostart starts, once in each boot of the host, the VMs that want to be
// started with it: those that were last asked to run. It goes by their order
// and waits each VM's delay. One that cannot start does not keep the others
// from starting. It returns when all have had their turn or ctx is done; what is
// left then is done by the next call.
func (m *Manager) Autostart(ctx context.Context, boot string) error {
	done, err := m.store.Note(ctx, bootNote)
	if err != nil || done == boot {
		return err
	}
	vms, err := m.store.VMs(ctx, VMFilter{}, Page{})
	if err != nil {
		return err
	}
	vms = slices.DeleteFunc(vms, func(v VM) bool { return !v.Autostart.Enabled || v.Desired != DesiredRunning })
	slices.SortStableFunc(vms, func(a, b VM) int { return a.Autostart.Order - b.Autostart.Order })
	ctx = WithCaller(ctx, Caller{Name: "autostart"})
	for i, v := range vms {
		if i > 0 && !sleep(ctx, vms[i-1].Autostart.Delay) {
			return context.Cause(ctx)
		}
		_, op, err := m.Do(ctx, v.ID, OpStart, StopOptions{})
		if err == nil {
			op, err = m.Wait(ctx, op.ID)
		}
		if err != nil && !errors.Is(err, ErrState) { // it runs already
			m.log.Warn("cannot start a VM with the host", "vm_id", v.ID, "operation", op.ID, "err", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return m.store.SetNote(ctx, bootNote, boot)
}

// sleep waits and reports false if ctx was done first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
