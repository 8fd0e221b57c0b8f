package manager

import (
	"context"
	"time"

	"vmand/failpoint"
	"vmand/vm"
)

var vmDelete = verb{
	kind: vm.VMDelete, timeout: 2 * time.Minute, claim: claim{preempt: true, patient: true},
	cleanup: removeUnrecordedVM, reached: exists(false), answer: vm.AnswerNothing,
	points: []string{"stop.quit", "stop.exited", "run.removed", "vm.delete.row-gone", "files.removed"},
}

// Delete ends the VM in any state, detaches its data disks and removes it with its root
// disk. It cancels the operation that holds the VM. While an operation copies the root
// disk, Delete fails with [vm.CodeBusy], unless force cancels that one too.
func (s *VMs) Delete(ctx context.Context, id string, match vm.Match, force bool) error {
	v, err := s.store.VM(ctx, id) // before anything is cancelled for it
	if err != nil {
		return err
	}
	if err := match.Check("VM "+id, v.Version()); err != nil {
		return err
	}
	q := vmDelete.request(&deletion{s: s, id: id}, vm.VMResource(id))
	q.claim.force = force
	_, err = s.run(ctx, q)
	return err
}

// A deletion is one [VMs.Delete].
type deletion struct {
	s  *VMs
	id string
}

func (d *deletion) intent(ctx context.Context, _ *run) (vm.Change, error) {
	v, err := d.s.settled(ctx, d.id)
	if err != nil {
		return vm.Change{}, err
	}
	from := v.State
	via, _, ok := from.Begin(vm.OpDelete)
	if !ok {
		return vm.Change{}, refusal(v, vm.OpDelete)
	}
	v.State, v.Reason, v.ReasonDetail, v.Desired = via, vm.ReasonRequested, "", vm.DesiredStopped
	return vm.Change{VM: &vm.VMUpdate{From: from, VM: v}}, nil
}

// act deletes the record of the VM before it removes its files: a kill in between leaves files that the
// open operation accounts for, never a VM without its disk.
func (d *deletion) act(ctx context.Context, r *run) (vm.Change, error) {
	s := d.s
	if err := s.driver.Shutdown(ctx, d.id, vm.StopOptions{Force: true}, r.report); err != nil {
		return vm.Change{}, err
	}
	if err := s.network.Disconnect(ctx, d.id); err != nil {
		return vm.Change{}, err
	}
	disks, err := s.store.Disks(ctx, vm.DiskFilter{VMID: d.id}, vm.Page{})
	if err != nil {
		return vm.Change{}, err
	}
	gone := vm.Change{DeleteVM: d.id}
	for _, disk := range disks {
		gone.Disks = append(gone.Disks, disk.Released(""))
	}
	r.report("remove-files", "")
	op := r.snapshot()
	gone.Operation = &op
	if err := s.apply(ctx, gone); err != nil {
		return vm.Change{}, err
	}
	failpoint.Hit("vm.delete.row-gone")
	return vm.Change{}, s.driver.DeleteVM(ctx, d.id)
}

func (d *deletion) truth(ctx context.Context) (vm.Change, error) { return d.s.truth(ctx, d.id) }
