package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// nicPatience is how long a settling waits for a guest to let go of a NIC: it
// holds the VM's lock meanwhile, and comes again.
const nicPatience = time.Second

// nicTruth returns the NICs that v really has. What QEMU has left of one that is
// no more is removed; a detach that was asked for is asked for again. The caller
// holds the VM's lock.
func (m *Manager) nicTruth(ctx context.Context, v VM, seen Observation) ([]NIC, error) {
	have, unplug := SettleNICs(v.NICs, seen)
	if !seen.Alive() {
		return have, nil
	}
	ctx, stop := context.WithTimeout(ctx, nicPatience)
	defer stop()
	for _, n := range v.NICs {
		gone := !slices.ContainsFunc(have, func(h NIC) bool { return h.Slot == n.Slot })
		if !gone && !slices.Contains(unplug, n.Slot) {
			continue
		}
		switch err := m.driver.DetachNIC(ctx, v.ID, n.Slot); {
		case err == nil:
			have = slices.DeleteFunc(have, func(h NIC) bool { return h.Slot == n.Slot })
		case gone:
			return nil, fmt.Errorf("take what is left of nic %d back from vm %s: %w", n.Slot, v.ID, err)
		}
	}
	return have, nil
}

// settleNICs makes v's NICs, and what leads to them, what they really are, and
// reports whether that changes anything.
func (m *Manager) settleNICs(ctx context.Context, v *VM, seen Observation) (bool, error) {
	have, err := m.nicTruth(ctx, *v, seen)
	if err != nil || slices.Equal(have, v.NICs) {
		return false, err
	}
	for _, n := range v.NICs {
		if !slices.ContainsFunc(have, func(h NIC) bool { return h.Slot == n.Slot }) {
			v.withoutNIC(n.Slot)
		}
	}
	v.NICs = have
	if !seen.Alive() {
		return true, nil
	}
	return true, m.passFor(ctx, *v)
}

// settleNetwork ends what is left of operations on a network. What the network
// is like on the host, [Manager.ReconcileNetworks] sees to.
func (m *Manager) settleNetwork(ctx context.Context, resource, name string) (Repair, error) {
	open, err := m.store.Operations(ctx, OperationFilter{Resource: resource, Open: true}, Page{})
	if err != nil {
		return Repair{}, err
	}
	if len(open) > 0 {
		if err := m.networkLeftover(ctx, name); err != nil {
			return Repair{}, err
		}
	}
	for _, op := range open {
		if err := m.endInterrupted(ctx, op); err != nil {
			return Repair{}, err
		}
	}
	return Repair{Changed: len(open) > 0, Detail: "ended the operations nobody acted on"}, nil
}

// ReconcileNetworks compares the networks on the host with the records, given
// the VMs as they are recorded, and returns what it found. With repair it makes
// the host as it is wanted. What it sees of guests' addresses is recorded.
func (m *Manager) ReconcileNetworks(ctx context.Context, vms []VM, repair bool) ([]Drift, error) {
	w := Wanted{VMs: slices.DeleteFunc(slices.Clone(vms), func(v VM) bool { return v.State == Stopped || len(v.NICs) == 0 })}
	var err error
	if w.Networks, err = m.store.Networks(ctx, Page{}); err != nil {
		return nil, err
	}
	// What is being changed is left to who changes it.
	w.Networks = slices.DeleteFunc(w.Networks, func(n Network) bool { return m.locks.busy(NetworkResource(n.Name)) })
	seen, err := m.network.Reconcile(ctx, w, repair)
	if err != nil {
		return nil, err
	}
	for _, v := range w.VMs {
		if found := seen.Learned[v.ID]; len(found) > 0 {
			err = errors.Join(err, m.recordLearned(ctx, v, preferAgent(found, m.saidByAgent(v))))
		}
	}
	m.askAgents(w.VMs)
	m.askCloudInits(vms)
	return seen.Drift, err
}

// sameAddresses reports whether two looks at a guest have seen the same, at
// whatever time. That nothing was seen is no news: a guest may be silent.
func sameAddresses(seen, known []LearnedAddress) bool {
	return len(seen) == 0 || slices.EqualFunc(seen, known, func(a, b LearnedAddress) bool {
		return a.Slot == b.Slot && a.IP == b.IP && a.Source == b.Source
	})
}

const (
	networksNote = "networks" // that the default network was made, once
	legacyUser   = "user0"    // where the NICs are of VMs from before there were networks
)

// PrepareNetworks makes the default network if there never was one, and has all
// networks as they are wanted. Call it before [Manager.Recover]. It fails only if
// the records cannot be read; what the host cannot do, the observer tries again.
func (m *Manager) PrepareNetworks(ctx context.Context) error {
	made, err := m.store.Note(ctx, networksNote)
	if err == nil && made == "" {
		err = m.firstNetworks(ctx)
	}
	if err != nil {
		return err
	}
	vms, err := m.store.VMs(ctx, VMFilter{}, Page{})
	if err != nil {
		return err
	}
	drift, err := m.ReconcileNetworks(ctx, vms, true)
	if err != nil {
		m.log.Warn("cannot prepare the networks; the observer tries again", "err", err)
	}
	for _, d := range drift {
		if d.Err != nil {
			m.log.Warn("cannot prepare a network; the observer tries again", "resource", d.Resource, "what", d.Details, "err", d.Err)
		}
	}
	return nil
}

// firstNetworks makes the default network. VMs from before there were networks
// stay on the kind of network they had.
func (m *Manager) firstNetworks(ctx context.Context) error {
	vms, err := m.store.VMs(ctx, VMFilter{}, Page{})
	if err != nil {
		return err
	}
	if len(vms) > 0 {
		if err := m.moveLegacy(ctx, vms); err != nil {
			return err
		}
	}
	n := Network{Name: DefaultNetwork, Mode: NetworkNAT}
	if err := m.network.Check(NetworkNAT); err != nil {
		n.Mode = NetworkUser
		m.log.Info("the default network needs no privilege, and nobody reaches its guests but by port forwards", "network", n.Name, "why", err)
	}
	n, err = m.CreateNetwork(ctx, n)
	if err != nil && !errors.Is(err, ErrExists) {
		m.log.Error("cannot make the default network; the next start tries again", "network", DefaultNetwork, "err", err)
		return nil
	}
	m.log.Info("made the default network", "network", n.Name, "mode", n.Mode, "subnet", n.Subnet)
	return m.store.SetNote(ctx, networksNote, "made")
}

func (m *Manager) moveLegacy(ctx context.Context, vms []VM) error {
	if _, err := m.CreateNetwork(ctx, Network{Name: legacyUser, Mode: NetworkUser}); err != nil && !errors.Is(err, ErrExists) {
		return err
	}
	for _, v := range vms {
		if len(v.NICs) > 0 {
			continue
		}
		n, err := m.placeNIC(ctx, v, 0, NewNIC{Network: legacyUser}, "")
		if err != nil {
			return err
		}
		v.NICs = []NIC{n}
		if err := m.apply(ctx, Change{VM: &VMUpdate{From: v.State, VM: v}}); err != nil {
			return err
		}
	}
	return nil
}
