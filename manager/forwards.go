package manager

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"vmand/vm"
)

// Add leads a port of the host to a port of a guest, at once if it runs,
// and returns it as it is recorded.
func (s *Forwards) Add(ctx context.Context, vmID string, f vm.PortForward) (vm.PortForward, error) {
	f.ID = "pf-" + randomWord(8)
	if f.Protocol == "" {
		f.Protocol = vm.TCP
	}
	if !f.HostAddress.IsValid() {
		f.HostAddress = netip.IPv4Unspecified()
	}
	if err := f.Check(); err != nil {
		return f, err
	}
	var had []vm.PortForward
	err := s.VMs.liveEdit(ctx, tuning{kind: vm.ForwardAdd, vmID: vmID, step: func() string { return f.ID }, edit: func(ctx context.Context, v *vm.VM) error {
		n, err := v.NIC(f.Slot)
		if err != nil {
			return vm.InvalidField("/nic", "VM %s has no NIC in slot %d", vmID, f.Slot)
		}
		if n.Mode != vm.NetworkNAT && n.Mode != vm.NetworkUser {
			return vm.InvalidField("/nic", "NIC %d is on a network of mode %s: ports are forwarded on networks of mode nat and user", f.Slot, n.Mode)
		}
		if err := s.network.Check(n.Mode); err != nil {
			return err
		}
		if len(v.Forwards) >= vm.MaxForwards {
			return &vm.Fault{Code: vm.CodeLimitReached, Detail: fmt.Sprintf("VM %s already has %d port forwards, the most there can be", vmID, vm.MaxForwards)}
		}
		had = v.Forwards
		v.Forwards = append(slices.Clone(v.Forwards), f)
		return s.network.CheckHostPort(ctx, f)
	}, apply: func(ctx context.Context, v vm.VM) error { return s.listen(ctx, v, f.Slot, had) }})
	return f, err
}

// Remove ends a port forward, at once if the VM runs.
func (s *Forwards) Remove(ctx context.Context, vmID, id string, match vm.Match) error {
	var had []vm.PortForward
	var slot int
	return s.VMs.liveEdit(ctx, tuning{kind: vm.ForwardRemove, vmID: vmID, match: match, step: func() string { return id }, late: true, edit: func(_ context.Context, v *vm.VM) error {
		i := slices.IndexFunc(v.Forwards, func(f vm.PortForward) bool { return f.ID == id })
		if i < 0 {
			return vm.NotFound("port forward", id+" of VM "+vmID)
		}
		had, slot = v.Forwards, v.Forwards[i].Slot
		v.Forwards = slices.Delete(slices.Clone(v.Forwards), i, i+1)
		return nil
	}, apply: func(ctx context.Context, v vm.VM) error { return s.listen(ctx, v, slot, had) }})
}

// listen makes a running VM's forwards to the NIC in a slot so.
func (s *Forwards) listen(ctx context.Context, v vm.VM, slot int, had []vm.PortForward) error {
	if n, err := v.NIC(slot); err == nil && n.Mode == vm.NetworkUser {
		return s.driver.SetForwards(ctx, v.ID, slot, vm.ForwardsTo(had, slot), vm.ForwardsTo(v.Forwards, slot))
	}
	return s.NICs.applyNetwork(ctx, v)
}
