package network

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// A probe is a packet that the host must pass for a network to work.
type probe struct {
	hook *nftables.ChainHook
	packet
	purpose string // the service, in words
}

// probes returns the packets of a network that the host's rules must pass. Requests by DHCP
// and DNS queries by UDP are not among them: the servers read them before the rules of the
// hook input.
func probes(nw vm.Network) []probe {
	var all []probe
	if nw.Mode.Managed() {
		all = serviceProbes(nw, unix.NFPROTO_IPV4)
		if nw.IPv6.IsValid() {
			all = append(all, serviceProbes(nw, unix.NFPROTO_IPV6)...)
		}
	}
	out := packet{family: unix.NFPROTO_IPV4, bridge: nw.Bridge, in: nw.Bridge, protocol: unix.IPPROTO_TCP}
	reply := packet{
		family: unix.NFPROTO_IPV4, bridge: nw.Bridge, out: nw.Bridge,
		protocol: unix.IPPROTO_TCP, established: true,
	}
	within := out
	within.out = nw.Bridge
	if nw.Mode == vm.NetworkNAT {
		guest := nw.Gateway.Next().AsSlice()
		out.source, reply.to = guest, guest
		all = append(all,
			probe{nftables.ChainHookForward, out, "forwarded packets"},
			probe{nftables.ChainHookForward, reply, "forwarded packets"})
		if nw.IPv6.IsValid() {
			out.family, reply.family = unix.NFPROTO_IPV6, unix.NFPROTO_IPV6
			guest := nw.GatewayIPv6().Next().AsSlice()
			out.source, reply.to = guest, guest
			all = append(all,
				probe{nftables.ChainHookForward, out, "forwarded packets"},
				probe{nftables.ChainHookForward, reply, "forwarded packets"})
		}
	}
	if bridgedFramesFiltered() && !nw.IsolateVMs {
		all = append(all, probe{nftables.ChainHookForward, within, "packets between guests"})
	}
	return all
}

// serviceProbes returns the packets between a guest and the servers of its network.
func serviceProbes(nw vm.Network, family byte) []probe {
	gateway := nw.Gateway
	if family == unix.NFPROTO_IPV6 {
		gateway = nw.GatewayIPv6()
	}
	host, guest := gateway.AsSlice(), gateway.Next().AsSlice()
	request := packet{
		family: family, bridge: nw.Bridge, in: nw.Bridge, source: guest, to: host, toHost: true,
		protocol: unix.IPPROTO_TCP, port: 53,
	}
	answer := packet{
		family: family, bridge: nw.Bridge, out: nw.Bridge, source: host, to: guest,
		protocol: unix.IPPROTO_UDP, sourcePort: 53,
	}
	var all []probe
	if len(nw.DNS) == 0 { // else guests ask other servers
		all = append(all,
			probe{nftables.ChainHookInput, request, "DNS by TCP, which long answers need"},
			probe{nftables.ChainHookOutput, answer, "answers of the DNS server"})
	}
	if family == unix.NFPROTO_IPV4 {
		answer.sourcePort, answer.port, answer.to = 67, 68, nil
		return append(all, probe{nftables.ChainHookOutput, answer, "answers of the DHCP server"})
	}
	request.protocol, request.port = unix.IPPROTO_ICMPV6, 0
	return append(all, probe{nftables.ChainHookInput, request, "neighbour discovery of IPv6"})
}

// firewallProblems returns a problem for each chain of another program that drops packets
// which a network needs. An accept in vmand's tables does not override such a drop. It must
// be called with mu held.
func (n *Networks) firewallProblems(nw vm.Network) ([]vm.NetworkProblem, error) {
	rules, err := n.foreignRules()
	if err != nil {
		return nil, err
	}
	var chains []foreignChain
	lost := map[string][]string{} // by title of a chain: the purposes
	for _, p := range probes(nw) {
		for _, c := range rules.drops(p.hook, p.packet) {
			title := chainKey(c.Table, c.Table.Name+" "+c.Name)
			if lost[title] == nil {
				chains = append(chains, c)
			}
			if !slices.Contains(lost[title], p.purpose) {
				lost[title] = append(lost[title], p.purpose)
			}
		}
	}
	var found []vm.NetworkProblem
	for _, c := range chains {
		program, fix := rules.advice(c, nw)
		purposes := lost[chainKey(c.Table, c.Table.Name+" "+c.Name)]
		found = append(found, problemOf(vm.ProblemBlocked, nw, fix,
			"%s drops packets of guests on %s: %s (chain %s of the nftables table %s %s)",
			program, nw.Bridge, strings.Join(purposes, "; "), c.Name, familyName(c.Table), c.Table.Name))
	}
	return found, nil
}

