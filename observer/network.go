package observer

import (
	"context"
	"fmt"

	"vmand/vm"
)

// networks compares the networks on the host with the records and has them made
// as they are wanted, and returns what was found with what came of it.
func (o *Observer) networks(ctx context.Context, vms []vm.VM) (plan []Action, results []result) {
	repair := o.o.Repair == RepairAuto
	drift, err := guard(o.log, func() ([]vm.Drift, error) { return o.nets.Reconcile(ctx, vms, repair) })
	if err != nil {
		drift = append(drift, vm.Drift{Resource: vm.Resource{Kind: vm.NetworkKind}, Details: "the networks of the host cannot be looked at", Err: err})
	}
	for _, d := range drift {
		r := result{}
		switch {
		case d.Err != nil:
			r = result{outcome: failed, err: d.Err}
		case d.Repaired:
			r = result{outcome: repaired, repair: vm.Repair{Changed: true, Detail: "made so again"}}
		}
		plan = append(plan, Action{Type: NetworkDrift, Resource: d.Resource, Details: d.Details, Passes: 1})
		results = append(results, r)
	}
	return plan, results
}

// nics finds what a VM's NICs are recorded as while no operation is at work on
// them, and which QEMU contradicts.
func (p *planner) nics(v vm.VM) {
	seen := p.seen.VMs[v.ID]
	for _, n := range v.NICs {
		if n.State != vm.NICAttached {
			p.plan = append(p.plan, Action{Type: RuntimeDrift, Resource: vm.VMResource(v.ID), Settle: true, Passes: 2,
				Details: fmt.Sprintf("nic %d is recorded as %s while no operation is at work on it", n.Slot, n.State),
				Cure:    fmt.Sprintf("finished what was begun with nic %d", n.Slot)})
			return
		}
	}
	if !seen.Alive() || seen.NICs == nil {
		return
	}
	recorded := make(map[int]bool, len(v.NICs))
	for _, n := range v.NICs {
		recorded[n.Slot] = true
	}
	for _, slot := range seen.NICs {
		if !recorded[slot] {
			p.plan = append(p.plan, Action{Type: RuntimeDrift, Resource: vm.VMResource(v.ID), Passes: 2,
				Details: fmt.Sprintf("QEMU process %d has a nic in slot %d, which is not recorded; it is left alone", seen.PID, slot)})
			return
		}
		delete(recorded, slot)
	}
	for _, n := range v.NICs {
		if recorded[n.Slot] {
			p.plan = append(p.plan, Action{Type: RuntimeDrift, Resource: vm.VMResource(v.ID), Passes: 2,
				Details: fmt.Sprintf("nic %d is recorded, and QEMU process %d does not have it; the next start plugs it", n.Slot, seen.PID)})
			return
		}
	}
}
