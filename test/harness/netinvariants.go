package harness

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// inspectNICs compares the NICs of running VMs with those of their QEMUs.
func (i *inspection) inspectNICs() {
	i.T.Helper()
	for id, v := range i.census.VMs {
		for _, n := range v.NICs {
			if n.State != "attached" {
				i.report("NIC %d of VM %s is %s", n.Slot, id, n.State)
			}
		}
		if i.VMPID(id) == 0 || v.State != "running" && v.State != "paused" {
			continue
		}
		out, ok := i.HMP(id, "info network")
		if !ok {
			continue
		}
		nics := 0
		for line := range strings.Lines(out) {
			// A NIC, followed by an indented line for its peer.
			switch {
			case strings.HasPrefix(line, " "):
			case strings.Contains(line, "type=nic"):
				nics++
			default:
				i.report("QEMU of VM %s has a peer without a NIC: %s", id, strings.TrimSpace(line))
			}
		}
		if nics != len(v.NICs) {
			i.report("QEMU of VM %s has %d NICs, %d are recorded", id, nics, len(v.NICs))
		}
	}
}

// inspectNetworks compares networks, NICs and port forwards with the interfaces and the
// firewall rules of the daemon's host.
func (i *inspection) inspectNetworks() {
	i.T.Helper()
	bridges := map[string]bool{}
	for _, n := range i.census.Networks {
		if n.Mode == "nat" || n.Mode == "isolated" {
			bridges[n.Name] = true
		}
	}
	bridgeOf, forwards := map[string]string{}, 0 // by the alias of the tap
	for id, v := range i.census.VMs {
		if v.State != "running" && v.State != "paused" {
			continue
		}
		for _, n := range v.NICs {
			if n.Mode == "nat" || n.Mode == "isolated" {
				bridgeOf[fmt.Sprintf("vmand %s %d", id, n.Slot)] = string(n.Network)
			}
		}
		forwards += len(v.PortForwards)
	}
	taps := map[string]bool{}
	i.Host.Must("list the interfaces", func() error {
		all, err := netlink.LinkList()
		for _, link := range all {
			a := link.Attrs()
			switch link.Type() {
			case "bridge":
				if !bridges[a.Name] {
					i.report("bridge %s belongs to no network", a.Name)
				}
				delete(bridges, a.Name)
			case "tuntap":
				taps[a.Name] = true
				i.inspectTap(a, bridgeOf)
				delete(bridgeOf, a.Alias)
			}
		}
		return err
	})
	for _, name := range slices.Sorted(maps.Keys(bridges)) {
		i.report("bridge %s is missing", name)
	}
	for _, alias := range slices.Sorted(maps.Keys(bridgeOf)) {
		i.report("the tap of %s is missing", alias)
	}
	i.inspectSets(taps, forwards)
}

func (i *inspection) inspectTap(tap *netlink.LinkAttrs, bridgeOf map[string]string) {
	bridge, ok := bridgeOf[tap.Alias]
	if !ok {
		i.report("tap %s (%s) belongs to no NIC", tap.Name, tap.Alias)
		return
	}
	master, err := netlink.LinkByIndex(tap.MasterIndex)
	if err != nil || master.Attrs().Name != bridge {
		i.report("tap %s (%s) is not on bridge %s: %v", tap.Name, tap.Alias, bridge, err)
	}
}

// inspectSets compares the elements of the nftables sets with the taps, and their number
// with the number of port forwards.
func (i *inspection) inspectSets(taps map[string]bool, forwards int) {
	i.T.Helper()
	c := i.Host.Firewall()
	found := 0
	for _, table := range i.Host.Tables() {
		sets, err := c.GetSets(table)
		if err != nil {
			i.T.Fatal(err)
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				i.T.Fatal(err)
			}
			for _, e := range elements {
				switch name, _, _ := strings.Cut(string(e.Key), "\x00"); {
				case set.Name == "forwards" || set.Name == "anywhere":
					found++
				case strings.HasPrefix(name, "vt") && !taps[name]:
					i.report("set %s contains tap %s, which does not exist", set.Name, name)
				}
			}
		}
	}
	if found != forwards {
		i.report("the rules have %d port forwards, running VMs have %d", found, forwards)
	}
}
