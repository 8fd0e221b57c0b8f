package test

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"vmand/openapi"
	"vmand/qemu/qmp"
)

// wrongNICs compares the NICs of VMs that run with those of their QEMUs.
func (d *daemon) wrongNICs(c census) (found []string) {
	d.t.Helper()
	for id, v := range c.vms {
		for _, n := range v.NICs {
			if n.State != "attached" {
				found = append(found, fmt.Sprintf("NIC %d of VM %s is %s", n.Slot, id, n.State))
			}
		}
		if d.pid(id) == 0 || v.State != "running" && v.State != "paused" {
			continue
		}
		said, ok := d.monitor(id, "info network")
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

// monitor runs a command of QEMU's human monitor and returns what it prints,
// and false if QEMU does not answer, because it ends just now.
func (d *daemon) monitor(id, command string) (out string, ok bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*time.Second)
	defer cancel()
	monitor, err := qmp.Dial(ctx, filepath.Join(d.runtime, id+".op-qmp"))
	if err != nil {
		return "", false
	}
	defer monitor.Close()
	err = monitor.Execute(ctx, "human-monitor-command", map[string]any{"command-line": command}, &out)
	return out, err == nil
}

// wrongNetworks compares what is recorded with the interfaces and the rules of
// the daemon's host.
func (d *daemon) wrongNetworks(c census) (found []string) {
	d.t.Helper()
	bridges := map[string]bool{}
	for _, n := range as[[]openapi.Network](d.call("GET", "/networks", nil).want(200)) {
		if n.Mode == "nat" || n.Mode == "isolated" {
			bridges[n.Name] = true
		}
	}
	want, forwards := map[string]string{}, 0 // aliases of taps, with the bridge of each
	for id, v := range c.vms {
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
	d.host.must("list the interfaces", func() error {
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
func (d *daemon) wrongElements(taps map[string]bool, forwards int) (found []string) {
	d.t.Helper()
	c := d.host.firewall()
	forwarded := 0
	for _, table := range d.host.tables() {
		sets, err := c.GetSets(table)
		if err != nil {
			d.t.Fatal(err)
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				d.t.Fatal(err)
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
