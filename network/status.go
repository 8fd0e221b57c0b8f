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
			problem("install passt, or make a network with restrict", "guests reach what listens on the host's 127.0.0.1, under the address %s: passt, which keeps them from it, is not installed", userGateway(nw))
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
	bridge, err := n.bridgeOf(nw)
	if err != nil {
		problem("make the bridge, or wait for the next pass of the observer", "%v", err)
	} else {
		s.Interfaces = []string{nw.Bridge}
		for _, l := range links {
			if l.Attrs().MasterIndex == bridge.Attrs().Index && isTap(l) {
				s.Interfaces = append(s.Interfaces, l.Attrs().Name)
			}
		}
		slices.Sort(s.Interfaces[1:])
	}
	leases, fault := n.served(nw, bridge)
	s.Leases = leases
	if fault != nil {
		problem("see who has the ports: ss -lnp 'sport = 53 or sport = 67'", "%v", fault)
	}
	if on, err := getSysctl(forward4); nw.Mode == vm.NetworkNAT && err == nil && on != "1" {
		problem("sysctl -w net.ipv4.ip_forward=1", "the host does not forward packets: net.ipv4.ip_forward is %s", on)
	}
	if nw.Mode == vm.NetworkNAT || bridgedFramesFiltered() {
		rivals, err := forwardDrops(nw.Bridge)
		if err != nil {
			problem("", "the host's firewall cannot be read: %v", err)
		}
		s.Problems = append(s.Problems, rivals...)
	}
	return s
}

// served returns what DHCP has confirmed on a network, and what of it is not
// served.
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

// bridgedFramesFiltered reports whether br_netfilter shows the frames within a
// bridge to the firewall.
func bridgedFramesFiltered() bool {
	on, err := getSysctl("bridge/bridge-nf-call-iptables")
	return err == nil && on == "1"
}

// forwardDrops returns which others' chains drop what they do not know of, which
// our accepting it does not change, and do not know the bridge either.
func forwardDrops(bridge string) ([]vm.NetworkProblem, error) {
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
		knows, err := names(conn, chains, c.Table, bridge)
		if err != nil {
			return nil, err
		}
		if knows {
			continue
		}
		who, fix := advice(c, chains, bridge)
		found = append(found, vm.NetworkProblem{
			Detail: fmt.Sprintf("%s drops what is forwarded (chain %s of the nftables table %s): guests on %s do not get through it", who, c.Name, c.Table.Name, bridge),
			Fix:    fix,
		})
	}
	return found, nil
}

func dropsForwarded(c *nftables.Chain) bool {
	family := c.Table.Family
	return c.Table.Name != tableName && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward &&
		(family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyINet) &&
		(c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop || c.Table.Name == "firewalld")
}

// names reports whether a rule of a table compares with an interface's name.
func names(conn *nftables.Conn, chains []*nftables.Chain, t *nftables.Table, name string) (bool, error) {
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

// advice returns whose a chain is, and how that one is told to let a bridge pass.
func advice(c *nftables.Chain, chains []*nftables.Chain, bridge string) (who, fix string) {
	has := func(prefix string) bool {
		return slices.ContainsFunc(chains, func(other *nftables.Chain) bool {
			return other.Table.Name == c.Table.Name && other.Table.Family == c.Table.Family && strings.HasPrefix(other.Name, prefix)
		})
	}
	both := func(format string) string {
		return fmt.Sprintf(format, "-i", bridge) + " && " + fmt.Sprintf(format, "-o", bridge)
	}
	switch {
	case c.Table.Name == "firewalld":
		return "firewalld", fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", bridge)
	case has("DOCKER-USER"):
		return "Docker", both("iptables -I DOCKER-USER %s %s -j ACCEPT")
	case has("ufw-"):
		return "ufw", fmt.Sprintf("ufw route allow in on %s && ufw route allow out on %s", bridge, bridge)
	case c.Table.Name == "filter" && c.Name == "FORWARD":
		return "iptables", both("iptables -I FORWARD %s %s -j ACCEPT")
	}
	family := "ip"
	if c.Table.Family == nftables.TableFamilyINet {
		family = "inet"
	}
	rule := fmt.Sprintf("nft insert rule %s %s %s", family, c.Table.Name, c.Name)
	return "the host's firewall", fmt.Sprintf("%s iifname %s accept && %s oifname %s accept", rule, bridge, rule, bridge)
}
