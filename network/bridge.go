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

// alias marks the interfaces of vmand: it is the alias of a bridge and the first word of
// the alias of a tap.
const alias = "vmand"

const defaultMTU = 1500

// gatewayLinkLocal is the host's address on every network with IPv6. It is fixed, so
// that guests keep their router when the bridge is created again.
var gatewayLinkLocal = netip.MustParsePrefix("fe80::1/64")

// bridgeMAC returns the MAC address of the bridge with a name. A bridge without a fixed
// address takes the lowest one of its ports, so guests would lose their gateway when a
// port is added or removed.
func bridgeMAC(bridgeName string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("bridge/" + bridgeName))
	return append(net.HardwareAddr{0x52}, sum[:5]...)
}

// isOurBridge reports whether vmand created l. A kill right after the creation leaves a
// bridge without the alias; its address identifies it.
func isOurBridge(l netlink.Link) bool {
	if l.Type() != "bridge" {
		return false
	}
	a := l.Attrs()
	return a.Alias == alias || a.Alias == "" && slices.Equal(a.HardwareAddr, bridgeMAC(a.Name))
}

// findLink returns the interface with a name, or nil if there is none.
func (n *Networks) findLink(name string) (netlink.Link, error) {
	l, err := n.links.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable(err, "look up the interface %s", name)
	}
	return l, nil
}

// hostBridge returns the bridge of a network of mode bridge. It returns a fault if the
// host has no suitable one.
func (n *Networks) hostBridge(nw vm.Network) (netlink.Link, error) {
	l, err := n.findLink(nw.Bridge)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, unavailable(nil, "the host has no bridge %s for network %s", nw.Bridge, nw.Name)
	}
	b, ok := l.(*netlink.Bridge)
	if !ok {
		return nil, unavailable(nil, "the host's interface %s is a %s, not a bridge", nw.Bridge, l.Type())
	}
	if isOurBridge(l) {
		f := unavailable(nil, "the bridge %s belongs to another network of vmand", nw.Bridge)
		f.Hint = "put the NICs on that network"
		return nil, f
	}
	if nw.VLAN != 0 && (b.VlanFiltering == nil || !*b.VlanFiltering) {
		f := unavailable(nil, "the bridge %s does not filter VLANs, so network %s cannot use VLAN %d",
			nw.Bridge, nw.Name, nw.VLAN)
		f.Hint = fmt.Sprintf("ip link set %s type bridge vlan_filtering 1", nw.Bridge)
		return nil, f
	}
	return l, nil
}

// activeBridge returns the bridge of a network. It returns a fault if the network is not
// up.
func (n *Networks) activeBridge(nw vm.Network) (netlink.Link, error) {
	if nw.Mode == vm.NetworkBridge {
		return n.hostBridge(nw)
	}
	bridge, err := n.findLink(nw.Bridge)
	if err != nil {
		return nil, err
	}
	if bridge == nil || !isOurBridge(bridge) {
		return nil, unavailable(nil, "the bridge %s of network %s is missing", nw.Bridge, nw.Name)
	}
	return bridge, nil
}

// Up implements [vm.HostNetwork].
func (n *Networks) Up(ctx context.Context, nw vm.Network) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.Check(nw.Mode); err != nil || nw.Mode == vm.NetworkUser {
		return err
	}
	defer n.endFlows()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.up(nw); err != nil {
		return err
	}
	return n.configureTaps(nw)
}

// up is Up without the taps of the network. It must be called with mu held.
func (n *Networks) up(nw vm.Network) error {
	if nw.Mode == vm.NetworkBridge {
		_, err := n.hostBridge(nw)
		return err
	}
	if nw.Mode == vm.NetworkNAT {
		if err := n.sysctls.enableForwarding(nw.IPv6.IsValid()); err != nil {
			return unavailable(err, "enable packet forwarding on the host")
		}
	}
	if err := n.ensureBridge(nw); err != nil {
		return err
	}
	if err := n.firewall.set(networkOwner(nw.Name), networkElements(nw)); err != nil {
		return unavailable(err, "set the firewall of network %s", nw.Name)
	}
	return n.ensureServers(nw)
}

// ensureBridge creates the bridge of a network if it is missing and configures it.
func (n *Networks) ensureBridge(nw vm.Network) error {
	link, err := n.findLink(nw.Bridge)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = n.addBridge(nw); err != nil {
			return unavailable(err, "create the bridge %s", nw.Bridge)
		}
	}
	if !isOurBridge(link) {
		f := unavailable(nil, "network %s cannot be created: the host has an interface %s that is not vmand's",
			nw.Name, nw.Bridge)
		f.Hint = "rename or remove it: ip link show " + nw.Bridge
		return f
	}
	if err := n.configureBridge(nw, link); err != nil {
		return unavailable(err, "configure the bridge %s", nw.Bridge)
	}
	return nil
}

