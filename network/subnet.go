package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"vmand/vm"
)

// FreeSubnet implements [vm.HostNetwork].
func (n *Networks) FreeSubnet(
	ctx context.Context, wanted netip.Prefix, taken []netip.Prefix,
) (netip.Prefix, string, error) {
	if err := ctx.Err(); err != nil {
		return netip.Prefix{}, "", err
	}
	used, err := n.usedSubnets("")
	if err != nil {
		return netip.Prefix{}, "", err
	}
	for _, p := range taken {
		used = append(used, usedSubnet{p.Masked(), "another network has " + p.String()})
	}
	free, why, ok := freeSubnet(wanted, used)
	if !ok {
		return netip.Prefix{}, "", unavailable(nil, "no subnet is free: every private /24 overlaps a route of the host")
	}
	return free, why, nil
}

// A usedSubnet is a subnet in use, and its user in words.
type usedSubnet struct {
	netip.Prefix
	by string
}

// usedSubnets returns the subnets of the host's routes and addresses. It leaves out the
// default routes, and those of the interface exceptLink if that is not empty.
func (n *Networks) usedSubnets(exceptLink string) ([]usedSubnet, error) {
	if n.links == nil {
		return nil, nil
	}
	names, err := n.linkNames()
	if err != nil {
		return nil, err
	}
	routes, err := n.links.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, unavailable(err, "list the host's routes")
	}
	excepted := func(index int) bool { return exceptLink != "" && names[index] == exceptLink }
	var used []usedSubnet
	for _, r := range routes {
		p, ok := prefixOf(r.Dst)
		if !ok || p.Bits() == 0 || excepted(r.LinkIndex) {
			continue
		}
		used = append(used, usedSubnet{p, fmt.Sprintf("the host has a route to %s on %s", p, names[r.LinkIndex])})
	}
	addrs, err := n.links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, unavailable(err, "list the host's addresses")
	}
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if !ok || excepted(a.LinkIndex) {
			continue
		}
		by := fmt.Sprintf("the host has the address %s on %s", a.IPNet, names[a.LinkIndex])
		used = append(used, usedSubnet{p, by})
	}
	return used, nil
}

// linkNames returns the names of the host's interfaces by index.
func (n *Networks) linkNames() (map[int]string, error) {
	links, err := n.links.LinkList()
	if err != nil {
		return nil, unavailable(err, "list the host's interfaces")
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
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
	by, collides := collision(wanted, used)
	if !collides {
		return wanted, "", true
	}
	for candidate := range privateSubnets {
		if _, collides := collision(candidate, used); !collides {
			return candidate, fmt.Sprintf("%s is in use: %s", wanted, by), true
		}
	}
	return netip.Prefix{}, "", false
}

// collision returns the user of a subnet that p overlaps, in words.
func collision(p netip.Prefix, used []usedSubnet) (by string, collides bool) {
	for _, u := range used {
		if u.Overlaps(p) {
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
	used, err := n.usedSubnets(exceptLink)
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{nw.Subnet, nw.IPv6} {
		if !p.IsValid() {
			continue
		}
		if by, collides := collision(p, used); collides {
			return &vm.Fault{
				Code:   vm.CodeInUse,
				Detail: fmt.Sprintf("the subnet %s cannot be used: %s", p, by),
				Hint:   "choose another subnet",
			}
		}
	}
	return nil
}
