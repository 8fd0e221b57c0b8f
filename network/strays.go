package network

import (
	"context"
	"net/netip"
	"slices"

	"vmand/vm"
)

// Blocked implements [vm.HostNetwork]. It is best effort.
func (n *Networks) Blocked(ctx context.Context, v vm.VM) (found []vm.BlockedAddress) {
	if ctx.Err() != nil || n.mode == ModeUser {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.firewall.connect(); err != nil {
		return nil
	}
	byTap := map[string]vm.NIC{}
	for _, nic := range v.NICs {
		byTap[string(ifname(tapName(v.UUID, nic.Slot)))] = nic
	}
	for _, spec := range setSpecs() {
		if spec.name != setStrays && spec.name != setStrays6 {
			continue
		}
		elements, err := n.firewall.conn.GetSetElements(spec.set())
		if err != nil { // another program has deleted the tables
			n.firewall.disconnect()
			return found
		}
		for _, e := range elements {
			nic, ours := byTap[string(e.Key)]
			ip, ok := netip.AddrFromSlice(e.Val)
			if ours && ok && !mayUse(nic, ip) {
				found = append(found, vm.BlockedAddress{Slot: nic.Slot, IP: ip})
			}
		}
	}
	return found
}

// mayUse reports whether an address is one of a NIC: the permission may be newer than the frame.
func mayUse(nic vm.NIC, ip netip.Addr) bool {
	return ip == nic.IP || ip == nic.IPv6 ||
		slices.ContainsFunc(nic.Extra, func(p netip.Prefix) bool { return p.Contains(ip) })
}
