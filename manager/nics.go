package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmand/failpoint"
	"vmand/vm"
)

// NICs plugs, unplugs and changes the NICs of VMs.
type NICs struct {
	*Engine
	reserved reservations
}

var nicAttach = verb{
	kind: vm.NICAttach, timeout: deviceTimeout, preemptible: true, edit: true,
	cleanup: leavesNothing, reached: nicAttached, answer: vm.AnswerCreatedTarget,
	points: slices.Concat(connectPoints, []string{"nic.files-passed", "nic.netdev-added", "nic.device-added"}),
}

var nicDetach = verb{
	kind: vm.NICDetach, timeout: deviceTimeout, preemptible: true, edit: true,
	cleanup: leavesNothing, reached: nicGone, answer: vm.AnswerNothing,
	points: []string{"nic.device-deleted", "nic.netdev-deleted"},
}

var nicUpdate = verb{
	kind: vm.NICUpdate, timeout: deviceTimeout, preemptible: true, edit: true,
	cleanup: reapplyRecord, reached: recordedWithIntent, answer: vm.AnswerTarget,
}

// nicOf returns the NIC that an operation works on.
func nicOf(ctx context.Context, e *Engine, op vm.Operation) (vm.NIC, error) {
	if op.Target.NIC == nil {
		return vm.NIC{}, vm.NotFound("NIC of VM "+op.Resource.ID, "")
	}
	v, err := e.store.VM(ctx, op.Resource.ID)
	if err != nil {
		return vm.NIC{}, err
	}
	return v.NIC(*op.Target.NIC)
}

func nicAttached(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
	n, err := nicOf(ctx, e, op)
	return err == nil && n.State == vm.NICAttached, ignoreNotFound(err)
}

func nicGone(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
	_, err := nicOf(ctx, e, op)
	return errors.Is(err, vm.ErrNotFound), ignoreNotFound(err)
}

// Attach gives a VM another NIC, plugging it in if the VM runs, and returns the NIC.
func (s *NICs) Attach(ctx context.Context, vmID string, want vm.NewNIC) (vm.NIC, vm.Operation, error) {
	a := &nicAttachment{s: s, vmID: vmID, want: want}
	op, err := s.run(ctx, nicAttach.request(a, vm.VMResource(vmID)))
	return a.n, op, err
}

// A nicAttachment is one [NICs.Attach].
type nicAttachment struct {
	s    *NICs
	vmID string
	want vm.NewNIC
	v    vm.VM
	n    vm.NIC
}

func (a *nicAttachment) intent(ctx context.Context, r *run) (_ vm.Change, err error) {
	if a.v, err = a.s.VMs.settled(ctx, a.vmID); err != nil {
		return vm.Change{}, err
	}
	slot, err := a.v.FreeNICSlot()
	if err != nil {
		return vm.Change{}, err
	}
	if a.n, err = a.s.place(ctx, a.v, slot, a.want, ""); err != nil {
		return vm.Change{}, err
	}
	if a.v.Live() {
		a.n.State = vm.NICAttaching
	}
	r.aim(vm.Target{NIC: &slot})
	r.report("attach", fmt.Sprintf("NIC %d on network %s", slot, a.n.Network))
	a.v.NICs = slices.Insert(slices.Clone(a.v.NICs), a.v.NICIndex(slot), a.n)
	return vm.Change{VM: &vm.VMUpdate{From: a.v.State, VM: a.v}}, nil
}

func (a *nicAttachment) act(ctx context.Context, _ *run) (vm.Change, error) {
	if a.n.State == vm.NICAttached { // the VM does not run: the record is all
		return vm.Change{}, nil
	}
	if err := a.plug(ctx); err != nil {
		return vm.Change{}, err
	}
	a.n.State = vm.NICAttached
	a.v.NICs = slices.Clone(a.v.NICs)
	a.v.NICs[a.v.NICIndex(a.n.Slot)] = a.n
	return vm.Change{VM: &vm.VMUpdate{From: a.v.State, VM: a.v}}, nil
}