// addBridge creates a bridge. The spanning tree protocol is off by default in the
// kernel, so a port forwards at once, whatever the forward delay.
func (n *Networks) addBridge(nw vm.Network) (netlink.Link, error) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.HardwareAddr = nw.Bridge, mtu(nw), bridgeMAC(nw.Bridge)
	if err := n.links.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
		return nil, err
	}
	failpoint.Hit("bridge.made")
	return n.links.LinkByName(nw.Bridge)
}

// mtu returns the MTU of a network, or defaultMTU if the record has none.
func mtu(nw vm.Network) int {
	if nw.MTU == 0 {
		return defaultMTU
	}
	return nw.MTU
}

// configureBridge sets alias, MTU, sysctls and addresses of a bridge and brings it up.
func (n *Networks) configureBridge(nw vm.Network, link netlink.Link) error {
	a := link.Attrs()
	if a.Alias != alias {
		if err := n.links.LinkSetAlias(link, alias); err != nil {
			return fmt.Errorf("set its alias: %w", err)
		}
	}
	if a.MTU != mtu(nw) {
		if err := n.links.LinkSetMTU(link, mtu(nw)); err != nil {
			return fmt.Errorf("set its MTU to %d: %w", mtu(nw), err)
		}
	}
	for name, value := range bridgeSysctls(nw) {
		err := setSysctl(name, value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the kernel may lack IPv6
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	if err := n.setAddresses(nw, link); err != nil {
		return err
	}
	if a.Flags&net.FlagUp == 0 {
		if err := n.links.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring it up: %w", err)
		}
	}
	return nil
}

// bridgeSysctls returns the sysctls of a network's bridge. Without route_localnet a
// connection from the host's 127.0.0.1 to a forwarded port cannot leave through the
// bridge; a rule drops what guests send to 127.0.0.0/8. The host ignores router
// advertisements on the bridge, and a network without IPv6 has IPv6 disabled.
func bridgeSysctls(nw vm.Network) map[string]string {
	v4, v6 := "ipv4/conf/"+nw.Bridge+"/", "ipv6/conf/"+nw.Bridge+"/"
	values := map[string]string{v4 + "route_localnet": "1"}
	if !nw.IPv6.IsValid() {
		values[v6+"disable_ipv6"] = "1"
		return values
	}
	values[v6+"disable_ipv6"] = "0"
	values[v6+"accept_ra"] = "0"
	values[v6+"addr_gen_mode"] = "1" // no link-local address but gatewayLinkLocal
	return values
}

// bridgeAddresses returns the addresses of a network's bridge.
func bridgeAddresses(nw vm.Network) []netip.Prefix {
	all := []netip.Prefix{netip.PrefixFrom(nw.Gateway, nw.Subnet.Bits())}
	if nw.IPv6.IsValid() {
		all = append(all, netip.PrefixFrom(nw.GatewayIPv6(), nw.IPv6.Bits()), gatewayLinkLocal)
	}
	return all
}

// setAddresses adds the missing addresses of a bridge and removes all others.
func (n *Networks) setAddresses(nw vm.Network, link netlink.Link) error {
	has, err := n.links.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list its addresses: %w", err)
	}
	missing := bridgeAddresses(nw)
	for _, a := range has {
		p := addressOf(a)
		if i := slices.Index(missing, p); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		err := n.links.AddrDel(link, &netlink.Addr{IPNet: a.IPNet})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove the address %s: %w", p, err)
		}
	}
	for _, p := range missing {
		mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: mask}}
		if p.Addr().Is6() {
			// No duplicate address detection: servers bind to the address at once, and
			// the rules keep guests from using it.
			a.Flags = unix.IFA_F_NODAD
		}
		if err := n.links.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add the address %s: %w", p, err)
		}
	}
	return nil
}

func addressOf(a netlink.Addr) netip.Prefix {
	ip, _ := netip.AddrFromSlice(a.IP)
	ones, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones)
}

// configureTaps configures the taps on the bridge of a network to match its record.
func (n *Networks) configureTaps(nw vm.Network) error {
	bridge, err := n.findLink(nw.Bridge)
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
		if err := n.configureTap(nw, l, bridge); err != nil && !isGone(err) {
			return unavailable(err, "configure the interface %s of network %s", l.Attrs().Name, nw.Name)
		}
	}
	return nil
}

// Down implements [vm.HostNetwork]. Of a network without a record only the name is
// known, so Down removes everything with that name and vmand's mark.
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
	link, err := n.findLink(nw.Bridge)
	if err != nil {
		return err
	}
	if link != nil && isOurBridge(link) {
		if err := n.links.LinkDel(link); err != nil && !isGone(err) {
			return unavailable(err, "remove the bridge %s", nw.Bridge)
		}
	}
	if err := n.firewall.set(networkOwner(nw.Name), nil); err != nil {
		return unavailable(err, "remove the firewall of network %s", nw.Name)
	}
	return nil
}

// isGone reports whether err means that an interface vanished during a change of it.
func isGone(err error) bool {
	_, missing := errors.AsType[netlink.LinkNotFoundError](err)
	return missing || errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist)
}
