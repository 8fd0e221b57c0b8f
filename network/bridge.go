package network

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/failpoint"
	"vmand/vm"
)

// alias marks what is ours: bridges have it, taps have it with what follows.
const alias = "vmand"

const defaultMTU = 1500

// gatewayLinkLocal is the host's address on every network with IPv6: fixed, so
// that guests keep their router when the bridge is made again.
var gatewayLinkLocal = netip.MustParsePrefix("fe80::1/64")

// bridgeMAC returns the address of the bridge of a name. Without a fixed one a
// bridge takes the lowest of its ports', and guests lose their gateway when a
// port comes or goes.
func bridgeMAC(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("bridge/" + name))
	return append(net.HardwareAddr{0x52}, sum[:5]...)
}

// ours reports whether a bridge is one that vmand has made. One whose making
// was interrupted has no alias yet, but nobody else gives it that address.
func ours(l netlink.Link) bool {
	a := l.Attrs()
	return l.Type() == "bridge" && (a.Alias == alias || a.Alias == "" && slices.Equal(a.HardwareAddr, bridgeMAC(a.Name)))
}

// find returns the interface of a name, nil if there is none.
func (n *Networks) find(name string) (netlink.Link, error) {
	l, err := n.links.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable(err, "look for the interface %s", name)
	}
	return l, nil
}

// hostBridge returns the bridge of a network of mode bridge.
func (n *Networks) hostBridge(nw vm.Network) (netlink.Link, error) {
	l, err := n.find(nw.Bridge)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, unavailable(nil, "the host has no bridge %s, which network %s is to use", nw.Bridge, nw.Name)
	}
	b, ok := l.(*netlink.Bridge)
	if !ok {
		return nil, unavailable(nil, "the host's interface %s is a %s, not a bridge", nw.Bridge, l.Type())
	}
	if ours(l) {
		f := unavailable(nil, "the bridge %s is of another network of vmand", nw.Bridge)
		f.Hint = "put the NICs on that network"
		return nil, f
	}
	if nw.VLAN != 0 && (b.VlanFiltering == nil || !*b.VlanFiltering) {
		f := unavailable(nil, "the bridge %s does not filter VLANs, so guests of network %s cannot be put into VLAN %d", nw.Bridge, nw.Name, nw.VLAN)
		f.Hint = fmt.Sprintf("ip link set %s type bridge vlan_filtering 1", nw.Bridge)
		return nil, f
	}
	return l, nil
}

// Up implements [vm.HostNetwork].
func (n *Networks) Up(ctx context.Context, nw vm.Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.Check(nw.Mode); err != nil || nw.Mode == vm.NetworkUser {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.up(nw); err != nil {
		return err
	}
	return n.fitPorts(nw)
}

// up makes a network without a look at its ports. The caller holds n.mu.
func (n *Networks) up(nw vm.Network) error {
	if nw.Mode == vm.NetworkBridge {
		_, err := n.hostBridge(nw)
		return err
	}
	if nw.Mode == vm.NetworkNAT {
		if err := n.sysctls.forward(nw.IPv6.IsValid()); err != nil {
			return unavailable(err, "let the host forward packets")
		}
	}
	if err := n.raise(nw); err != nil {
		return err
	}
	if err := n.firewall.set(networkOwner(nw.Name), networkElements(nw)); err != nil {
		return unavailable(err, "set the firewall of network %s", nw.Name)
	}
	return n.serve(nw)
}

// raise makes the bridge of a network, or what is wrong of it.
func (n *Networks) raise(nw vm.Network) error {
	link, err := n.find(nw.Bridge)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = n.makeBridge(nw); err != nil {
			return unavailable(err, "make the bridge %s", nw.Bridge)
		}
	}
	if !ours(link) {
		f := unavailable(nil, "the host has an interface %s that is not vmand's, so network %s cannot be made", nw.Bridge, nw.Name)
		f.Hint = "rename or remove it: ip link show " + nw.Bridge
		return f
	}
	if err := n.fitBridge(nw, link); err != nil {
		return unavailable(err, "set up the bridge %s", nw.Bridge)
	}
	return nil
}

// makeBridge adds a bridge. The spanning tree protocol is off, as the kernel has
// it; a port then forwards at once, whatever the forward delay.
func (n *Networks) makeBridge(nw vm.Network) (netlink.Link, error) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.HardwareAddr = nw.Bridge, mtu(nw), bridgeMAC(nw.Bridge)
	if err := n.links.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
		return nil, err
	}
	failpoint.Hit("bridge.made")
	return n.links.LinkByName(nw.Bridge)
}

func mtu(nw vm.Network) int {
	if nw.MTU == 0 {
		return defaultMTU
	}
	return nw.MTU
}

