package manager

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"vmand/vm"
)

const (
	addressInterval = 30 * time.Second // between two questions to one guest
	addressPatience = 10 * time.Second // for the answer
)

// askForAddresses asks the agents of guests on bridges that are not vmand's for the
// addresses of those guests. It does not wait: a guest may take its time.
func (s *Guests) askForAddresses(vms []vm.VM) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := make(map[string]time.Time, len(s.asked))
	for _, v := range vms {
		onBridge := slices.ContainsFunc(v.NICs, func(n vm.NIC) bool { return n.Mode == vm.NetworkBridge })
		if !onBridge || s.driver.Agent(v.ID).State != vm.AgentConnected {
			continue
		}
		asked[v.ID] = s.asked[v.ID]
		if time.Since(asked[v.ID]) >= addressInterval {
			asked[v.ID] = time.Now()
			s.background(func() { s.learnFromAgent(v.ID) })
		}
	}
	s.asked = asked // without deleted VMs
}

// learnFromAgent records the addresses that a guest reports.
func (s *Guests) learnFromAgent(id string) {
	ctx, stop := context.WithTimeout(context.Background(), addressPatience)
	defer stop()
	info, err := s.driver.GuestInfo(ctx, id)
	if err != nil {
		s.log.Debug("cannot ask a guest for its addresses", "vm", id, "err", err)
		return
	}
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return // the VM was deleted
	}
	if err := s.recordAddresses(ctx, v, preferAgent(v.Learned, addressesOf(v, info))); err != nil {
		s.log.Warn("cannot record the addresses of a guest", "vm", id, "err", err)
	}
}

// addressesOf returns the addresses of v's NICs on bridges that are not vmand's, as the
// guest reports them: for each NIC the first global IPv4 address, else the first global
// IPv6 address.
func addressesOf(v vm.VM, info vm.GuestInfo) []vm.LearnedAddress {
	var learned []vm.LearnedAddress
	for _, n := range v.NICs {
		if n.Mode != vm.NetworkBridge {
			continue
		}
		i := slices.IndexFunc(info.Interfaces, func(i vm.GuestInterface) bool { return strings.EqualFold(i.MAC, n.MAC) })
		if i < 0 {
			continue
		}
		found := vm.LearnedAddress{Slot: n.Slot, Source: vm.SourceAgent, At: now()}
		for _, p := range info.Interfaces[i].Addresses {
			a := p.Addr()
			if !a.IsGlobalUnicast() || found.IP.IsValid() && (found.IP.Is4() || a.Is6()) {
				continue
			}
			found.IP = a
		}
		if found.IP.IsValid() {
			learned = append(learned, found)
		}
	}
	return learned
}

// preferAgent merges both lists, sorted by slot. An address that an agent reported wins
// over one that the host saw.
func preferAgent(seen, reported []vm.LearnedAddress) []vm.LearnedAddress {
	all := slices.Clone(reported)
	for _, l := range seen {
		if !slices.ContainsFunc(reported, func(r vm.LearnedAddress) bool { return r.Slot == l.Slot }) {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b vm.LearnedAddress) int { return cmp.Compare(a.Slot, b.Slot) })
	return all
}

// recordAddresses records the learned addresses of a guest, if they are new.
func (s *Guests) recordAddresses(ctx context.Context, v vm.VM, learned []vm.LearnedAddress) error {
	if sameAddresses(learned, v.Learned) {
		return nil
	}
	return s.apply(ctx, vm.Change{
		Learned: []vm.Learned{{VMID: v.ID, Addresses: &learned}},
		Events:  []vm.Event{vm.NewEvent("vm.address", vm.VMResource(v.ID), map[string]any{"addresses": learned})},
	})
}

// sameAddresses reports whether an observation has the known addresses. An empty observation
// counts as the same, because a guest may be silent.
func sameAddresses(seen, known []vm.LearnedAddress) bool {
	return len(seen) == 0 || slices.EqualFunc(seen, known, func(a, b vm.LearnedAddress) bool {
		return a.Slot == b.Slot && a.IP == b.IP && a.Source == b.Source
	})
}

// reportedByAgent returns the addresses of v that its agent reported, as long as the agent
// answers.
func (s *Guests) reportedByAgent(v vm.VM) []vm.LearnedAddress {
	if s.driver.Agent(v.ID).State != vm.AgentConnected {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(v.Learned), func(l vm.LearnedAddress) bool { return l.Source != vm.SourceAgent })
}
