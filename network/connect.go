package network

import (
	"context"
	"fmt"
	"math"

	"vmand/failpoint"
	"vmand/vm"
)

// Connect implements [vm.HostNetwork]. The rules are there before anybody can send
// through a tap: nobody has its file but us.
func (n *Networks) Connect(ctx context.Context, v vm.VM, nics []vm.NIC, networks map[string]vm.Network) (ports []vm.Port, err error) {
	if v.UUID == "" {
		return nil, fmt.Errorf("connect vm %s: it has no uuid to name its interfaces after", v.ID)
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
			return ports, fmt.Errorf("connect vm %s: network %s of NIC %d was not given", v.ID, nic.Network, nic.Slot)
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
	if err := n.admit(v); err != nil {
		return ports, err
	}
	failpoint.Hit("rules.added")
	return ports, nil
}

// admit lets pass what a VM may send and get, and nothing else.
func (n *Networks) admit(v vm.VM) error {
	defer n.cut()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.revisions[v.ID] = v.Revision
	if err := n.firewall.set(vmOwner(v.ID), vmElements(v)); err != nil {
		return unavailable(err, "set the firewall of vm %s", v.ID)
	}
	return nil
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
		tap, err := n.find(name)
		if err != nil {
			return err
		}
		if tap == nil { // not plugged yet, or QEMU is at its end
			continue
		}
		if err := n.shape(name, tap.Attrs().Index, nic.RateIn); err != nil && !gone(err) {
			return unavailable(err, "limit the rate of NIC %d of vm %s", nic.Slot, v.ID)
		}
	}
	return n.admit(v)
}

// disconnected is the revision of a VM that has been disconnected: a pass whose
// records are older is not to let it pass again.
const disconnected = math.MaxInt64

// Disconnect implements [vm.HostNetwork]. The taps have gone with QEMU.
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
	defer n.cut()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.revisions[id] = disconnected
	for _, tap := range n.firewall.taps(vmOwner(id)) {
		delete(n.shaped, tap)
		delete(n.absent, tap)
	}
	if err := n.firewall.set(vmOwner(id), nil); err != nil {
		return unavailable(err, "remove the firewall of vm %s", id)
	}
	return nil
}
