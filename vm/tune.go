package vm

import (
	"context"
	"errors"
	"slices"
)

// A tuning changes something of a VM that a running one takes on at once: edit
// changes what is recorded, apply makes it so. If apply fails, what was recorded
// before is so again.
type tuning struct {
	kind  Kind
	vmID  string
	match Match
	step  func() string // after edit: what [Manager.retune], and who answers a repeated request, know it by; nil for nothing
	// late records what edit has done only once apply has succeeded: what is taken
	// away is recorded until it is gone.
	late  bool
	edit  func(context.Context, *VM) error
	apply func(context.Context, VM) error
	seed  *Seed  // to be recorded with it, nil for none
	after func() // if set, is called once nothing more will be recorded
}

// stepRecorded is the step of an operation that has done its work with its intent.
const stepRecorded = "recorded"

func (m *Manager) tune(ctx context.Context, t tuning) error {
	var was, v VM
	edited := func() Change { return Change{VM: &VMUpdate{From: v.State, VM: v}, Seed: t.seed} }
	r, err := m.begin(ctx, change{
		kind: t.kind, resources: []string{VMResource(t.vmID)}, timeout: nicTimeout, preemptible: true, after: t.after,
		intent: func(ctx context.Context, r *run) (_ Change, err error) {
			if v, err = m.settled(ctx, t.vmID); err != nil {
				return Change{}, err
			}
			if err := t.match.check("VM "+t.vmID, Version{v.Seq, v.Revision}); err != nil {
				return Change{}, err
			}
			was = v
			if err := t.edit(ctx, &v); err != nil {
				return Change{}, err
			}
			if t.step != nil {
				r.report(t.step(), "")
			}
			if t.late && live(v) {
				return Change{}, nil
			}
			if t.seed != nil {
				r.report(stepRecorded, "for the next start")
			}
			return edited(), nil
		},
		act: func(ctx context.Context, _ *run) (Change, error) {
			if !live(v) {
				return Change{}, nil
			}
			if err := t.apply(ctx, v); err != nil || !t.late {
				return Change{}, err
			}
			return edited(), nil
		},
		truth: func(ctx context.Context) (Change, error) {
			now, err := m.store.VM(ctx, t.vmID)
			if err != nil || t.late {
				return Change{}, err
			}
			now.NICs, now.Forwards, now.CDROMs = was.NICs, was.Forwards, was.CDROMs
			return Change{VM: &VMUpdate{From: now.State, VM: now}}, nil
		},
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// retune settles a tuning that was cut short: what is recorded is made so, but a
// forward that was being added, which the request repeated will add again.
func (m *Manager) retune(ctx context.Context, id string, op Operation) error {
	v, err := m.store.VM(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	had := v.Forwards
	if i := slices.IndexFunc(had, func(f PortForward) bool { return f.ID == op.Step }); op.Kind == ForwardAdd && i >= 0 {
		v.Forwards = slices.Delete(slices.Clone(had), i, i+1)
	}
	if m.driver.Observe(ctx, id).Alive() {
		if err := m.reapply(ctx, v, had); err != nil {
			m.log.Warn("cannot make a running VM's network cards and drives as they are recorded; its next start will", "vm_id", id, "err", err)
		}
	}
	if len(v.Forwards) == len(had) {
		return nil
	}
	return m.apply(ctx, Change{VM: &VMUpdate{From: v.State, VM: v}})
}

// reapply tells a running VM all that can be tuned of its NICs and its drives. Which forwards
// its QEMU has is not known: those it may have are taken away first.
func (m *Manager) reapply(ctx context.Context, v VM, had []PortForward) error {
	errs := []error{m.setCDROMs(ctx, v)}
	for _, n := range v.NICs {
		errs = append(errs, m.driver.SetLink(ctx, v.ID, n.Slot, !n.LinkDown))
		if n.Mode == NetworkUser && len(had) > 0 {
			errs = append(errs, m.driver.SetForwards(ctx, v.ID, n.Slot, ForwardsTo(had, n.Slot), nil),
				m.driver.SetForwards(ctx, v.ID, n.Slot, nil, ForwardsTo(v.Forwards, n.Slot)))
		}
	}
	return errors.Join(append(errs, m.passFor(ctx, v))...)
}
