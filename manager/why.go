package manager

import (
	"context"

	"vmand/vm"
)

const (
	whyOperations = 10
	whyEvents     = 20
	whyBack       = 20_000 // events of all resources; older ones are not read
)

// Why returns the state of a VM in the records, on the host and in QEMU. It is read-only and
// takes no lock.
func (s *VMs) Why(ctx context.Context, id string) (vm.Why, error) {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return vm.Why{}, err
	}
	w := vm.Why{Recorded: v, Seen: s.driver.Observe(ctx, id), Busy: s.locks.holderOf(vm.VMResource(id))}
	w.Verdict = vm.Settle(v.State, v.Reason, w.Seen)
	w.Agrees = w.Verdict.State == v.State && !w.Verdict.End || w.Busy != ""
	if w.Disks, err = s.store.Disks(ctx, vm.DiskFilter{VMID: id}, vm.Page{}); err != nil {
		return vm.Why{}, err
	}
	operations := vm.OperationFilter{Resource: vm.VMResource(id)}
	if w.Operations, err = s.store.Operations(ctx, operations, vm.Page{}); err != nil {
		return vm.Why{}, err
	}
	w.Operations = w.Operations[max(0, len(w.Operations)-whyOperations):]
	last, err := s.store.LastEvent(ctx)
	if err != nil {
		return vm.Why{}, err
	}
	events := vm.EventFilter{Resource: vm.VMResource(id)}
	if w.Events, err = s.store.Events(ctx, events, vm.Page{After: last - whyBack}); err != nil {
		return vm.Why{}, err
	}
	w.Events = w.Events[max(0, len(w.Events)-whyEvents):]
	if w.Flight, err = s.driver.Flight(ctx, id); err != nil {
		return vm.Why{}, err
	}
	w.Blocked = s.network.Blocked(ctx, v)
	w.Words = w.Explain()
	return w, nil
}