func (a *nicAttachment) plug(ctx context.Context) error {
	networks, err := a.s.Networks.of(ctx, a.v)
	if err != nil {
		return err
	}
	ports, err := a.s.network.Connect(ctx, a.v, []vm.NIC{a.n}, networks)
	if err != nil {
		return err
	}
	defer vm.ClosePorts(ports)
	failpoint.Hit("network.connected")
	return a.s.driver.AttachNIC(ctx, a.v.ID, ports[0])
}

func (a *nicAttachment) truth(ctx context.Context) (vm.Change, error) {
	return a.s.VMs.truth(ctx, a.vmID)
}

func (a *nicAttachment) release() { a.s.release([]vm.NIC{a.n}) }

// find returns a VM in a settled state and one of its NICs. It must be called with the VM
// locked.
func (s *NICs) find(ctx context.Context, vmID string, slot int) (vm.VM, vm.NIC, error) {
	v, err := s.VMs.settled(ctx, vmID)
	if err != nil {
		return v, vm.NIC{}, err
	}
	n, err := v.NIC(slot)
	return v, n, err
}

// Detach removes a NIC from a VM. If the VM runs, it unplugs the NIC, for which the guest
// must cooperate, and reports in gone whether it is unplugged. A NIC that the guest has not
// released is returned as detaching: the observer asks again, and the end of QEMU removes it.
func (s *NICs) Detach(
	ctx context.Context, vmID string, slot int, match vm.Match,
) (n vm.NIC, gone bool, op vm.Operation, err error) {
	x := &nicDetachment{s: s, vmID: vmID, slot: slot, match: match}
	r, err := s.begin(ctx, nicDetach.request(x, vm.VMResource(vmID)))
	if err != nil {
		return x.n, false, vm.Operation{}, err
	}
	op, err = r.wait(ctx)
	if err != nil && !errors.Is(err, vm.ErrUnavailable) {
		return x.n, false, op, err
	}
	v, lookErr := s.store.VM(context.WithoutCancel(ctx), vmID)
	if lookErr == nil {
		n, lookErr = v.NIC(slot)
	}
	switch {
	case errors.Is(lookErr, vm.ErrNotFound):
		return x.n, true, op, nil
	case lookErr != nil:
		return x.n, false, op, lookErr
	case n.State == vm.NICDetaching:
		return n, false, op, nil
	}
	return n, false, op, err
}

// A nicDetachment is one [NICs.Detach].
type nicDetachment struct {
	s     *NICs
	vmID  string
	slot  int
	match vm.Match
	v     vm.VM
	n     vm.NIC
}

func (x *nicDetachment) intent(ctx context.Context, r *run) (_ vm.Change, err error) {
	if x.v, x.n, err = x.s.find(ctx, x.vmID, x.slot); err != nil {
		return vm.Change{}, err
	}
	if err := x.match.Check("VM "+x.vmID, x.v.Version()); err != nil {
		return vm.Change{}, err
	}
	r.aim(vm.Target{NIC: &x.slot})
	r.report("detach", fmt.Sprintf("NIC %d from network %s", x.slot, x.n.Network))
	from := x.v.State
	if x.v.Live() {
		x.n.State, x.n.Reason = vm.NICDetaching, ""
		x.v.NICs = slices.Clone(x.v.NICs)
		x.v.NICs[x.v.NICIndex(x.slot)] = x.n
	} else {
		x.v.RemoveNIC(x.slot)
	}
	return vm.Change{VM: &vm.VMUpdate{From: from, VM: x.v}}, nil
}

func (x *nicDetachment) act(ctx context.Context, _ *run) (vm.Change, error) {
	if x.n.State != vm.NICDetaching { // the VM does not run: the record is all
		return vm.Change{}, nil
	}
	if err := x.s.driver.DetachNIC(ctx, x.vmID, x.slot); err != nil {
		return vm.Change{}, err
	}
	x.v.RemoveNIC(x.slot)
	return vm.Change{VM: &vm.VMUpdate{From: x.v.State, VM: x.v}}, x.s.applyNetwork(ctx, x.v)
}

func (x *nicDetachment) truth(ctx context.Context) (vm.Change, error) {
	return x.s.VMs.truth(ctx, x.vmID)
}

