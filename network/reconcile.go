package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// forgetAfter is how long something of vmand may exist on the host without a record before
// a pass removes it. A pass has read the records before it looks at the host, so a new
// thing can be missing in them.
const forgetAfter = time.Minute

// A pass is one comparison of the host with the records.
type pass struct {
	*Networks
	repair   bool
	networks map[string]vm.Network // by name
	survey   vm.NetworkSurvey

	changed   map[string]bool         // ids of the VMs with records newer than their rules
	links     map[string]netlink.Link // by name
	addresses map[int][]netip.Prefix  // by interface index
}

// Reconcile implements [vm.HostNetwork]. While the host's rules do not change, it costs
// one dump of the links and of the addresses: 1 ms of CPU with 50 VMs running
// (BenchmarkPassWithoutDrift). It replaces rules in one step and keeps bridges, so guests
// keep their connections.
func (n *Networks) Reconcile(ctx context.Context, w vm.Wanted, repair bool) (vm.NetworkSurvey, error) {
	p := &pass{
		Networks: n,
		repair:   repair,
		networks: make(map[string]vm.Network, len(w.Networks)),
		changed:  map[string]bool{},
	}
	if n.mode == ModeUser {
		for _, nw := range w.Networks {
			if err := n.Check(nw.Mode); err != nil {
				p.report(vm.NetworkResource(nw.Name), "the network cannot exist on this host", func() error { return err })
			}
		}
		return p.survey, ctx.Err()
	}
	defer n.endFlows()
	n.mu.Lock()
	defer n.mu.Unlock()
	w.Networks = slices.Clone(w.Networks)
	for i, nw := range w.Networks {
		// A record that Up received after the records were read is newer.
		if s := n.serving[nw.Name]; s != nil && s.record.Revision >= nw.Revision {
			w.Networks[i] = s.record
		}
		p.networks[nw.Name] = w.Networks[i]
	}
	if err := p.readHost(); err != nil {
		return p.survey, err
	}
	if err := p.checkRules(w); err != nil {
		return p.survey, err
	}
	recreated := false
	for _, nw := range w.Networks {
		if err := ctx.Err(); err != nil {
			return p.survey, err
		}
		recreated = p.checkNetwork(nw) || recreated
	}
	if recreated { // the new bridges have other indexes
		if err := p.readHost(); err != nil {
			return p.survey, err
		}
	}
	for _, v := range w.VMs {
		for _, nic := range v.NICs {
			p.checkNIC(v, nic)
		}
	}
	p.removeLeftovers(w)
	p.learnAddresses(w)
	p.survey.Problems = append(p.problems(ctx, w.Networks...), p.forwardProblems(w.VMs)...)
	return p.survey, ctx.Err()
}

// report adds a drift to the survey. In a pass that repairs, it also calls repair and
// records the result.
func (p *pass) report(resource vm.Resource, details string, repair func() error) {
	d := vm.Drift{Resource: resource, Details: details}
	if p.repair {
		d.Err = repair()
		d.Repaired = d.Err == nil
	}
	p.survey.Drift = append(p.survey.Drift, d)
}

