package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// FreeSubnet implements [vm.HostNetwork].
func (n *Networks) FreeSubnet(
	ctx context.Context, wanted netip.Prefix, taken []netip.Prefix,
) (netip.Prefix, string, error) {
	if err := ctx.Err(); err != nil {
		return netip.Prefix{}, "", err
	}
	used, err := n.usedSubnets()
	if err != nil {
		return netip.Prefix{}, "", err
	}
	for _, p := range taken {
		used = append(used, usedSubnet{p.Masked(), "", "another network has " + p.String()})
	}
	free, why, ok := freeSubnet(wanted, used)
	if !ok {
		return netip.Prefix{}, "", unavailable(nil, "no subnet is free: every private /24 overlaps a route of the host")
	}
	return free, why, nil
}

// A usedSubnet is a subnet in use.
type usedSubnet struct {
	netip.Prefix
	link string // the interface; empty if there is none, or several
	by   string // the user in words
}

// usedSubnets returns the subnets of the host's routes, in all routing tables, and of its
// addresses. It leaves out default routes, and the tables of VRFs: those are networks of
// their own.
func (n *Networks) usedSubnets() ([]usedSubnet, error) {
	if n.links == nil {
		return nil, nil
	}
	names, tablesOfVRFs, err := n.linkNames()
	if err != nil {
		return nil, err
	}
	var used []usedSubnet
	every := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	err = n.links.RouteListFilteredIter(netlink.FAMILY_ALL, every, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		p, ok := prefixOf(r.Dst)
		if ok && !isDefault(p) && r.Table != unix.RT_TABLE_LOCAL && !tablesOfVRFs[r.Table] {
			link := names[r.LinkIndex]
			used = append(used, usedSubnet{p, link, "the host has a route to " + p.String() + ofRoute(r, link)})
		}
		return true
	})
	if err != nil {
		return nil, unavailable(err, "list the host's routes")
	}
	rules, err := n.links.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return nil, unavailable(err, "list the host's routing rules")
	}
	for _, r := range rules {
		p, ok := prefixOf(r.Dst)
		if ok && !isDefault(p) && !r.Invert && r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_LOCAL {
			by := fmt.Sprintf("the host has a rule that looks up %s in the routing table %d", p, r.Table)
			used = append(used, usedSubnet{p, "", by})
		}
	}
	addrs, err := n.links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, unavailable(err, "list the host's addresses")
	}
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if !ok {
			continue
		}
		link := names[a.LinkIndex]
		used = append(used, usedSubnet{p, link, fmt.Sprintf("the host has the address %s on %s", a.IPNet, link)})
	}
	return used, nil
}

// isDefault reports whether a route to p is a default route. Some VPNs have one in halves:
// 0.0.0.0/1 and 128.0.0.0/1, or 2000::/3.
func isDefault(p netip.Prefix) bool {
	return p.Bits() <= 1 || p.Addr().Is6() && p.Bits() <= 3
}

// ofRoute returns the interface of a route and, unless it is the main one, its table, in
// words.
func ofRoute(r netlink.Route, link string) string {
	where := ""
	if link != "" {
		where = " on " + link
	}
	if r.Table != unix.RT_TABLE_MAIN {
		where += fmt.Sprintf(" in the routing table %d", r.Table)
	}
	return where
}

// linkNames returns the names of the host's interfaces by index, and the routing tables of
// VRFs.
func (n *Networks) linkNames() (names map[int]string, tablesOfVRFs map[int]bool, err error) {
	links, err := n.links.LinkList()
	if err != nil {
		return nil, nil, unavailable(err, "list the host's interfaces")
	}
	names, tablesOfVRFs = make(map[int]string, len(links)), map[int]bool{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		if vrf, ok := l.(*netlink.Vrf); ok {
			tablesOfVRFs[int(vrf.Table)] = true
		}
	}
	return names, tablesOfVRFs, nil
}

// prefixOf returns the subnet of n. It is not ok for link-local and multicast addresses.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); !ok || bits != a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones).Masked(), !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

