package harness

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkUp brings an interface up.
func (n *Namespace) LinkUp(name string) {
	n.T.Helper()
	n.Must("bring up "+name, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

// AddAddress adds addresses, with their prefix lengths, to an interface.
func (n *Namespace) AddAddress(name string, addresses ...string) {
	n.T.Helper()
	n.Must("add addresses to "+name, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, text := range addresses {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return fmt.Errorf("%s: %w", text, err)
			}
		}
		return nil
	})
}

// AddRoute adds a route. An empty destination stands for the default route.
func (n *Namespace) AddRoute(destination, gateway string) {
	n.T.Helper()
	n.Must("add a route", func() error {
		r := netlink.Route{Gw: net.ParseIP(gateway)}
		if destination != "" {
			var err error
			if _, r.Dst, err = net.ParseCIDR(destination); err != nil {
				return err
			}
		}
		return netlink.RouteAdd(&r)
	})
}

// DeleteRoute deletes a route.
func (n *Namespace) DeleteRoute(destination, gateway string) {
	n.T.Helper()
	n.Must("delete a route", func() error {
		_, dst, err := net.ParseCIDR(destination)
		if err != nil {
			return err
		}
		return netlink.RouteDel(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)})
	})
}

// AddBridge creates a bridge and brings it up.
func (n *Namespace) AddBridge(name string) {
	n.T.Helper()
	n.Must("create bridge "+name, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}})
	})
	n.LinkUp(name)
}

// Plug connects a new interface of n to a bridge of another namespace.
func (n *Namespace) Plug(name string, to *Namespace, bridge string) {
	n.T.Helper()
	to.Must("plug in namespace "+n.Name, func() error {
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		port := "p-" + n.Name
		veth := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: port, MasterIndex: master.Attrs().Index, TxQLen: -1},
			PeerName:      name,
			PeerNamespace: netlink.NsFd(n.net.Fd()),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	n.LinkUp(name)
}

// Links returns the sorted names of the interfaces with a prefix.
func (n *Namespace) Links(prefix string) []string {
	n.T.Helper()
	var names []string
	n.Must("list the interfaces", func() error {
		all, err := netlink.LinkList()
		for _, l := range all {
			if strings.HasPrefix(l.Attrs().Name, prefix) {
				names = append(names, l.Attrs().Name)
			}
		}
		return err
	})
	slices.Sort(names)
	return names
}

// Master returns the bridge of an interface, empty if it is on none.
func (n *Namespace) Master(name string) string {
	n.T.Helper()
	var bridge string
	n.Must("look at "+name, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil || link.Attrs().MasterIndex == 0 {
			return err
		}
		master, err := netlink.LinkByIndex(link.Attrs().MasterIndex)
		if err == nil {
			bridge = master.Attrs().Name
		}
		return err
	})
	return bridge
}
