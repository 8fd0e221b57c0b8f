package network

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"vmand/vm"
)

// Status implements [vm.HostNetwork].
func (n *Networks) Status(ctx context.Context, nw vm.Network) vm.NetworkStatus {
	var s vm.NetworkStatus
	problem := func(fix, format string, args ...any) {
		s.Problems = append(s.Problems, vm.NetworkProblem{Detail: fmt.Sprintf(format, args...), Fix: fix})
	}
	if ctx.Err() != nil {
		return s
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
	leases, fault := n.served(nw, bridge)
	s.Leases = leases
	if fault != nil {
		problem("find the program that has the ports: ss -lnp 'sport = 53 or sport = 67'", "%v", fault)
	}
	if on, err := getSysctl(forward4); nw.Mode == vm.NetworkNAT && err == nil && on != "1" {
		problem("sysctl -w net.ipv4.ip_forward=1",
			"the host does not forward packets: net.ipv4.ip_forward is %s", on)
	}
	if nw.Mode == vm.NetworkNAT || bridgedFramesFiltered() {
		found, err := forwardDrops(nw.Bridge)
		if err != nil {
			problem("", "the host's firewall cannot be read: %v", err)
		}
		s.Problems = append(s.Problems, found...)
	}
	return s
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

// served returns the leases that DHCP has confirmed on a network, and why one of its
// servers does not serve. bridge may be nil.
func (n *Networks) served(nw vm.Network, bridge netlink.Link) (leases map[string]vm.Lease, fault error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	serving := n.serving[nw.Name]
	if serving != nil && serving.dhcp != nil {
		leases = serving.dhcp.Leases()
	}
	if nw.Mode.Managed() && bridge != nil {
		fault = serving.fault(bridge.Attrs().Index)
	}
	return leases, fault
}

// bridgedFramesFiltered reports whether br_netfilter passes the frames within a bridge to
// the firewall.
func bridgedFramesFiltered() bool {
	on, err := getSysctl("bridge/bridge-nf-call-iptables")
	return err == nil && on == "1"
}

// forwardDrops returns a problem for each foreign chain that drops forwarded packets and
// has no rule for the bridge. An accept in vmand's tables does not override such a drop.
func forwardDrops(bridgeName string) ([]vm.NetworkProblem, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	var found []vm.NetworkProblem
	for _, c := range chains {
		if !dropsForwarded(c) {
			continue
		}
		known, err := hasRuleFor(conn, chains, c.Table, bridgeName)
		if err != nil {
			return nil, err
		}
		if known {
			continue
		}
		program, fix := advice(c, chains, bridgeName)
		found = append(found, vm.NetworkProblem{
			Detail: fmt.Sprintf("%s drops forwarded packets of guests on %s (chain %s of the nftables table %s)",
				program, bridgeName, c.Name, c.Table.Name),
			Fix: fix,
		})
	}
	return found, nil
}

// dropsForwarded reports whether a chain of another program drops forwarded packets by
// default.
func dropsForwarded(c *nftables.Chain) bool {
	family := c.Table.Family
	return c.Table.Name != tableName && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward &&
		(family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyINet) &&
		(c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop || c.Table.Name == "firewalld")
}

// hasRuleFor reports whether a rule of a table compares with the name of an interface.
func hasRuleFor(conn *nftables.Conn, chains []*nftables.Chain, t *nftables.Table, name string) (bool, error) {
	for _, c := range chains {
		if c.Table.Name != t.Name || c.Table.Family != t.Family {
			continue
		}
		rules, err := conn.GetRules(t, c)
		if err != nil {
			return false, err
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if cmp, ok := e.(*expr.Cmp); ok && string(bytes.TrimRight(cmp.Data, "\x00")) == name {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// advice returns the program that a chain belongs to, and the command that makes it
// accept the packets of a bridge.
func advice(c *nftables.Chain, chains []*nftables.Chain, bridgeName string) (program, fix string) {
	hasChain := func(prefix string) bool {
		return slices.ContainsFunc(chains, func(other *nftables.Chain) bool {
			return other.Table.Name == c.Table.Name && other.Table.Family == c.Table.Family &&
				strings.HasPrefix(other.Name, prefix)
		})
	}
	bothWays := func(format string) string {
		return fmt.Sprintf(format, "-i", bridgeName) + " && " + fmt.Sprintf(format, "-o", bridgeName)
	}
	switch {
	case c.Table.Name == "firewalld":
		const command = "firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload"
		return "firewalld", fmt.Sprintf(command, bridgeName)
	case hasChain("DOCKER-USER"):
		return "Docker", bothWays("iptables -I DOCKER-USER %s %s -j ACCEPT")
	case hasChain("ufw-"):
		return "ufw", fmt.Sprintf("ufw route allow in on %s && ufw route allow out on %s", bridgeName, bridgeName)
	case c.Table.Name == "filter" && c.Name == "FORWARD":
		return "iptables", bothWays("iptables -I FORWARD %s %s -j ACCEPT")
	}
	family := "ip"
	if c.Table.Family == nftables.TableFamilyINet {
		family = "inet"
	}
	rule := fmt.Sprintf("nft insert rule %s %s %s", family, c.Table.Name, c.Name)
	return "the host's firewall",
		fmt.Sprintf("%s iifname %s accept && %s oifname %s accept", rule, bridgeName, rule, bridgeName)
}
