package manager

import (
	"context"
	"errors"
	"slices"
	"time"

	"vmand/vm"
)

// deviceTimeout bounds a change of a device; the guest has less.
const deviceTimeout = 30 * time.Second

// A liveEdit is an edit of a VM that takes effect at once if the VM runs: edit changes the
// record, and apply the running VM. If apply fails, the record is restored.
type liveEdit struct {
	s     *VMs
	id    string
	match vm.Match
	// late edits are recorded after apply has succeeded, so that a removed device stays
	// recorded until QEMU has released it.
	late bool
	change
	was, v vm.VM // before and after edit
}

// A change is what differs from one live edit to another.
type change interface {
	// edit changes v, which is in a settled state, and returns the operation's target.
	edit(ctx context.Context, r *run, v *vm.VM) (vm.Target, error)
	// apply makes the running VM match v.
	apply(ctx context.Context, v vm.VM) error
}

// A seedChange is a change that also records a seed.
type seedChange interface {
	change
	seed() *vm.Seed
}

func (l *liveEdit) intent(ctx context.Context, r *run) (_ vm.Change, err error) {
	if l.v, err = l.s.settled(ctx, l.id); err != nil {
		return vm.Change{}, err
	}
	if err := l.match.Check("VM "+l.id, l.v.Version()); err != nil {
		return vm.Change{}, err
	}
	l.was = l.v
	target, err := l.edit(ctx, r, &l.v)
	if err != nil {
		return vm.Change{}, err
	}
	target.Recorded = !l.late || !l.v.Live()
	r.aim(target)
	if !target.Recorded {
		return vm.Change{}, nil
	}
	if l.late {
		r.report("recorded", "for the next start")
	}
	return l.edited(), nil
}

func (l *liveEdit) edited() vm.Change {
	c := vm.Change{VM: &vm.VMUpdate{From: l.v.State, VM: l.v}}
	if s, ok := l.change.(seedChange); ok {
		c.Seed = s.seed()
	}
	return c
}

func (l *liveEdit) act(ctx context.Context, _ *run) (vm.Change, error) {
	if !l.v.Live() {
		return vm.Change{}, nil
	}
	if err := l.apply(ctx, l.v); err != nil || !l.late {
		return vm.Change{}, err
	}
	return l.edited(), nil
}

func (l *liveEdit) truth(ctx context.Context) (vm.Change, error) {
	v, err := l.s.store.VM(ctx, l.id)
	if err != nil || l.late {
		return vm.Change{}, err
	}
	v.NICs, v.Forwards, v.CDROMs = l.was.NICs, l.was.Forwards, l.was.CDROMs
	return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}, nil
}

func (l *liveEdit) release() {
	if held, ok := l.change.(releaser); ok {
		held.release()
	}
}

// liveEdit runs one live edit of a VM.
func (s *VMs) liveEdit(ctx context.Context, v *verb, l *liveEdit) error {
	l.s = s
	_, err := s.run(ctx, v.request(l, vm.VMResource(l.id)))
	return err
}

// reapplyRecord is the cleanup of live edits: it makes the running VM match its record.
func reapplyRecord(ctx context.Context, e *Engine, op vm.Operation) error {
	v, err := e.store.VM(ctx, op.Resource.ID)
	if err != nil {
		return ignoreNotFound(err)
	}
	e.reapply(ctx, v, v.Forwards)
	return nil
}

// reapply sets everything of a running VM's NICs and drives that a live edit can change.
// QEMU may have any of the forwards in had, so it removes all of them first. It is best
// effort: the next start of the VM does the same.
func (e *Engine) reapply(ctx context.Context, v vm.VM, had []vm.PortForward) {
	if !e.driver.Observe(ctx, v.ID).Alive() {
		return
	}
	errs := []error{e.CDROMs.plug(ctx, v)}
	for _, n := range v.NICs {
		errs = append(errs, e.driver.SetLink(ctx, v.ID, n.Slot, !n.LinkDown))
		if n.Mode == vm.NetworkUser && len(had) > 0 {
			errs = append(errs,
				e.driver.SetForwards(ctx, v.ID, n.Slot, vm.ForwardsTo(had, n.Slot), nil),
				e.driver.SetForwards(ctx, v.ID, n.Slot, nil, vm.ForwardsTo(v.Forwards, n.Slot)))
		}
	}
	errs = append(errs, e.NICs.applyNetwork(ctx, v))
	if err := errors.Join(errs...); err != nil {
		e.log.Warn("cannot apply the recorded NICs and drives to a running VM; its next start will", "vm", v.ID, "err", err)
	}
}

// recordedOnly reports whether the edit of an operation is recorded: either with the
// intent, or, for a late one, in the outcome, after which the operation is not open.
func recordedOnly(_ context.Context, _ *Engine, op vm.Operation) (bool, error) {
	return op.Target.Recorded, nil
}

// forwardIndex returns the index of the forward of an id; -1 if v has none.
func forwardIndex(v vm.VM, id string) int {
	return slices.IndexFunc(v.Forwards, func(f vm.PortForward) bool { return f.ID == id })
}