// Update changes a NIC, at once if the VM runs, and returns it.
func (s *NICs) Update(ctx context.Context, vmID string, slot int, e vm.NICEdits, match vm.Match) (vm.NIC, error) {
	u := &nicChange{s: s, slot: slot, edits: e}
	err := s.VMs.liveEdit(ctx, &nicUpdate, &liveEdit{id: vmID, match: match, change: u})
	return u.n, err
}

// A nicChange is one [NICs.Update].
type nicChange struct {
	s      *NICs
	slot   int
	edits  vm.NICEdits
	n, was vm.NIC
}

func (u *nicChange) edit(ctx context.Context, _ *run, v *vm.VM) (_ vm.Target, err error) {
	target := vm.Target{NIC: &u.slot}
	if u.n, err = v.NIC(u.slot); err != nil {
		return target, err
	}
	u.was = u.n
	u.edits.Apply(&u.n)
	if u.n.RateIn != u.was.RateIn || u.n.RateOut != u.was.RateOut || u.edits.Extra != nil {
		if err := u.s.network.Check(u.n.Mode); err != nil {
			return target, err
		}
	}
	if u.edits.Extra != nil {
		network, err := u.s.store.Network(ctx, u.n.Network)
		if err != nil {
			return target, err
		}
		if err := network.CheckExtraAddresses("/extra_addresses", u.n.Extra); err != nil {
			return target, err
		}
	}
	v.NICs = slices.Clone(v.NICs)
	v.NICs[v.NICIndex(u.slot)] = u.n
	return target, u.n.CheckRates("")
}

func (u *nicChange) apply(ctx context.Context, v vm.VM) error {
	if u.n.LinkDown != u.was.LinkDown {
		if err := u.s.driver.SetLink(ctx, v.ID, u.slot, !u.n.LinkDown); err != nil {
			return err
		}
	}
	return u.s.applyNetwork(ctx, v)
}

// applyNetwork updates taps, firewall and forwards of a VM to match its record.
func (s *NICs) applyNetwork(ctx context.Context, v vm.VM) error {
	networks, err := s.Networks.of(ctx, v)
	if err != nil {
		return err
	}
	return s.network.Update(ctx, v, networks)
}

// nicPatience is the time that settling, which holds the VM's lock, waits for a guest to
// release a NIC. The next settling asks again.
const nicPatience = time.Second

// truth returns the NICs that v really has. It removes leftovers of unplugged NICs from QEMU
// and repeats unfinished unplug requests. It must be called with the VM locked.
func (s *NICs) truth(ctx context.Context, v vm.VM, seen vm.Observation) ([]vm.NIC, error) {
	have, unplug := vm.SettleNICs(v.NICs, seen)
	if !seen.Alive() {
		return have, nil
	}
	ctx, stop := context.WithTimeout(ctx, nicPatience)
	defer stop()
	for _, n := range v.NICs {
		gone := !hasSlot(have, n.Slot)
		if !gone && !slices.Contains(unplug, n.Slot) {
			continue
		}
		switch err := s.driver.DetachNIC(ctx, v.ID, n.Slot); {
		case err == nil:
			have = slices.DeleteFunc(have, func(h vm.NIC) bool { return h.Slot == n.Slot })
		case gone:
			return nil, fmt.Errorf("remove the leftovers of NIC %d from the QEMU of VM %s: %w", n.Slot, v.ID, err)
		}
	}
	return have, nil
}

func hasSlot(nics []vm.NIC, slot int) bool {
	return slices.ContainsFunc(nics, func(n vm.NIC) bool { return n.Slot == slot })
}

// settleOf sets the NICs of v and their backends on the host to the true state, and reports
// whether that changed v.
func (s *NICs) settleOf(ctx context.Context, v *vm.VM, seen vm.Observation) (bool, error) {
	have, err := s.truth(ctx, *v, seen)
	if err != nil || slices.EqualFunc(have, v.NICs, vm.NIC.Equal) {
		return false, err
	}
	for _, n := range v.NICs {
		if !hasSlot(have, n.Slot) {
			v.RemoveNIC(n.Slot)
		}
	}
	v.NICs = have
	if !seen.Alive() {
		return true, nil
	}
	return true, s.applyNetwork(ctx, *v)
}
