package observer

import (
	"context"
	"fmt"

	"vmand/vm"
)

// networks compares the networks on the host with the records and repairs them. It returns
// the differences and problems, each with its result.
func (o *Observer) networks(ctx context.Context, vms []vm.VM) (plan []Action, results []result) {
	repair := o.o.Repair == RepairAuto
	seen, err := guard(o.log, func() (vm.NetworkSurvey, error) { return o.nets.Reconcile(ctx, vms, repair) })
	if err != nil {
		seen.Drift = append(seen.Drift, vm.Drift{
			Resource: vm.Resource{Kind: vm.NetworkKind},
			Details:  "vmand cannot inspect the networks of the host",
			Err:      err,
		})
	}
	for _, d := range seen.Drift {
		r := result{}
		switch {
		case d.Err != nil:
			r = result{outcome: failed, err: d.Err}
		case d.Repaired:
			r = result{outcome: repaired, repair: vm.Repair{Changed: true, Detail: "restored the recorded configuration"}}
		}
		plan = append(plan, Action{Type: NetworkDrift, Resource: d.Resource, Details: d.Details, Passes: 1})
		results = append(results, r)
	}
	problems := problemActions(seen.Problems)
	return append(plan, problems...), append(results, make([]result, len(problems))...)
}

// problemActions returns one action for the problems of each kind of a resource.
func problemActions(problems []vm.NetworkProblem) (actions []Action) {
	index := map[finding]int{}
	for _, p := range problems {
		details := p.Detail
		if p.Fix != "" {
			details += ": " + p.Fix
		}
		key := finding{IssueType(p.Kind), p.Resource}
		if i, found := index[key]; found {
			actions[i].Details += "; " + details
			continue
		}
		index[key] = len(actions)
		actions = append(actions, Action{Type: key.issue, Resource: p.Resource, Details: details, Passes: 1})
	}
	return actions
}

// nics plans for a VM with a NIC in a transitional state, or with NICs in QEMU that differ
// from the records. It plans at most one action.
func (p *planner) nics(v vm.VM) {
	resource := vm.VMResource(v.ID)
	for _, n := range v.NICs {
		if n.State != vm.NICAttached {
			p.repair(RuntimeDrift, resource, 2,
				fmt.Sprintf("NIC %d is recorded as %s, but no operation is running", n.Slot, n.State),
				fmt.Sprintf("finished the interrupted change of NIC %d", n.Slot))
			return
		}
	}
	seen := p.seen.VMs[v.ID]
	if !seen.Alive() || seen.NICs == nil {
		return
	}
	recorded := make(map[int]bool, len(v.NICs))
	for _, n := range v.NICs {
		recorded[n.Slot] = true
	}
	for _, slot := range seen.NICs {
		if !recorded[slot] {
			p.report(RuntimeDrift, resource, 2,
				"QEMU process %d has a NIC in slot %d, which is not recorded; vmand does not unplug it", seen.PID, slot)
			return
		}
		delete(recorded, slot)
	}
	for _, n := range v.NICs {
		if recorded[n.Slot] {
			p.report(RuntimeDrift, resource, 2,
				"NIC %d is recorded, but QEMU process %d does not have it; the next start of the VM plugs it",
				n.Slot, seen.PID)
			return
		}
	}
}
