package network

import (
	"context"
	"fmt"
	"math"
	"net/netip"

	"vmand/failpoint"
	"vmand/vm"
)

// Connect implements [vm.HostNetwork]. It sets the rules of the VM before it returns the
// taps, so no frame passes without them: until then vmand alone has the files open.
func (n *Networks) Connect(
	ctx context.Context, v vm.VM, nics []vm.NIC, networks map[string]vm.Network,
) (ports []vm.Port, err error) {
	if v.UUID == "" {
		return nil, fmt.Errorf("connect VM %s: it has no uuid for the names of its interfaces", v.ID)
	}
	defer func() {
		if err != nil {
			vm.ClosePorts(ports)
			ports = nil
		}
	}()
	taps := false
	for _, nic := range nics {
		nw, ok := networks[nic.Network]
		if !ok {
			return ports, fmt.Errorf("connect VM %s: network %s of NIC %d was not given", v.ID, nic.Network, nic.Slot)
		}
		if err := n.Check(nw.Mode); err != nil {
			return ports, err
		}
		var p vm.Port
		if nw.Mode == vm.NetworkUser {
			p, err = n.connectUser(ctx, v, nic, nw)
		} else {
			taps = true
			p, err = n.connectTap(ctx, v, nic, nw)
		}
		if err != nil {
			return ports, err
		}
		ports = append(ports, p)
	}
	if !taps {
		return ports, nil
	}
	n.forgetConflicts(nics)
	if err := n.setVMRules(v); err != nil {
		return ports, err
	}
	failpoint.Hit("rules.added")
	return ports, nil
}

// setVMRules makes the firewall pass exactly the traffic that the record of v allows. It must be
// called without mu held.
func (n *Networks) setVMRules(v vm.VM) error {
	defer n.endFlows()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.vmRevisions[v.ID] = v.Revision
	if err := n.firewall.set(vmOwner(v.ID), vmElements(v)); err != nil {
		return unavailable(err, "set the firewall of VM %s", v.ID)
	}
	return nil
}

// forgetConflicts makes DHCP offer the addresses of NICs again: the operator has probably
// solved the conflict before the start. It must be called without mu held.
func (n *Networks) forgetConflicts(nics []vm.NIC) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, nic := range nics {
		if s := n.serving[nic.Network]; s != nil && s.dhcp != nil {
			s.dhcp.ForgetConflicts(nic.MAC)
		}
	}
}

// Declined implements [vm.HostNetwork].
func (n *Networks) Declined(networkName string) (addresses []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.serving[networkName]; s != nil && s.dhcp != nil {
		for _, c := range s.dhcp.Conflicts() {
			addresses = append(addresses, c.IP)
		}
	}
	return addresses
}

// Update implements [vm.HostNetwork].
func (n *Networks) Update(ctx context.Context, v vm.VM, _ map[string]vm.Network) error {
	if err := ctx.Err(); err != nil || n.mode == ModeUser {
		return err
	}
	for _, nic := range v.NICs {
		if nic.Mode == vm.NetworkUser {
			continue
		}
		name := tapName(v.UUID, nic.Slot)
		tap, err := n.findLink(name)
		if err != nil {
			return err
		}
		if tap == nil { // not plugged yet, or QEMU is ending
			continue
		}
		if err := n.limitTap(name, tap.Attrs().Index, nic.RateIn); err != nil && !isGone(err) {
			return unavailable(err, "limit the rate of NIC %d of VM %s", nic.Slot, v.ID)
		}
	}
	return n.setVMRules(v)
}

// disconnected is the revision of a VM after Disconnect. It is newer than any record, so
// a pass with an older record does not add the rules again.
const disconnected = math.MaxInt64

// Disconnect implements [vm.HostNetwork]. The kernel removes the taps when QEMU ends.
func (n *Networks) Disconnect(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.removePasstLogs(id); err != nil {
		return err
	}
	if n.mode == ModeUser {
		return nil
	}
	defer n.endFlows()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.vmRevisions[id] = disconnected
	for _, tapName := range n.firewall.taps(vmOwner(id)) {
		delete(n.tapLimits, tapName)
		delete(n.missingTaps, tapName)
	}
	if err := n.firewall.set(vmOwner(id), nil); err != nil {
		return unavailable(err, "remove the firewall of VM %s", id)
	}
	return nil
}
