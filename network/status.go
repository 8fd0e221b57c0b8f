package network

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"vmand/vm"
)

// Status implements [vm.HostNetwork].
func (n *Networks) Status(ctx context.Context, nw vm.Network) vm.NetworkStatus {
	var s vm.NetworkStatus
	if ctx.Err() != nil {
		return s
	}
	problem := func(fix, format string, args ...any) {
		s.Problems = append(s.Problems, problemOf(vm.ProblemBlocked, nw, fix, format, args...))
	}
	if nw.Mode == vm.NetworkUser {
		if _, err := exec.LookPath(n.o.Passt); err != nil && !nw.Restrict {
			problem("install passt, or create a network with restrict",
				"passt is not installed, so guests reach services on the host's 127.0.0.1 at the address %s",
				userGateway(nw))
		}
		return s
	}
	if err := n.Check(nw.Mode); err != nil {
		problem("run vmand as root, or move the VMs to a network of mode user", "%v", err)
		return s
	}
	links, err := n.links.LinkList()
	if err != nil {
		problem("", "the host's interfaces cannot be listed: %v", err)
		return s
	}
	bridge, err := n.activeBridge(nw)
	if err != nil {
		problem("create the bridge, or wait for the next pass of the observer", "%v", err)
	} else {
		s.Interfaces = interfacesOf(bridge, links)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if serving := n.serving[nw.Name]; serving != nil && serving.dhcp != nil {
		s.Leases = serving.dhcp.Leases()
	}
	if serving := n.serving[nw.Name]; serving != nil && serving.dns != nil {
		_, s.DNSLimited = serving.dns.LimitedSince(time.Now())
	}
	if err := n.unserved(nw, bridge); err != nil {
		problem("find the program that has the ports: ss -lnp 'sport = 53 or sport = 67'", "%v", err)
	}
	if on, err := getSysctl(forward4); nw.Mode == vm.NetworkNAT && err == nil && on != "1" {
		problem("sysctl -w net.ipv4.ip_forward=1",
			"the host does not forward packets: net.ipv4.ip_forward is %s", on)
	}
	s.Problems = append(s.Problems, n.problems(ctx, nw)...)
	return s
}

// Served returns nil if DHCP, DNS and router advertisements of a network are served, or need
// not be. Otherwise it returns the reason.
func (n *Networks) Served(nw vm.Network) error {
	if n.mode == ModeUser || !nw.Mode.Managed() {
		return nil
	}
	bridge, err := n.activeBridge(nw)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.unserved(nw, bridge)
}

// unserved returns why one of the servers of a network does not serve, or nil if all
// serve. bridge may be nil. It must be called with mu held.
func (n *Networks) unserved(nw vm.Network, bridge netlink.Link) error {
	if !nw.Mode.Managed() || bridge == nil {
		return nil
	}
	return n.serving[nw.Name].fault(bridge.Attrs().Index)
}

func problemOf(kind vm.ProblemKind, nw vm.Network, fix, format string, args ...any) vm.NetworkProblem {
	return vm.NetworkProblem{
		Kind:     kind,
		Resource: vm.NetworkResource(nw.Name),
		Detail:   fmt.Sprintf(format, args...),
		Fix:      fix,
	}
}

// problems returns the states of the host that keep networks from working and that a pass does
// not repair. It must be called with mu held.
func (n *Networks) problems(ctx context.Context, networks ...vm.Network) (found []vm.NetworkProblem) {
	unread := n.readUsed()
	for _, nw := range networks {
		if nw.Mode == vm.NetworkUser {
			continue
		}
		blocked, err := n.firewallProblems(nw)
		if err != nil {
			found = append(found, problemOf(vm.ProblemBlocked, nw, "", "the host's firewall cannot be read: %v", err))
		}
		if unread != nil {
			found = append(found, problemOf(vm.ProblemOverlap, nw, "", "the host's routes cannot be read: %v", unread))
		}
		found = slices.Concat(found, blocked, n.overlaps(nw), n.dnsProblems(ctx, nw), n.conflicts(nw))
	}
	return found
}

// conflicts returns a problem for each guest that has declined its address. It must be called
// with mu held.
func (n *Networks) conflicts(nw vm.Network) (found []vm.NetworkProblem) {
	s := n.serving[nw.Name]
	if s == nil || s.dhcp == nil {
		return nil
	}
	for _, c := range s.dhcp.Conflicts() {
		const clock = time.TimeOnly
		found = append(found, vm.NetworkProblem{
			Kind:     vm.ProblemConflict,
			Resource: vm.VMResource(c.Lease.VMID),
			Detail: fmt.Sprintf("another machine uses the address %s of NIC %d of VM %s on network %s: "+
				"the guest declined it at %s UTC, and it is not offered before %s",
				c.IP, c.Lease.Slot, c.Lease.VMID, nw.Name, c.At.UTC().Format(clock), c.Until.UTC().Format(clock)),
			Fix: fmt.Sprintf("find the machine (ip neighbour show %s dev %s), then restart the VM", c.IP, nw.Bridge),
		})
	}
	return found
}

// limitedFor is how long a query that met a limit is a problem.
const limitedFor = 5 * time.Minute

// dnsProblems returns a problem for each of the guests that met a limit of the DNS server
// most often. It must be called with mu held.
func (n *Networks) dnsProblems(ctx context.Context, nw vm.Network) (found []vm.NetworkProblem) {
	const most = 3
	s := n.serving[nw.Name]
	if s == nil || s.dns == nil {
		return nil
	}
	clients, _ := s.dns.LimitedSince(time.Now().Add(-limitedFor))
	for _, c := range clients[:min(len(clients), most)] {
		who := "the client " + c.Client.String()
		if l, err := n.o.Directory.LeaseByIP(ctx, nw.Name, c.Client); err == nil {
			who = fmt.Sprintf("VM %s (%s)", l.VMID, c.Client)
		}
		found = append(found, problemOf(vm.ProblemDNS, nw,
			"reduce its queries, or give the guests other servers with dns of the network",
			"%d DNS queries of %s were not answered: it sends more at once than vmand forwards", c.Count, who))
	}
	return found
}

// interfacesOf returns the names of a bridge and, in order, of the taps on it.
func interfacesOf(bridge netlink.Link, links []netlink.Link) []string {
	names := []string{bridge.Attrs().Name}
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index && isTap(l) {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names[1:])
	return names
}

// bridgedFramesFiltered reports whether br_netfilter passes the frames within a bridge to
// the firewall.
func bridgedFramesFiltered() bool {
	on, err := getSysctl("bridge/bridge-nf-call-iptables")
	return err == nil && on == "1"
}
