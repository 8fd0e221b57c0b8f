package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// forgetAfter is how long something of ours may be there that no record knows:
// records are read before the host is looked at, and what is made between the
// two is no leftover.
const forgetAfter = time.Minute

// pass is one comparison of the host with what is wanted.
type pass struct {
	*Networks
	repair   bool
	networks map[string]vm.Network
	survey   vm.NetworkSurvey

	fresh     map[string]bool // ids of the VMs whose records are newer than their rules
	links     map[string]netlink.Link
	addresses map[int][]netip.Prefix // by index of the interface
}

// Reconcile implements [vm.HostNetwork]. It costs one dump of the links and of the
// addresses while the rules of the host stay as they were. Rules are replaced in
// one step and bridges stay, so no connection of a guest is cut.
func (n *Networks) Reconcile(ctx context.Context, w vm.Wanted, repair bool) (vm.NetworkSurvey, error) {
	p := &pass{Networks: n, repair: repair, networks: make(map[string]vm.Network, len(w.Networks)), fresh: map[string]bool{}}
	if n.mode == ModeUser {
		for _, nw := range w.Networks {
			if err := n.Check(nw.Mode); err != nil {
				p.found(vm.NetworkResource(nw.Name), "the network is not there", func() error { return err })
			}
		}
		return p.survey, ctx.Err()
	}
	defer n.cut()
	n.mu.Lock()
	defer n.mu.Unlock()
	w.Networks = slices.Clone(w.Networks)
	for i, nw := range w.Networks {
		// What Up was told after the records were read is newer.
		if s := n.serving[nw.Name]; s != nil && s.network.Revision >= nw.Revision {
			w.Networks[i] = s.network
		}
		p.networks[nw.Name] = w.Networks[i]
	}
	if err := p.look(); err != nil {
		return p.survey, err
	}
	if err := p.rules(w); err != nil {
		return p.survey, err
	}
	raised := false
	for _, nw := range w.Networks {
		if err := ctx.Err(); err != nil {
			return p.survey, err
		}
		raised = p.network(nw) || raised
	}
	if raised { // by other indexes
		if err := p.look(); err != nil {
			return p.survey, err
		}
	}
	for _, v := range w.VMs {
		for _, nic := range v.NICs {
			p.nic(v, nic)
		}
	}
	p.leftovers(w)
	p.learn(w)
	return p.survey, ctx.Err()
}

// found records a drift and, in a pass that repairs, what came of the repair.
func (p *pass) found(resource vm.Resource, details string, repair func() error) {
	d := vm.Drift{Resource: resource, Details: details}
	if p.repair {
		d.Err = repair()
		d.Repaired = d.Err == nil
	}
	p.survey.Drift = append(p.survey.Drift, d)
}

func (p *pass) look() error {
	links, err := p.Networks.links.LinkList()
	if err != nil {
		return unavailable(err, "list the host's interfaces")
	}
	p.links = make(map[string]netlink.Link, len(links))
	for _, l := range links {
		p.links[l.Attrs().Name] = l
	}
	addrs, err := p.Networks.links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return unavailable(err, "list the host's addresses")
	}
	p.addresses = map[int][]netip.Prefix{}
	for _, a := range addrs {
		p.addresses[a.LinkIndex] = append(p.addresses[a.LinkIndex], addressOf(a))
	}
	return nil
}

// rules compares the firewall. What this daemon has let pass by a newer record
// than the one at hand stays.
func (p *pass) rules(w vm.Wanted) error {
	want := p.newer(w)
	var faults []string
	var err error
	if p.settled {
		if p.repair {
			for _, owner := range sorted(want) {
				err = errors.Join(err, p.firewall.set(owner, want[owner]))
			}
		}
		if err == nil {
			faults, err = p.firewall.faults()
		}
	} else {
		faults, err = p.firewall.settle(want, p.repair)
		p.settled = err == nil && p.repair
	}
	if err != nil {
		return unavailable(err, "compare the firewall")
	}
	if p.repair {
		for _, v := range w.VMs {
			p.revisions[v.ID] = max(p.revisions[v.ID], v.Revision)
		}
	}
	if len(faults) == 0 {
		return nil
	}
	var repaired error
	if p.repair {
		repaired = p.firewall.rebuild()
	}
	for _, nw := range w.Networks {
		if nw.Mode != vm.NetworkUser {
			p.found(vm.NetworkResource(nw.Name), words(faults), func() error { return repaired })
		}
	}
	return nil
}

