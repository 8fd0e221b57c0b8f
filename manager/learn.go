package manager

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"vmand/vm"
)

// How often a guest is asked for its addresses, and for how long.
const (
	addressInterval = 30 * time.Second
	addressPatience = 10 * time.Second
)

// askAgents asks the agents of guests whose addresses are not vmand's for them.
// It does not wait: a guest may take its time.
func (s *Guests) askAgents(vms []vm.VM) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := make(map[string]time.Time, len(s.asked))
	for _, v := range vms {
		if !slices.ContainsFunc(v.NICs, func(n vm.NIC) bool { return n.Mode == vm.NetworkBridge }) || s.driver.Agent(v.ID).State != vm.AgentConnected {
			continue
		}
		asked[v.ID] = s.asked[v.ID]
		if !s.closing && time.Since(asked[v.ID]) >= addressInterval {
			asked[v.ID] = time.Now()
			s.wg.Go(func() { s.learnFromAgent(v.ID) })
		}
	}
	s.asked = asked // and those that are gone are forgotten
}

// learnFromAgent records the addresses that a guest says it has.
func (s *Guests) learnFromAgent(id string) {
	ctx, stop := context.WithTimeout(context.Background(), addressPatience)
	defer stop()
	info, err := s.driver.GuestInfo(ctx, id)
	if err != nil {
		s.log.Debug("cannot ask a guest for its addresses", "vm_id", id, "err", err)
		return
	}
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return // it is gone
	}
	if err := s.recordLearned(ctx, v, preferAgent(v.Learned, addressesOf(v, info))); err != nil {
		s.log.Warn("cannot record the addresses of a guest", "vm_id", id, "err", err)
	}
}

// addressesOf returns the addresses of v's NICs on bridges that are not vmand's,
// as the guest says: the first IPv4 address of each that others can reach, else
// the first such IPv6 address.
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

// preferAgent returns both lists as one, by slot, with what agents say where
// that is known.
func preferAgent(seen, said []vm.LearnedAddress) []vm.LearnedAddress {
	all := slices.Clone(said)
	for _, l := range seen {
		if !slices.ContainsFunc(said, func(s vm.LearnedAddress) bool { return s.Slot == l.Slot }) {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b vm.LearnedAddress) int { return cmp.Compare(a.Slot, b.Slot) })
	return all
}

// recordLearned records the addresses that were seen of a guest, if that is news.
func (s *Guests) recordLearned(ctx context.Context, v vm.VM, learned []vm.LearnedAddress) error {
	if sameAddresses(learned, v.Learned) {
		return nil
	}
	return s.apply(ctx, vm.Change{Learned: []vm.Learned{{VMID: v.ID, Addresses: &learned}},
		Events: []vm.Event{vm.NewEvent("vm.address", vm.VMResource(v.ID), map[string]any{"addresses": learned})}})
}

// saidByAgent returns what a guest's agent has said of its addresses, as long as
// it answers.
func (s *Guests) saidByAgent(v vm.VM) []vm.LearnedAddress {
	if s.driver.Agent(v.ID).State != vm.AgentConnected {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(v.Learned), func(l vm.LearnedAddress) bool { return l.Source != vm.SourceAgent })
}