func (n *Networks) fitBridge(nw vm.Network, link netlink.Link) error {
	a := link.Attrs()
	if a.Alias != alias {
		if err := n.links.LinkSetAlias(link, alias); err != nil {
			return fmt.Errorf("mark it: %w", err)
		}
	}
	if a.MTU != mtu(nw) {
		if err := n.links.LinkSetMTU(link, mtu(nw)); err != nil {
			return fmt.Errorf("set its MTU to %d: %w", mtu(nw), err)
		}
	}
	for name, value := range bridgeSysctls(nw) {
		if err := setSysctl(name, value); err != nil && !errors.Is(err, fs.ErrNotExist) { // the kernel may be without IPv6
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	if err := n.address(nw, link); err != nil {
		return err
	}
	if a.Flags&net.FlagUp == 0 {
		if err := n.links.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring it up: %w", err)
		}
	}
	return nil
}

// bridgeSysctls are those of a bridge. Without route_localnet a connection from
// the host's 127.0.0.1 to a forwarded port cannot leave through the bridge (what
// guests send to 127.0.0.0/8 is dropped by a rule). Nobody on a bridge tells
// the host of routers, and a network without IPv6 has none of it.
func bridgeSysctls(nw vm.Network) map[string]string {
	v4, v6 := "ipv4/conf/"+nw.Bridge+"/", "ipv6/conf/"+nw.Bridge+"/"
	values := map[string]string{v4 + "route_localnet": "1"}
	if !nw.IPv6.IsValid() {
		values[v6+"disable_ipv6"] = "1"
		return values
	}
	values[v6+"disable_ipv6"] = "0"
	values[v6+"accept_ra"] = "0"
	values[v6+"addr_gen_mode"] = "1" // no link-local address but the fixed one
	return values
}

// addresses returns those that a network's bridge is to have.
func addresses(nw vm.Network) []netip.Prefix {
	all := []netip.Prefix{netip.PrefixFrom(nw.Gateway, nw.Subnet.Bits())}
	if nw.IPv6.IsValid() {
		all = append(all, netip.PrefixFrom(nw.GatewayIPv6(), nw.IPv6.Bits()), gatewayLinkLocal)
	}
	return all
}

// address gives a bridge its addresses, and takes those away that are not its.
func (n *Networks) address(nw vm.Network, link netlink.Link) error {
	has, err := n.links.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list its addresses: %w", err)
	}
	missing := addresses(nw)
	for _, a := range has {
		p := addressOf(a)
		if i := slices.Index(missing, p); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if err := n.links.AddrDel(link, &netlink.Addr{IPNet: a.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take away the address %s: %w", p, err)
		}
	}
	for _, p := range missing {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // servers bind to it at once, and nobody but us has it
		}
		if err := n.links.AddrReplace(link, a); err != nil {
			return fmt.Errorf("give it the address %s: %w", p, err)
		}
	}
	return nil
}

func addressOf(a netlink.Addr) netip.Prefix {
	ip, _ := netip.AddrFromSlice(a.IP)
	ones, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones)
}

// fitPorts makes the taps that are on a network as the network is now.
func (n *Networks) fitPorts(nw vm.Network) error {
	bridge, err := n.find(nw.Bridge)
	if err != nil || bridge == nil {
		return err
	}
	links, err := n.links.LinkList()
	if err != nil {
		return unavailable(err, "list the host's interfaces")
	}
	for _, l := range links {
		if l.Attrs().MasterIndex != bridge.Attrs().Index || !isTap(l) {
			continue
		}
		if err := n.fitTap(nw, l, bridge); err != nil && !gone(err) {
			return unavailable(err, "set up the interface %s of network %s", l.Attrs().Name, nw.Name)
		}
	}
	return nil
}

// Down implements [vm.HostNetwork]. Of a network that is recorded no more the name
// is all that is known: what is removed is told by its mark.
func (n *Networks) Down(ctx context.Context, nw vm.Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.mode == ModeUser || nw.Mode == vm.NetworkBridge || nw.Mode == vm.NetworkUser {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.serving[nw.Name]; s != nil {
		s.close(n.log)
		delete(n.serving, nw.Name)
	}
	link, err := n.find(nw.Bridge)
	if err != nil {
		return err
	}
	if link != nil && ours(link) {
		if err := n.links.LinkDel(link); err != nil && !gone(err) {
			return unavailable(err, "remove the bridge %s", nw.Bridge)
		}
	}
	if err := n.firewall.set(networkOwner(nw.Name), nil); err != nil {
		return unavailable(err, "remove the firewall of network %s", nw.Name)
	}
	return nil
}

// gone reports whether an interface vanished under what was done with it.
func gone(err error) bool {
	_, missing := errors.AsType[netlink.LinkNotFoundError](err)
	return missing || errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist)
}
