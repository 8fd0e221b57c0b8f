package manager

import (
	"context"
	"time"

	"vmand/vm"
)

var vmEdit = verb{
	kind: vm.VMEdit, timeout: recordTimeout, edit: true,
	cleanup: leavesNothing, reached: recordedWithIntent, answer: vm.AnswerResource,
}

// Update changes what is recorded of a VM, in any state, and returns it.
func (s *VMs) Update(ctx context.Context, id string, e vm.VMEdits, match vm.Match) (vm.VM, error) {
	record := recording(func(ctx context.Context) (vm.Change, error) {
		v, err := s.store.VM(ctx, id)
		if err != nil {
			return vm.Change{}, err
		}
		if err := match.Check("VM "+id, v.Version()); err != nil {
			return vm.Change{}, err
		}
		if err := e.Apply(&v); err != nil {
			return vm.Change{}, err
		}
		if !vm.WantsRestart(v) {
			v.RestartAt = time.Time{}
		} else if v.RestartAt.IsZero() {
			vm.PlanRestart(&v, now())
		}
		return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}, nil
	})
	if _, err := s.begin(ctx, vmEdit.request(record, vm.VMResource(id))); err != nil {
		return vm.VM{}, err
	}
	return s.store.VM(ctx, id)
}