// newer returns the elements of every network, and of those VMs whose records
// are newer than their rules.
func (p *pass) newer(w vm.Wanted) map[string][]element {
	want := map[string][]element{}
	for _, nw := range w.Networks {
		if nw.Mode.Managed() {
			want[networkOwner(nw.Name)] = networkElements(nw)
		}
	}
	alive := make(map[string]bool, len(w.VMs))
	for _, v := range w.VMs {
		alive[v.ID] = true
		if revision, known := p.revisions[v.ID]; !known || v.Revision > revision {
			want[vmOwner(v.ID)] = vmElements(v)
			p.fresh[v.ID] = true
		}
	}
	maps.DeleteFunc(p.revisions, func(id string, revision int64) bool { return revision == disconnected && !alive[id] })
	return want
}

// network compares one network and reports whether it was made anew.
func (p *pass) network(nw vm.Network) bool {
	if nw.Mode == vm.NetworkUser {
		return false
	}
	resource := vm.NetworkResource(nw.Name)
	if nw.Mode == vm.NetworkBridge {
		if _, err := p.hostBridge(nw); err != nil {
			p.found(resource, err.Error(), func() error { return err })
		}
		return false
	}
	faults := p.faults(nw)
	if len(faults) == 0 {
		// A daemon that has just begun serves nobody yet: that is no drift.
		if s := p.serving[nw.Name]; p.repair && (s == nil || s.network.Revision < nw.Revision) {
			if err := p.serve(nw); err != nil {
				p.found(resource, "the network as it is recorded is not served", func() error { return err })
			}
		}
		return false
	}
	p.found(resource, words(faults), func() error { return p.up(nw) })
	return p.repair
}

// faults returns what is wrong with a network of our own, in words.
func (p *pass) faults(nw vm.Network) []string {
	link := p.links[nw.Bridge]
	if link == nil {
		return []string{fmt.Sprintf("the bridge %s is missing", nw.Bridge)}
	}
	if !ours(link) {
		return []string{fmt.Sprintf("the interface %s is not vmand's bridge", nw.Bridge)}
	}
	var faults []string
	a := link.Attrs()
	if a.Flags&net.FlagUp == 0 {
		faults = append(faults, fmt.Sprintf("the bridge %s is down", nw.Bridge))
	}
	if a.MTU != mtu(nw) {
		faults = append(faults, fmt.Sprintf("the bridge %s has the MTU %d, not %d", nw.Bridge, a.MTU, mtu(nw)))
	}
	for _, want := range addresses(nw) {
		if !slices.Contains(p.addresses[a.Index], want) {
			faults = append(faults, fmt.Sprintf("the bridge %s has not the address %s", nw.Bridge, want))
		}
	}
	wanted := bridgeSysctls(nw)
	if nw.Mode == vm.NetworkNAT {
		wanted[forward4] = "1"
		if nw.IPv6.IsValid() {
			wanted[forward6] = "1"
		}
	}
	for _, name := range sorted(wanted) {
		if got, err := getSysctl(name); err == nil && got != wanted[name] {
			faults = append(faults, fmt.Sprintf("the sysctl net/%s is %s, not %s", name, got, wanted[name]))
		}
	}
	if s := p.serving[nw.Name]; s != nil {
		if err := s.fault(a.Index); err != nil {
			faults = append(faults, err.Error())
		}
	}
	return faults
}

