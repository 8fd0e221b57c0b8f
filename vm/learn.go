package vm

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"
)

// How often a guest is asked for its addresses, and for how long.
const (
	addressInterval = 30 * time.Second
	addressPatience = 10 * time.Second
)

// askAgents asks the agents of guests whose addresses are not vmand's for them.
// It does not wait: a guest may take its time.
func (m *Manager) askAgents(vms []VM) {
	m.mu.Lock()
	defer m.mu.Unlock()
	asked := make(map[string]time.Time, len(m.asked))
	for _, v := range vms {
		if !slices.ContainsFunc(v.NICs, func(n NIC) bool { return n.Mode == NetworkBridge }) || m.driver.Agent(v.ID).State != AgentConnected {
			continue
		}
		asked[v.ID] = m.asked[v.ID]
		if !m.closing && time.Since(asked[v.ID]) >= addressInterval {
			asked[v.ID] = time.Now()
			m.wg.Go(func() { m.learnFromAgent(v.ID) })
		}
	}
	m.asked = asked // and those that are gone are forgotten
}

// learnFromAgent records the addresses that a guest says it has.
func (m *Manager) learnFromAgent(id string) {
	ctx, stop := context.WithTimeout(context.Background(), addressPatience)
	defer stop()
	info, err := m.driver.GuestInfo(ctx, id)
	if err != nil {
		m.log.Debug("cannot ask a guest for its addresses", "vm_id", id, "err", err)
		return
	}
	v, err := m.store.VM(ctx, id)
	if err != nil {
		return // it is gone
	}
	if err := m.recordLearned(ctx, v, preferAgent(v.Learned, addressesOf(v, info))); err != nil {
		m.log.Warn("cannot record the addresses of a guest", "vm_id", id, "err", err)
	}
}

// addressesOf returns the addresses of v's NICs on bridges that are not vmand's,
// as the guest says: the first IPv4 address of each that others can reach, else
// the first such IPv6 address.
func addressesOf(v VM, info GuestInfo) []LearnedAddress {
	var learned []LearnedAddress
	for _, n := range v.NICs {
		if n.Mode != NetworkBridge {
			continue
		}
		i := slices.IndexFunc(info.Interfaces, func(i GuestInterface) bool { return strings.EqualFold(i.MAC, n.MAC) })
		if i < 0 {
			continue
		}
		found := LearnedAddress{Slot: n.Slot, Source: SourceAgent, At: now()}
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
func preferAgent(seen, said []LearnedAddress) []LearnedAddress {
	all := slices.Clone(said)
	for _, l := range seen {
		if !slices.ContainsFunc(said, func(s LearnedAddress) bool { return s.Slot == l.Slot }) {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b LearnedAddress) int { return cmp.Compare(a.Slot, b.Slot) })
	return all
}

// recordLearned records the addresses that were seen of a guest, if that is news.
func (m *Manager) recordLearned(ctx context.Context, v VM, learned []LearnedAddress) error {
	if sameAddresses(learned, v.Learned) {
		return nil
	}
	return m.apply(ctx, Change{Learned: []Learned{{VMID: v.ID, Addresses: &learned}},
		Events: []Event{NewEvent("vm.address", VMResource(v.ID), map[string]any{"addresses": learned})}})
}

// saidByAgent returns what a guest's agent has said of its addresses, as long as
// it answers.
func (m *Manager) saidByAgent(v VM) []LearnedAddress {
	if m.driver.Agent(v.ID).State != AgentConnected {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(v.Learned), func(l LearnedAddress) bool { return l.Source != SourceAgent })
}