// readHost reads the links and addresses of the host.
func (p *pass) readHost() error {
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

// checkRules compares the firewall with the records. Rules that this daemon has set from
// newer records stay.
func (p *pass) checkRules(w vm.Wanted) error {
	faults, err := p.compareRules(p.changedElements(w))
	if err != nil {
		return unavailable(err, "compare the firewall with the records")
	}
	if p.repair {
		for _, v := range w.VMs {
			p.vmRevisions[v.ID] = max(p.vmRevisions[v.ID], v.Revision)
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
			p.report(vm.NetworkResource(nw.Name), strings.Join(faults, "; "), func() error { return repaired })
		}
	}
	return nil
}

// compareRules returns how the firewall differs from the records, in words. In a pass that
// repairs, it first sets the wanted elements, by owner.
func (p *pass) compareRules(want map[string][]element) ([]string, error) {
	if !p.adopted {
		faults, err := p.firewall.adopt(want, p.repair)
		p.adopted = err == nil && p.repair
		return faults, err
	}
	if p.repair {
		var err error
		for _, owner := range sortedKeys(want) {
			err = errors.Join(err, p.firewall.set(owner, want[owner]))
		}
		if err != nil {
			return nil, err
		}
	}
	return p.firewall.check()
}

// changedElements returns the elements of every network, and of each VM with a record newer
// than its rules. It notes these VMs in changed.
func (p *pass) changedElements(w vm.Wanted) map[string][]element {
	want := map[string][]element{}
	for _, nw := range w.Networks {
		if nw.Mode.Managed() {
			want[networkOwner(nw.Name)] = networkElements(nw)
		}
	}
	alive := make(map[string]bool, len(w.VMs))
	for _, v := range w.VMs {
		alive[v.ID] = true
		if revision, known := p.vmRevisions[v.ID]; !known || v.Revision > revision {
			want[vmOwner(v.ID)] = vmElements(v)
			p.changed[v.ID] = true
		}
	}
	maps.DeleteFunc(p.vmRevisions, func(id string, revision int64) bool {
		return revision == disconnected && !alive[id]
	})
	return want
}

// checkNetwork compares one network and reports whether it was created again.
func (p *pass) checkNetwork(nw vm.Network) bool {
	if nw.Mode == vm.NetworkUser {
		return false
	}
	resource := vm.NetworkResource(nw.Name)
	if nw.Mode == vm.NetworkBridge {
		if _, err := p.hostBridge(nw); err != nil {
			p.report(resource, err.Error(), func() error { return err })
		}
		return false
	}
	faults := p.bridgeFaults(nw)
	if len(faults) == 0 {
		// Servers that do not run yet are no drift: the daemon has just started.
		if s := p.serving[nw.Name]; p.repair && (s == nil || s.record.Revision < nw.Revision) {
			if err := p.ensureServers(nw); err != nil {
				p.report(resource, "the servers of the network do not run", func() error { return err })
			}
		}
		return false
	}
	p.report(resource, strings.Join(faults, "; "), func() error { return p.up(nw) })
	return p.repair
}

// bridgeFaults returns how the bridge and the servers of a network of mode nat or isolated
// differ from the record, in words.
func (p *pass) bridgeFaults(nw vm.Network) []string {
	link := p.links[nw.Bridge]
	if link == nil {
		return []string{fmt.Sprintf("the bridge %s is missing", nw.Bridge)}
	}
	if !isOurBridge(link) {
		return []string{fmt.Sprintf("the interface %s is not vmand's bridge", nw.Bridge)}
	}
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	a := link.Attrs()
	if a.Flags&net.FlagUp == 0 {
		fault("the bridge %s is down", nw.Bridge)
	}
	if a.MTU != mtu(nw) {
		fault("the bridge %s has the MTU %d, not %d", nw.Bridge, a.MTU, mtu(nw))
	}
	for _, want := range bridgeAddresses(nw) {
		if !slices.Contains(p.addresses[a.Index], want) {
			fault("the bridge %s lacks the address %s", nw.Bridge, want)
		}
	}
	want := bridgeSysctls(nw)
	if nw.Mode == vm.NetworkNAT {
		want[forward4] = "1"
		if nw.IPv6.IsValid() {
			want[forward6] = "1"
		}
	}
	for _, name := range sortedKeys(want) {
		if got, err := getSysctl(name); err == nil && got != want[name] {
			fault("the sysctl net/%s is %s, not %s", name, got, want[name])
		}
	}
	if s := p.serving[nw.Name]; s != nil {
		if err := s.fault(a.Index); err != nil {
			fault("%v", err)
		}
	}
	return faults
}

// checkNIC compares the tap of a plugged NIC.
func (p *pass) checkNIC(v vm.VM, nic vm.NIC) {
	nw, known := p.networks[nic.Network]
	if nic.Mode == vm.NetworkUser || nic.State == vm.NICAttaching || !known {
		return
	}
	resource, name := vm.VMResource(v.ID), tapName(v.UUID, nic.Slot)
	tap, bridge := p.links[name], p.links[nw.Bridge]
	if tap == nil {
		p.checkMissingTap(v, nic, name)
		return
	}
	delete(p.missingTaps, name)
	if bridge == nil {
		return
	}
	if fault := tapFault(nw, nic, tap, bridge); fault != "" {
		p.report(resource, fault, func() error {
			if err := p.configureTap(nw, tap, bridge); err != nil {
				return err
			}
			return p.addStaticMAC(tap, nic.MAC)
		})
	}
	if _, known := p.tapLimits[name]; !p.repair || known && !p.changed[v.ID] {
		return
	}
	if err := p.limitTapLocked(name, tap.Attrs().Index, nic.RateIn); err != nil && !isGone(err) {
		p.report(resource, fmt.Sprintf("the rate of NIC %d is not limited", nic.Slot), func() error { return err })
	}
}

// checkMissingTap reports a tap that was missing in the previous pass too. The first time,
// its QEMU may have ended since the VMs were listed.
func (p *pass) checkMissingTap(v vm.VM, nic vm.NIC, name string) {
	if p.missingTaps[name] {
		details := fmt.Sprintf("the interface %s of NIC %d is missing", name, nic.Slot)
		p.report(vm.VMResource(v.ID), details, func() error {
			return unavailable(nil, "the interface %s can be created only with QEMU: "+
				"stop and start VM %s, or detach and attach the NIC", name, v.ID)
		})
	}
	p.missingTaps[name] = true
}

// tapFault returns how a tap differs from the record of its NIC, or "" if it does not.
func tapFault(nw vm.Network, nic vm.NIC, tap, bridge netlink.Link) string {
	a := tap.Attrs()
	fault := func(format string, args ...any) string {
		return fmt.Sprintf("the interface %s of NIC %d ", a.Name, nic.Slot) + fmt.Sprintf(format, args...)
	}
	switch {
	case a.MasterIndex != bridge.Attrs().Index:
		return fault("is not on the bridge %s", nw.Bridge)
	case a.Flags&net.FlagUp == 0:
		return fault("is down")
	case nw.Mode.Managed() && a.MTU != mtu(nw):
		return fault("has the MTU %d, not %d", a.MTU, mtu(nw))
	}
	return ""
}

// removeLeftovers removes rules and bridges that have had no record for forgetAfter.
func (p *pass) removeLeftovers(w vm.Wanted) {
	recorded := map[string]bool{unowned: true}
	for _, nw := range w.Networks {
		recorded[networkOwner(nw.Name)], recorded["bridge/"+nw.Bridge] = true, true
	}
	for _, v := range w.VMs {
		recorded[vmOwner(v.ID)] = true
	}
	remove := map[string]func() error{} // by owner without a record
	for owner := range p.firewall.owners {
		if !recorded[owner] {
			remove[owner] = func() error { return p.firewall.set(owner, nil) }
		}
	}
	for name, l := range p.links {
		if thing := "bridge/" + name; isOurBridge(l) && !recorded[thing] {
			remove[thing] = func() error { return p.Networks.links.LinkDel(l) }
		}
	}
	maps.DeleteFunc(p.leftovers, func(thing string, _ time.Time) bool { return remove[thing] == nil })
	for _, thing := range sortedKeys(remove) {
		since, noticed := p.leftovers[thing]
		switch {
		case !noticed:
			p.leftovers[thing] = time.Now()
		case p.repair && time.Since(since) > forgetAfter:
			if err := remove[thing](); err != nil && !isGone(err) {
				p.log.Warn("cannot remove a leftover of a network", "resource", thing, "err", err)
				continue
			}
			p.log.Info("removed a leftover of a network", "resource", thing)
		}
	}
}

// learnAddresses reads the addresses of guests on the host's own bridges from the kernel's
// neighbour table: vmand does not assign those.
func (p *pass) learnAddresses(w vm.Wanted) {
	type seat struct {
		id   string
		slot int
	}
	seats := map[string]seat{} // by MAC
	bridges := map[int]bool{}  // by interface index
	for _, v := range w.VMs {
		for _, nic := range v.NICs {
			if nic.Mode != vm.NetworkBridge {
				continue
			}
			if bridge := p.links[p.networks[nic.Network].Bridge]; bridge != nil {
				seats[nic.MAC] = seat{v.ID, nic.Slot}
				bridges[bridge.Attrs().Index] = true
			}
		}
	}
	p.survey.Learned = map[string][]vm.LearnedAddress{}
	now := time.Now().UTC()
	const reachable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	for index := range bridges {
		neighbours, err := p.Networks.links.NeighList(index, netlink.FAMILY_V4)
		if err != nil {
			p.log.Warn("cannot list the neighbours on a bridge", "err", err)
			continue
		}
		for _, nb := range neighbours {
			s, known := seats[nb.HardwareAddr.String()]
			ip, ok := netip.AddrFromSlice(nb.IP)
			if !known || !ok || nb.State&reachable == 0 {
				continue
			}
			p.survey.Learned[s.id] = append(p.survey.Learned[s.id], vm.LearnedAddress{
				Slot:   s.slot,
				IP:     ip.Unmap(),
				Source: vm.SourceNeighbour,
				At:     now,
			})
		}
	}
}
