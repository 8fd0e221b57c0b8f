package manager

import (
	"context"
	"net/netip"
	"slices"

	"vmand/vm"
)

// Forwards adds and removes port forwards to VMs.
type Forwards struct{ *Engine }

var forwardAdd = verb{
	kind: vm.ForwardAdd, timeout: deviceTimeout, preemptible: true, edit: true,
	cleanup: removeHalfForward, reached: hasForward(true), answer: vm.AnswerCreatedTarget,
}

var forwardRemove = verb{
	kind: vm.ForwardRemove, timeout: deviceTimeout, preemptible: true, edit: true,
	cleanup: reapplyRecord, reached: hasForward(false), answer: vm.AnswerNothing,
}

// removeHalfForward removes the forward of an interrupted add: the repeated request
// adds it again.
func removeHalfForward(ctx context.Context, e *Engine, op vm.Operation) error {
	v, err := e.store.VM(ctx, op.Resource.ID)
	if err != nil {
		return ignoreNotFound(err)
	}
	had, i := v.Forwards, forwardIndex(v, op.Target.Forward)
	if i >= 0 {
		v.Forwards = slices.Delete(slices.Clone(had), i, i+1)
	}
	e.reapply(ctx, v, had)
	if i < 0 {
		return nil
	}
	return e.apply(ctx, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
}

// hasForward returns the reached of verbs that add (true) or remove (false) a forward.
func hasForward(want bool) func(context.Context, *Engine, vm.Operation) (bool, error) {
	return func(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
		v, err := e.store.VM(ctx, op.Resource.ID)
		return err == nil && want == (forwardIndex(v, op.Target.Forward) >= 0), ignoreNotFound(err)
	}
}

// Add forwards a port of the host to a port of a guest, at once if the VM runs, and returns
// the recorded forward.
func (s *Forwards) Add(ctx context.Context, vmID string, f vm.PortForward) (vm.PortForward, error) {
	f.ID = "pf-" + randomWord(8)
	if f.Protocol == "" {
		f.Protocol = vm.TCP
	}
	if !f.HostAddress.IsValid() {
		f.HostAddress = netip.IPv4Unspecified()
	}
	f.Ports = f.Count()
	if err := f.Check(); err != nil {
		return f, err
	}
	return f, s.VMs.liveEdit(ctx, &forwardAdd, &liveEdit{id: vmID, change: &forwardAddition{s: s, f: f}})
}

// A forwardAddition is one [Forwards.Add].
type forwardAddition struct {
	s   *Forwards
	f   vm.PortForward
	had []vm.PortForward
}

func (a *forwardAddition) edit(ctx context.Context, _ *run, v *vm.VM) (vm.Target, error) {
	target := vm.Target{Forward: a.f.ID}
	n, err := v.NIC(a.f.Slot)
	if err != nil {
		return target, vm.InvalidField("/nic", "VM %s has no NIC in slot %d", v.ID, a.f.Slot)
	}
	if n.Mode != vm.NetworkNAT && n.Mode != vm.NetworkUser {
		return target, vm.InvalidField("/nic",
			"NIC %d is on a network of mode %s: ports are forwarded on networks of mode nat and user", a.f.Slot, n.Mode)
	}
	if err := a.s.network.Check(n.Mode); err != nil {
		return target, err
	}
	if err := checkFamily(a.f, n); err != nil {
		return target, err
	}
	a.had = v.Forwards
	v.Forwards = append(slices.Clone(v.Forwards), a.f)
	if err := v.CheckForwards(); err != nil {
		return target, err
	}
	return target, a.s.network.CheckHostPorts(ctx, a.f)
}

// checkFamily returns a fault if a NIC has no address of the family of a forward.
func checkFamily(f vm.PortForward, n vm.NIC) error {
	switch {
	case !f.HostAddress.Is6() || n.IPv6.IsValid():
		return nil
	case n.Mode == vm.NetworkUser:
		return vm.InvalidField("/host_address",
			"NIC %d is on a network of mode user, which forwards IPv4 only: use an IPv4 address", n.Slot)
	}
	return vm.InvalidField("/host_address",
		"NIC %d has no IPv6 address, since network %s has no ipv6_subnet: use an IPv4 address", n.Slot, n.Network)
}

func (a *forwardAddition) apply(ctx context.Context, v vm.VM) error {
	return a.s.listen(ctx, v, a.f.Slot, a.had)
}

// Remove ends a port forward, at once if the VM runs.
func (s *Forwards) Remove(ctx context.Context, vmID, id string, match vm.Match) error {
	edit := &liveEdit{id: vmID, match: match, late: true, change: &forwardRemoval{s: s, id: id}}
	return s.VMs.liveEdit(ctx, &forwardRemove, edit)
}

// A forwardRemoval is one [Forwards.Remove].
type forwardRemoval struct {
	s    *Forwards
	id   string
	had  []vm.PortForward
	slot int
}

func (x *forwardRemoval) edit(_ context.Context, _ *run, v *vm.VM) (vm.Target, error) {
	i := forwardIndex(*v, x.id)
	if i < 0 {
		return vm.Target{}, vm.NotFound("port forward", x.id+" of VM "+v.ID)
	}
	x.had, x.slot = v.Forwards, v.Forwards[i].Slot
	v.Forwards = slices.Delete(slices.Clone(v.Forwards), i, i+1)
	return vm.Target{Forward: x.id}, nil
}

func (x *forwardRemoval) apply(ctx context.Context, v vm.VM) error {
	return x.s.listen(ctx, v, x.slot, x.had)
}

// listen makes a running VM's forwards to the NIC in a slot match its record.
func (s *Forwards) listen(ctx context.Context, v vm.VM, slot int, had []vm.PortForward) error {
	if n, err := v.NIC(slot); err == nil && n.Mode == vm.NetworkUser {
		return s.driver.SetForwards(ctx, v.ID, slot, vm.ForwardsTo(had, slot), vm.ForwardsTo(v.Forwards, slot))
	}
	return s.NICs.applyNetwork(ctx, v)
}