// freeSubnet returns wanted, or the first private /24 that overlaps none of used and the
// reason why it is not wanted. It is not ok if there is none.
func freeSubnet(wanted netip.Prefix, used []usedSubnet) (free netip.Prefix, why string, ok bool) {
	by, collides := collision(wanted, used, "")
	if !collides {
		return wanted, "", true
	}
	for candidate := range privateSubnets {
		if _, collides := collision(candidate, used, ""); !collides {
			return candidate, fmt.Sprintf("%s is in use: %s", wanted, by), true
		}
	}
	return netip.Prefix{}, "", false
}

// collision returns the user of a subnet that p overlaps, in words. It leaves out the subnets
// of the interface exceptLink if that is not empty.
func collision(p netip.Prefix, used []usedSubnet, exceptLink string) (by string, collides bool) {
	for _, u := range used {
		if u.Overlaps(p) && (exceptLink == "" || u.link != exceptLink) {
			return u.by, true
		}
	}
	return "", false
}

// privateSubnets yields every /24 of RFC 1918. The ones least likely to be at the other
// end of a VPN come first.
func privateSubnets(yield func(netip.Prefix) bool) {
	subnets := func(first [4]byte, count uint32) bool {
		base := binary.BigEndian.Uint32(first[:])
		for i := range count {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], base+i<<8)
			if !yield(netip.PrefixFrom(netip.AddrFrom4(a), 24)) {
				return false
			}
		}
		return true
	}
	_ = subnets([4]byte{192, 168, 100, 0}, 156) && subnets([4]byte{192, 168, 0, 0}, 100) &&
		subnets([4]byte{172, 16, 0, 0}, 16<<8) && subnets([4]byte{10, 0, 0, 0}, 1<<16)
}

// Admit implements [vm.HostNetwork].
func (n *Networks) Admit(ctx context.Context, nw vm.Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.Check(nw.Mode); err != nil || nw.Mode == vm.NetworkUser {
		return err
	}
	if nw.Mode == vm.NetworkBridge {
		_, err := n.hostBridge(nw)
		return err
	}
	link, err := n.findLink(nw.Bridge)
	if err != nil {
		return err
	}
	exceptLink := ""
	if link != nil {
		if !isOurBridge(link) {
			return &vm.Fault{
				Code:   vm.CodeInUse,
				Detail: fmt.Sprintf("the host has an interface %s that is not vmand's", nw.Bridge),
				Hint:   "give the network another name",
			}
		}
		exceptLink = nw.Bridge // left by an interrupted creation or deletion of the network
	}
	used, err := n.usedSubnets()
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{nw.Subnet, nw.IPv6} {
		if !p.IsValid() {
			continue
		}
		if by, collides := collision(p, used, exceptLink); collides {
			return &vm.Fault{
				Code:   vm.CodeInUse,
				Detail: fmt.Sprintf("the subnet %s cannot be used: %s", p, by),
				Hint:   "choose another subnet",
			}
		}
	}
	return nil
}

// A subnetCache holds the used subnets of the host for the problems of networks. A host with
// a million routes would keep vmand reading: if a read took longer than slowRead, the next one
// waits for rereadFactor times as long.
type subnetCache struct {
	used []usedSubnet
	next time.Time // when they may be read again
}

// overlaps returns a problem if a route or an address of the host overlaps the subnets of a
// network. It must be called with mu held.
func (n *Networks) overlaps(nw vm.Network) []vm.NetworkProblem {
	if !nw.Mode.Managed() {
		return nil
	}
	for _, p := range []netip.Prefix{nw.Subnet, nw.IPv6} {
		if !p.IsValid() {
			continue
		}
		if by, collides := collision(p, n.used.used, nw.Bridge); collides {
			return []vm.NetworkProblem{problemOf(vm.ProblemOverlap, nw,
				"remove the route, or move the VMs to a network with another subnet",
				"%s, which overlaps the subnet %s of network %s: packets to and from guests may go there", by, p, nw.Name)}
		}
	}
	return nil
}

// readUsed reads the used subnets of the host, unless that takes too long to do it again. It
// must be called with mu held.
func (n *Networks) readUsed() error {
	began := time.Now()
	if began.Before(n.used.next) {
		return nil
	}
	used, err := n.usedSubnets()
	if err != nil {
		return err
	}
	n.used = subnetCache{used: used}
	if took := time.Since(began); took > slowRead {
		n.used.next = time.Now().Add(took * rereadFactor)
	}
	return nil
}