// nic compares the tap of a NIC that is plugged. One that is missing is looked
// for twice: its QEMU may have ended since the VMs were listed.
func (p *pass) nic(v vm.VM, nic vm.NIC) {
	nw, known := p.networks[nic.Network]
	if nic.Mode == vm.NetworkUser || nic.State == vm.NICAttaching || !known {
		return
	}
	resource, name := vm.VMResource(v.ID), tapName(v.UUID, nic.Slot)
	tap, bridge := p.links[name], p.links[nw.Bridge]
	if tap == nil {
		if p.absent[name] {
			p.found(resource, fmt.Sprintf("the interface %s of NIC %d is missing", name, nic.Slot), func() error {
				return unavailable(nil, "only a new start of vm %s, or a NIC that is plugged anew, brings the interface %s back", v.ID, name)
			})
		}
		p.absent[name] = true
		return
	}
	delete(p.absent, name)
	if bridge == nil {
		return
	}
	a, fault := tap.Attrs(), ""
	switch {
	case a.MasterIndex != bridge.Attrs().Index:
		fault = fmt.Sprintf("the interface %s of NIC %d is not on the bridge %s", name, nic.Slot, nw.Bridge)
	case a.Flags&net.FlagUp == 0:
		fault = fmt.Sprintf("the interface %s of NIC %d is down", name, nic.Slot)
	case nw.Mode.Managed() && a.MTU != mtu(nw):
		fault = fmt.Sprintf("the interface %s of NIC %d has the MTU %d, not %d", name, nic.Slot, a.MTU, mtu(nw))
	}
	if fault != "" {
		p.found(resource, fault, func() error {
			if err := p.fitTap(nw, tap, bridge); err != nil {
				return err
			}
			return p.pin(tap, nic.MAC)
		})
	}
	if _, known := p.shaped[name]; !p.repair || known && !p.fresh[v.ID] {
		return
	}
	if err := p.reshape(name, a.Index, nic.RateIn); err != nil && !gone(err) {
		p.found(resource, fmt.Sprintf("the rate of NIC %d is not limited", nic.Slot), func() error { return err })
	}
}

// leftovers removes what nobody has wanted for a while.
func (p *pass) leftovers(w vm.Wanted) {
	wanted := map[string]bool{nobody: true}
	for _, nw := range w.Networks {
		wanted[networkOwner(nw.Name)], wanted["bridge/"+nw.Bridge] = true, true
	}
	for _, v := range w.VMs {
		wanted[vmOwner(v.ID)] = true
	}
	present := map[string]func() error{}
	for owner := range p.firewall.owners {
		present[owner] = func() error { return p.firewall.set(owner, nil) }
	}
	for name, l := range p.links {
		if ours(l) {
			present["bridge/"+name] = func() error { return p.Networks.links.LinkDel(l) }
		}
	}
	for what := range p.unwanted {
		if present[what] == nil || wanted[what] {
			delete(p.unwanted, what)
		}
	}
	for _, what := range sorted(present) {
		since, noticed := p.unwanted[what]
		switch {
		case wanted[what]:
		case !noticed:
			p.unwanted[what] = time.Now()
		case p.repair && time.Since(since) > forgetAfter:
			if err := present[what](); err != nil && !gone(err) {
				p.log.Warn("what is left of a network cannot be removed", "what", what, "err", err)
				continue
			}
			p.log.Info("removed what was left of a network", "what", what)
		}
	}
}

// learn asks the host which addresses have the guests whose addresses others give.
func (p *pass) learn(w vm.Wanted) {
	type seat struct {
		id   string
		slot int
	}
	seats := map[string]seat{}
	bridges := map[int]bool{}
	for _, v := range w.VMs {
		for _, nic := range v.NICs {
			if b := p.links[p.networks[nic.Network].Bridge]; nic.Mode == vm.NetworkBridge && b != nil {
				seats[nic.MAC] = seat{v.ID, nic.Slot}
				bridges[b.Attrs().Index] = true
			}
		}
	}
	p.survey.Learned = map[string][]vm.LearnedAddress{}
	now := time.Now().UTC()
	const alive = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	for index := range bridges {
		neighbours, err := p.Networks.links.NeighList(index, netlink.FAMILY_V4)
		if err != nil {
			p.log.Warn("the neighbours on a bridge cannot be listed", "err", err)
			continue
		}
		for _, nb := range neighbours {
			s, ours := seats[nb.HardwareAddr.String()]
			ip, ok := netip.AddrFromSlice(nb.IP)
			if ours && ok && nb.State&alive != 0 {
				p.survey.Learned[s.id] = append(p.survey.Learned[s.id], vm.LearnedAddress{Slot: s.slot, IP: ip.Unmap(), Source: vm.SourceNeighbour, At: now})
			}
		}
	}
}
