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

// Update edits the record of a VM, in any state, and returns the VM.
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
		if !v.WantsRestart() {
			v.RestartAt = time.Time{}
		} else if v.RestartAt.IsZero() {
			v.PlanRestart(now())
		}
		return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}, nil
	})
	r, err := s.begin(ctx, vmEdit.request(record, vm.VMResource(id)))
	if err != nil {
		return vm.VM{}, err
	}
	return *r.intended.VM, nil
}
