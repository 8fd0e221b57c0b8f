package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmand/vm"
)

// RestartDue begins the automatic restart of a VM; it fails with a [vm.Fault] of class
// [vm.ErrState] if no restart is due. It returns once the intent is recorded.
func (s *VMs) RestartDue(ctx context.Context, id string) (vm.Operation, error) {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return vm.Operation{}, err
	}
	a := &powerAction{s: s, id: id, op: vm.OpStart, auto: true}
	if v.State == vm.Paused { // a guest that panicked still has its process
		a.op, a.stop = vm.OpRestart, vm.StopOptions{Force: true}
	}
	ctx = vm.WithCaller(ctx, vm.Caller{Name: "restart-policy"})
	_, op, err := s.do(ctx, a)
	return op, err
}

// bootNote is the note with the host's boot for which Autostart is done.
const bootNote = "boot"

// AfterBoot tells the engine which boot of the host this is. After another boot than the
// one for which Autostart is done, VMs that ran before are not restarted by their policy,
// which would disregard the order: Autostart starts them. AfterBoot must be called before
// [Engine.Recover].
func (s *VMs) AfterBoot(ctx context.Context, boot string) error {
	done, err := s.store.Note(ctx, bootNote)
	if err != nil || done == boot {
		return err
	}
	// A stopped VM needs no entry: it was not lost with the boot.
	vms, err := s.store.VMs(ctx, vm.VMFilter{Active: true}, vm.Page{})
	if err != nil {
		return err
	}
	s.before = map[string]time.Time{}
	for _, v := range vms {
		s.before[v.ID] = v.StartedAt
		if v.RestartAt.IsZero() {
			continue
		}
		v.RestartAt = time.Time{}
		if err := s.apply(ctx, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}); err != nil {
			return err
		}
	}
	return nil
}

// Autostart starts, once in each boot of the host, the VMs with autostart that were last
// asked to run, in their order and with their delays. A VM that cannot start does not keep
// the others from starting. It returns when each has had its turn, ctx is done or a stop for a
// shutdown of the host begins; the next daemon does the rest.
func (s *VMs) Autostart(ctx context.Context, boot string) error {
	done, err := s.store.Note(ctx, bootNote)
	if err != nil || done == boot {
		return err
	}
	vms, err := s.store.VMs(ctx, vm.VMFilter{Autostart: true}, vm.Page{})
	if err != nil {
		return err
	}
	slices.SortStableFunc(vms, func(a, b vm.VM) int { return a.Autostart.Order - b.Autostart.Order })
	ctx = vm.WithCaller(ctx, vm.Caller{Name: "autostart"})
	began, _ := s.unasked.count()
	hostStops := func() bool {
		now, refused := s.unasked.count()
		if refused = refused || now != began; refused {
			s.log.Info("no further VM is started with the host: it shuts down")
		}
		return refused
	}
	for i, v := range vms {
		if i > 0 && !sleep(ctx, vms[i-1].Autostart.Delay) {
			return context.Cause(ctx)
		}
		if hostStops() {
			return nil
		}
		_, op, err := s.do(ctx, &powerAction{s: s, id: v.ID, op: vm.OpStart, boot: true})
		if err == nil {
			op, err = s.Operations.Wait(ctx, op.ID)
		}
		if err != nil && !errors.Is(err, vm.ErrState) { // ErrState: it runs already
			s.log.Warn("cannot start a VM with the host", "vm", v.ID, "op", op.ID, "err", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if hostStops() {
		return nil
	}
	return s.store.SetNote(ctx, bootNote, boot)
}

// unasked stops starts without a request while the host shuts down, so that no VM starts after the
// last one has stopped. They are allowed again after a start by request, or with the next daemon.
type unasked struct {
	mu    sync.RWMutex // held for reading while such a start is begun
	stops int          // for a shutdown of the host, since the last start by request
	begun int          // all such stops
}

// begin calls f, which begins a. When a stop for a shutdown of the host is answered, all starts
// without a request are recorded or refused.
func (u *unasked) begin(a *powerAction, f func() (*run, error)) (*run, error) {
	switch {
	case a.auto || a.boot:
		u.mu.RLock()
		defer u.mu.RUnlock()
		if u.stops > 0 {
			return nil, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("VM %s is not started while the host shuts down", a.id)}
		}
		return f()
	case a.stop.HostShutdown:
		// First: the stop may cancel a start after which Autostart would begin the next one.
		u.add(1, 0)
		r, err := f()
		if err != nil {
			u.add(-1, 0)
			return r, err
		}
		u.add(0, 1)
		return r, nil
	}
	r, err := f()
	if err == nil && (a.op == vm.OpStart || a.op == vm.OpRestart) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.stops = 0
	}
	return r, err
}

func (u *unasked) add(stops, begun int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stops = max(u.stops+stops, 0)
	u.begun += begun
}

// count returns how many stops for a shutdown of the host have begun, and whether starts without a
// request are refused.
func (u *unasked) count() (begun int, refused bool) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.begun, u.stops > 0
}

// sleep waits for d. It reports false if ctx was done first.
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
