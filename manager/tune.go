package manager

import (
	"context"
	"errors"
	"slices"

	"vmand/vm"
)

// A tuning changes something of a VM that a running one takes on at once: edit
// changes what is recorded, apply makes it so. If apply fails, what was recorded
// before is so again.
type tuning struct {
	kind  vm.Kind
	vmID  string
	match vm.Match
	step  func() string // after edit: what [VMs.settleLiveEdit], and who answers a repeated request, know it by; nil for nothing
	// late records what edit has done only once apply has succeeded: what is taken
	// away is recorded until it is gone.
	late  bool
	edit  func(context.Context, *vm.VM) error
	apply func(context.Context, vm.VM) error
	seed  *vm.Seed // to be recorded with it, nil for none
	after func()   // if set, is called once nothing more will be recorded
}

// stepRecorded is the step of an operation that has done its work with its intent.
const stepRecorded = "recorded"

func (s *VMs) liveEdit(ctx context.Context, t tuning) error {
	var was, v vm.VM
	edited := func() vm.Change { return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}, Seed: t.seed} }
	r, err := s.begin(ctx, change{
		kind: t.kind, resources: []string{vm.VMResource(t.vmID)}, timeout: nicTimeout, preemptible: true, after: t.after,
		intent: func(ctx context.Context, r *run) (_ vm.Change, err error) {
			if v, err = s.settled(ctx, t.vmID); err != nil {
				return vm.Change{}, err
			}
			if err := t.match.Check("VM "+t.vmID, v.Version()); err != nil {
				return vm.Change{}, err
			}
			was = v
			if err := t.edit(ctx, &v); err != nil {
				return vm.Change{}, err
			}
			if t.step != nil {
				r.report(t.step(), "")
			}
			if t.late && vm.Live(v) {
				return vm.Change{}, nil
			}
			if t.seed != nil {
				r.report(stepRecorded, "for the next start")
			}
			return edited(), nil
		},
		act: func(ctx context.Context, _ *run) (vm.Change, error) {
			if !vm.Live(v) {
				return vm.Change{}, nil
			}
			if err := t.apply(ctx, v); err != nil || !t.late {
				return vm.Change{}, err
			}
			return edited(), nil
		},
		truth: func(ctx context.Context) (vm.Change, error) {
			now, err := s.store.VM(ctx, t.vmID)
			if err != nil || t.late {
				return vm.Change{}, err
			}
			now.NICs, now.Forwards, now.CDROMs = was.NICs, was.Forwards, was.CDROMs
			return vm.Change{VM: &vm.VMUpdate{From: now.State, VM: now}}, nil
		},
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// settleLiveEdit settles a tuning that was cut short: what is recorded is made so, but a
// forward that was being added, which the request repeated will add again.
func (s *VMs) settleLiveEdit(ctx context.Context, id string, op vm.Operation) error {
	v, err := s.store.VM(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	had := v.Forwards
	if i := slices.IndexFunc(had, func(f vm.PortForward) bool { return f.ID == op.Step }); op.Kind == vm.ForwardAdd && i >= 0 {
		v.Forwards = slices.Delete(slices.Clone(had), i, i+1)
	}
	if s.driver.Observe(ctx, id).Alive() {
		if err := s.reapply(ctx, v, had); err != nil {
			s.log.Warn("cannot make a running VM's network cards and drives as they are recorded; its next start will", "vm_id", id, "err", err)
		}
	}
	if len(v.Forwards) == len(had) {
		return nil
	}
	return s.apply(ctx, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
}

// reapply tells a running VM all that can be tuned of its NICs and its drives. Which forwards
// its QEMU has is not known: those it may have are taken away first.
func (s *VMs) reapply(ctx context.Context, v vm.VM, had []vm.PortForward) error {
	errs := []error{s.CDROMs.plug(ctx, v)}
	for _, n := range v.NICs {
		errs = append(errs, s.driver.SetLink(ctx, v.ID, n.Slot, !n.LinkDown))
		if n.Mode == vm.NetworkUser && len(had) > 0 {
			errs = append(errs, s.driver.SetForwards(ctx, v.ID, n.Slot, vm.ForwardsTo(had, n.Slot), nil),
				s.driver.SetForwards(ctx, v.ID, n.Slot, nil, vm.ForwardsTo(v.Forwards, n.Slot)))
		}
	}
	return errors.Join(append(errs, s.NICs.applyNetwork(ctx, v))...)
}
