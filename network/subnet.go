package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"vmand/vm"
)

// FreeSubnet implements [vm.HostNetwork].
func (n *Networks) FreeSubnet(ctx context.Context, wish netip.Prefix, taken []netip.Prefix) (netip.Prefix, string, error) {
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
	free, why, ok := freeSubnet(wish, used)
	if !ok {
		return netip.Prefix{}, "", unavailable(nil, "every private /24 overlaps a route of the host")
	}
	return free, why, nil
}

// A usedSubnet is one that something is using.
type usedSubnet struct {
	netip.Prefix
	by string // in words
}

// usedSubnets returns where the host's routes and addresses lead, but for the
// default routes and what is on the interface called but.
func (n *Networks) usedSubnets(but string) ([]usedSubnet, error) {
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
	var used []usedSubnet
	for _, r := range routes {
		p, ok := prefixOf(r.Dst)
		if !ok || p.Bits() == 0 || but != "" && names[r.LinkIndex] == but {
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
		if !ok || but != "" && names[a.LinkIndex] == but {
			continue
		}
		used = append(used, usedSubnet{p, fmt.Sprintf("the host has the address %s on %s", a.IPNet, names[a.LinkIndex])})
	}
	return used, nil
}

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

// freeSubnet returns wish or the first private /24 after it that overlaps none
// of used, and why it is not wish.
func freeSubnet(wish netip.Prefix, used []usedSubnet) (free netip.Prefix, why string, ok bool) {
	by, collides := collision(wish, used)
	if !collides {
		return wish, "", true
	}
	for c := range privateSubnets {
		if _, collides := collision(c, used); !collides {
			return c, fmt.Sprintf("%s was wanted, but %s", wish, by), true
		}
	}
	return netip.Prefix{}, "", false
}

func collision(p netip.Prefix, used []usedSubnet) (by string, collides bool) {
	for _, u := range used {
		if u.Overlaps(p) {
			return u.by, true
		}
	}
	return "", false
}

// privateSubnets yields every /24 of RFC 1918: those first that are the least
// likely to be on the other end of a VPN.
func privateSubnets(yield func(netip.Prefix) bool) {
	all := func(first [4]byte, count uint32) bool {
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
	_ = all([4]byte{192, 168, 100, 0}, 156) && all([4]byte{192, 168, 0, 0}, 100) &&
		all([4]byte{172, 16, 0, 0}, 16<<8) && all([4]byte{10, 0, 0, 0}, 1<<16)
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
	link, err := n.find(nw.Bridge)
	if err != nil {
		return err
	}
	but := ""
	if link != nil {
		if !ours(link) {
			return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("the host has an interface %s that is not vmand's", nw.Bridge),
				Hint: "give the network another name"}
		}
		but = nw.Bridge // of a network that was being made or removed
	}
	used, err := n.usedSubnets(but)
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{nw.Subnet, nw.IPv6} {
		if !p.IsValid() {
			continue
		}
		if by, collides := collision(p, used); collides {
			return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("the subnet %s cannot be used: %s", p, by), Hint: "choose another subnet"}
		}
	}
	return nil
}

// words joins parts for a person.
func words(parts []string) string { return strings.Join(parts, "; ") }