func familyName(t *nftables.Table) string {
	switch t.Family {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// advice returns the program that a base chain belongs to, and the command that makes it
// pass the packets of a network.
func (rs *ruleset) advice(c foreignChain, nw vm.Network) (program, fix string) {
	bridge := nw.Bridge
	var commands []string
	add := func(format string, args ...any) { commands = append(commands, fmt.Sprintf(format, args...)) }
	hook, tables := *c.Hooknum, "iptables"
	if c.Table.Family == nftables.TableFamilyIPv6 {
		tables = "ip6tables"
	}
	chain := map[nftables.ChainHook]string{
		*nftables.ChainHookInput: "INPUT", *nftables.ChainHookForward: "FORWARD", *nftables.ChainHookOutput: "OUTPUT",
	}[hook]
	forward := hook == *nftables.ChainHookForward
	switch {
	case c.Table.Name == "firewalld":
		program = "firewalld"
		add("firewall-cmd --permanent --zone=trusted --add-interface=%s", bridge)
		add("firewall-cmd --reload")
	case forward && rs.hasChain(c.Table, "DOCKER-USER"):
		program = "Docker"
		add("%s -I DOCKER-USER -i %s -j ACCEPT", tables, bridge)
		add("%s -I DOCKER-USER -o %s -j ACCEPT", tables, bridge)
	case rs.hasChain(c.Table, "ufw"):
		program = "ufw"
		switch chain {
		case "FORWARD":
			add("ufw route allow in on %s", bridge)
			add("ufw route allow out on %s", bridge)
		case "INPUT":
			add("ufw allow in on %s to any port 53", bridge)
			add("ufw allow in on %s to any port 67 proto udp", bridge)
		default:
			add("ufw allow out on %s", bridge)
		}
	case c.Table.Name == "filter" && c.Name == chain:
		program = "iptables"
		iptables(add, tables, chain, bridge)
	default:
		program = "the host's firewall"
		nft(add, c, chain, bridge)
	}
	return program, strings.Join(commands, " && ")
}

// iptables adds the commands for a chain of iptables.
func iptables(add func(string, ...any), tables, chain, bridge string) {
	switch chain {
	case "FORWARD":
		add("%s -I FORWARD -i %s -j ACCEPT", tables, bridge)
		add("%s -I FORWARD -o %s -j ACCEPT", tables, bridge)
	case "INPUT":
		add("%s -I INPUT -i %s -p udp -m multiport --dports 53,67,547 -j ACCEPT", tables, bridge)
		add("%s -I INPUT -i %s -p tcp --dport 53 -j ACCEPT", tables, bridge)
		if tables == "ip6tables" {
			add("%s -I INPUT -i %s -p ipv6-icmp -j ACCEPT", tables, bridge)
		}
	default:
		add("%s -I OUTPUT -o %s -j ACCEPT", tables, bridge)
	}
}

// nft adds the commands for a chain of nftables.
func nft(add func(string, ...any), c foreignChain, chain, bridge string) {
	rule := fmt.Sprintf("nft insert rule %s %s %s", familyName(c.Table), c.Table.Name, c.Name)
	switch chain {
	case "FORWARD":
		add("%s iifname %s accept", rule, bridge)
		add("%s oifname %s accept", rule, bridge)
	case "INPUT":
		add("%s iifname %s meta l4proto '{ tcp, udp }' th dport '{ 53, 67, 547 }' accept", rule, bridge)
		if c.Table.Family != nftables.TableFamilyIPv4 {
			add("%s iifname %s meta l4proto ipv6-icmp accept", rule, bridge)
		}
	default:
		add("%s oifname %s accept", rule, bridge)
	}
}
