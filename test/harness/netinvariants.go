package harness

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"vmand/openapi"
)

// wrongNICs compares the NICs of VMs that run with those of their QEMUs.
func (d *Daemon) wrongNICs(c Census) (found []string) {
	d.T.Helper()
	for id, v := range c.VMs {
		for _, n := range v.NICs {
			if n.State != "attached" {
				found = append(found, fmt.Sprintf("NIC %d of VM %s is %s", n.Slot, id, n.State))
			}
		}
		if d.VMPID(id) == 0 || v.State != "running" && v.State != "paused" {
			continue
		}
		said, ok := d.HMP(id, "info network")
		if !ok {
			continue
		}
		cards := 0
		for line := range strings.Lines(said) {
			// A card, and below it what it is connected to.
			switch {
			case strings.HasPrefix(line, " "):
			case strings.Contains(line, "type=nic"):
				cards++
			default:
				found = append(found, fmt.Sprintf("the QEMU of VM %s has, without a card, %s", id, strings.TrimSpace(line)))
			}
		}
		if cards != len(v.NICs) {
			found = append(found, fmt.Sprintf("the QEMU of VM %s has %d NICs, and %d are recorded", id, cards, len(v.NICs)))
		}
	}
	return found
}

// wrongNetworks compares what is recorded with the interfaces and the rules of
// the daemon's host.
func (d *Daemon) wrongNetworks(c Census) (found []string) {
	d.T.Helper()
	bridges := map[string]bool{}
	for _, n := range As[[]openapi.Network](d.Call("GET", "/networks", nil).Want(200)) {
		if n.Mode == "nat" || n.Mode == "isolated" {
			bridges[n.Name] = true
		}
	}
	want, forwards := map[string]string{}, 0 // aliases of taps, with the bridge of each
	for id, v := range c.VMs {
		if v.State != "running" && v.State != "paused" {
			continue
		}
		for _, n := range v.NICs {
			if n.Mode == "nat" || n.Mode == "isolated" {
				want[fmt.Sprintf("vmand %s %d", id, n.Slot)] = string(n.Network)
			}
		}
		forwards += len(v.PortForwards)
	}
	taps := map[string]bool{}
	d.Host.Must("list the interfaces", func() error {
		all, err := netlink.LinkList()
		for _, l := range all {
			a := l.Attrs()
			switch l.Type() {
			case "bridge":
				if !bridges[a.Name] {
					found = append(found, fmt.Sprintf("the bridge %s is nobody's", a.Name))
				}
				delete(bridges, a.Name)
			case "tuntap":
				taps[a.Name] = true
				if network, ok := want[a.Alias]; !ok {
					found = append(found, fmt.Sprintf("the tap %s (%s) is nobody's", a.Name, a.Alias))
				} else if master, err := netlink.LinkByIndex(a.MasterIndex); err != nil || master.Attrs().Name != network {
					found = append(found, fmt.Sprintf("the tap %s (%s) is not on the bridge %s: %v", a.Name, a.Alias, network, err))
				}
				delete(want, a.Alias)
			}
		}
		return err
	})
	for _, name := range slices.Sorted(maps.Keys(bridges)) {
		found = append(found, fmt.Sprintf("the bridge %s is missing", name))
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		found = append(found, fmt.Sprintf("the tap of %s is missing", name))
	}
	return append(found, d.wrongElements(taps, forwards)...)
}

// wrongElements looks into the sets of the daemon's nftables tables for taps that
// are not there, and counts the port forwards.
func (d *Daemon) wrongElements(taps map[string]bool, forwards int) (found []string) {
	d.T.Helper()
	c := d.Host.Firewall()
	forwarded := 0
	for _, table := range d.Host.Tables() {
		sets, err := c.GetSets(table)
		if err != nil {
			d.T.Fatal(err)
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				d.T.Fatal(err)
			}
			for _, e := range elements {
				switch name, _, _ := strings.Cut(string(e.Key), "\x00"); {
				case set.Name == "forwards" || set.Name == "anywhere":
					forwarded++
				case strings.HasPrefix(name, "vt") && !taps[name]:
					found = append(found, fmt.Sprintf("the set %s has the tap %s, which is not there", set.Name, name))
				}
			}
		}
	}
	if forwarded != forwards {
		found = append(found, fmt.Sprintf("the rules have %d port forwards, and VMs that run have %d", forwarded, forwards))
	}
	return found
}
