package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmand/vm"
)

// nicPatience is how long a settling waits for a guest to let go of a NIC: it
// holds the VM's lock meanwhile, and comes again.
const nicPatience = time.Second

// truth returns the NICs that v really has. What QEMU has left of one that is
// no more is removed; a detach that was asked for is asked for again. The caller
// holds the VM's lock.
func (s *NICs) truth(ctx context.Context, v vm.VM, seen vm.Observation) ([]vm.NIC, error) {
	have, unplug := vm.SettleNICs(v.NICs, seen)
	if !seen.Alive() {
		return have, nil
	}
	ctx, stop := context.WithTimeout(ctx, nicPatience)
	defer stop()
	for _, n := range v.NICs {
		gone := !slices.ContainsFunc(have, func(h vm.NIC) bool { return h.Slot == n.Slot })
		if !gone && !slices.Contains(unplug, n.Slot) {
			continue
		}
		switch err := s.driver.DetachNIC(ctx, v.ID, n.Slot); {
		case err == nil:
			have = slices.DeleteFunc(have, func(h vm.NIC) bool { return h.Slot == n.Slot })
		case gone:
			return nil, fmt.Errorf("take what is left of nic %d back from vm %s: %w", n.Slot, v.ID, err)
		}
	}
	return have, nil
}

// settleOf makes v's NICs, and what leads to them, what they really are, and
// reports whether that changes anything.
func (s *NICs) settleOf(ctx context.Context, v *vm.VM, seen vm.Observation) (bool, error) {
	have, err := s.truth(ctx, *v, seen)
	if err != nil || slices.Equal(have, v.NICs) {
		return false, err
	}
	for _, n := range v.NICs {
		if !slices.ContainsFunc(have, func(h vm.NIC) bool { return h.Slot == n.Slot }) {
			v.RemoveNIC(n.Slot)
		}
	}
	v.NICs = have
	if !seen.Alive() {
		return true, nil
	}
	return true, s.applyNetwork(ctx, *v)
}

// settleOf ends what is left of operations on a network. What the network
// is like on the host, [Networks.Reconcile] sees to.
func (s *Networks) settleOf(ctx context.Context, resource, name string) (vm.Repair, error) {
	open, err := s.store.Operations(ctx, vm.OperationFilter{Resource: resource, Open: true}, vm.Page{})
	if err != nil {
		return vm.Repair{}, err
	}
	if len(open) > 0 {
		if err := s.removeLeftover(ctx, name); err != nil {
			return vm.Repair{}, err
		}
	}
	for _, op := range open {
		if err := s.endInterrupted(ctx, op); err != nil {
			return vm.Repair{}, err
		}
	}
	return vm.Repair{Changed: len(open) > 0, Detail: "ended the operations nobody acted on"}, nil
}

// Reconcile compares the networks on the host with the records, given
// the VMs as they are recorded, and returns what it found. With repair it makes
// the host as it is wanted. What it sees of guests' addresses is recorded.
func (s *Networks) Reconcile(ctx context.Context, vms []vm.VM, repair bool) ([]vm.Drift, error) {
	w := vm.Wanted{VMs: slices.DeleteFunc(slices.Clone(vms), func(v vm.VM) bool { return v.State == vm.Stopped || len(v.NICs) == 0 })}
	var err error
	if w.Networks, err = s.store.Networks(ctx, vm.Page{}); err != nil {
		return nil, err
	}
	// What is being changed is left to who changes it.
	w.Networks = slices.DeleteFunc(w.Networks, func(n vm.Network) bool { return s.locks.busy(vm.NetworkResource(n.Name)) })
	seen, err := s.network.Reconcile(ctx, w, repair)
	if err != nil {
		return nil, err
	}
	for _, v := range w.VMs {
		if found := seen.Learned[v.ID]; len(found) > 0 {
			err = errors.Join(err, s.Guests.recordLearned(ctx, v, preferAgent(found, s.Guests.saidByAgent(v))))
		}
	}
	s.Guests.askAgents(w.VMs)
	s.CloudInits.ask(vms)
	return seen.Drift, err
}

// sameAddresses reports whether two looks at a guest have seen the same, at
// whatever time. That nothing was seen is no news: a guest may be silent.
func sameAddresses(seen, known []vm.LearnedAddress) bool {
	return len(seen) == 0 || slices.EqualFunc(seen, known, func(a, b vm.LearnedAddress) bool {
		return a.Slot == b.Slot && a.IP == b.IP && a.Source == b.Source
	})
}

const (
	networksNote = "networks" // that the default network was made, once
	legacyUser   = "user0"    // where the NICs are of VMs from before there were networks
)

// Prepare makes the default network if there never was one, and has all
// networks as they are wanted. Call it before [Engine.Recover]. It fails only if
// the records cannot be read; what the host cannot do, the observer tries again.
func (s *Networks) Prepare(ctx context.Context) error {
	made, err := s.store.Note(ctx, networksNote)
	if err == nil && made == "" {
		err = s.first(ctx)
	}
	if err != nil {
		return err
	}
	vms, err := s.store.VMs(ctx, vm.VMFilter{}, vm.Page{})
	if err != nil {
		return err
	}
	drift, err := s.Reconcile(ctx, vms, true)
	if err != nil {
		s.log.Warn("cannot prepare the networks; the observer tries again", "err", err)
	}
	for _, d := range drift {
		if d.Err != nil {
			s.log.Warn("cannot prepare a network; the observer tries again", "resource", d.Resource, "what", d.Details, "err", d.Err)
		}
	}
	return nil
}

// first makes the default network. VMs from before there were networks
// stay on the kind of network they had.
func (s *Networks) first(ctx context.Context) error {
	vms, err := s.store.VMs(ctx, vm.VMFilter{}, vm.Page{})
	if err != nil {
		return err
	}
	if len(vms) > 0 {
		if err := s.moveLegacy(ctx, vms); err != nil {
			return err
		}
	}
	n := vm.Network{Name: vm.DefaultNetwork, Mode: vm.NetworkNAT}
	if err := s.network.Check(vm.NetworkNAT); err != nil {
		n.Mode = vm.NetworkUser
		s.log.Info("the default network needs no privilege, and nobody reaches its guests but by port forwards", "network", n.Name, "why", err)
	}
	n, err = s.Create(ctx, n)
	if err != nil && !errors.Is(err, vm.ErrExists) {
		s.log.Error("cannot make the default network; the next start tries again", "network", vm.DefaultNetwork, "err", err)
		return nil
	}
	s.log.Info("made the default network", "network", n.Name, "mode", n.Mode, "subnet", n.Subnet)
	return s.store.SetNote(ctx, networksNote, "made")
}

func (s *Networks) moveLegacy(ctx context.Context, vms []vm.VM) error {
	if _, err := s.Create(ctx, vm.Network{Name: legacyUser, Mode: vm.NetworkUser}); err != nil && !errors.Is(err, vm.ErrExists) {
		return err
	}
	for _, v := range vms {
		if len(v.NICs) > 0 {
			continue
		}
		n, err := s.NICs.place(ctx, v, 0, vm.NewNIC{Network: legacyUser}, "")
		if err != nil {
			return err
		}
		v.NICs = []vm.NIC{n}
		if err := s.apply(ctx, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}); err != nil {
			return err
		}
	}
	return nil
}
