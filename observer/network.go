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
			Details:  "the networks of the host cannot be looked at",
			Err:      err,
		})
	}
	for _, d := range seen.Drift {
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
