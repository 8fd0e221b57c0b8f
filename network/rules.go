package network

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the name of our tables, one of family inet and one of family
// bridge. Nothing else may be in them: they are replaced as a whole.
const tableName = "vman"

// The tables.
var (
	inetTable   = &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	bridgeTable = &nftables.Table{Family: nftables.TableFamilyBridge, Name: tableName}
)

// The sets. The rules never change: what networks and VMs there are is in these.
const (
	setBridges  = "bridges"  // interfaces: our bridges
	setNAT      = "nat"      // interfaces: those whose guests reach out
	setWithin   = "within"   // interface . interface: a bridge and itself, where guests reach one another
	setSubnets  = "subnets"  // IPv4 ranges that are masqueraded
	setSubnets6 = "subnets6" // IPv6 ranges that are masqueraded
	setForwards = "forwards" // address . protocol . port of the host: address . port of a guest
	setAnywhere = "anywhere" // protocol . port of every address of the host: address . port of a guest
	setAssigned = "assigned" // interfaces: taps whose guests have the addresses they are given
	setLearned  = "learned"  // interfaces: taps on the host's own bridges
	setMACs     = "macs"     // interface . MAC that a guest sends from
	setIPs      = "ips"      // interface . IPv4 address that a guest sends from
	setIPs6     = "ips6"     // interface . IPv6 address that a guest sends from
	setRates    = "rates"    // interface: the chain that limits what a guest sends
	setHairpins = "hairpins" // interface . interface: a tap in hairpin mode and itself
	setStorms   = "storms"   // interface: the kernel's own, with what each tap has sent to all of late
)

// A setSpec says what a set is made of.
type setSpec struct {
	table    *nftables.Table
	name     string
	key      []nftables.SetDatatype
	data     []nftables.SetDatatype // of a map
	interval bool
	meter    bool // the rules themselves fill it
}

func setSpecs() []setSpec {
	ifn, ip, ip6, mac := nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeIP6Addr, nftables.TypeEtherAddr
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	type of = []nftables.SetDatatype
	return []setSpec{
		{table: inetTable, name: setBridges, key: of{ifn}},
		{table: inetTable, name: setNAT, key: of{ifn}},
		{table: inetTable, name: setWithin, key: of{ifn, ifn}},
		{table: inetTable, name: setSubnets, key: of{ip}, interval: true},
		{table: inetTable, name: setSubnets6, key: of{ip6}, interval: true},
		{table: inetTable, name: setForwards, key: of{ip, proto, port}, data: of{ip, port}},
		{table: inetTable, name: setAnywhere, key: of{proto, port}, data: of{ip, port}},
		{table: bridgeTable, name: setAssigned, key: of{ifn}},
		{table: bridgeTable, name: setLearned, key: of{ifn}},
		{table: bridgeTable, name: setMACs, key: of{ifn, mac}},
		{table: bridgeTable, name: setIPs, key: of{ifn, ip}},
		{table: bridgeTable, name: setIPs6, key: of{ifn, ip6}},
		{table: bridgeTable, name: setRates, key: of{ifn}, data: of{nftables.TypeVerdict}},
		{table: bridgeTable, name: setHairpins, key: of{ifn, ifn}},
		{table: bridgeTable, name: setStorms, key: of{ifn}, meter: true},
	}
}

// A chainSpec is a chain with its rules. One without a hook is jumped to.
type chainSpec struct {
	table    *nftables.Table
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority int
	rules    []ruleSpec
}

// A ruleSpec is a rule with what it is for: the comment shows in `nft list ruleset`.
type ruleSpec struct {
	comment string
	exprs   match
}

// Priorities: before connection tracking, before and after others' address
// translation as usual, and before br_netfilter lets the tables of family inet
// see bridged frames.
const (
	priorityRaw    = -300
	priorityDNAT   = -100
	priorityFilter = 0
	prioritySNAT   = 100
	priorityGuard  = -300
)

// chainSpecs returns all chains. Every policy is accept: what is not of our
// networks is never touched.
func chainSpecs() []chainSpec {
	dnat := []ruleSpec{
		{"forwards of one address", all(family(unix.NFPROTO_IPV4), netField(16, 4, reg), portOf(regSecond, regThird), mapped(setForwards), toGuest())},
		{"forwards of every address", all(family(unix.NFPROTO_IPV4), toHost(), portOf(reg, regSecond), mapped(setAnywhere), toGuest())},
	}
	pre, out, post, forward := nftables.ChainHookPrerouting, nftables.ChainHookOutput, nftables.ChainHookPostrouting, nftables.ChainHookForward
	filter, nat := nftables.ChainTypeFilter, nftables.ChainTypeNAT
	chains := []chainSpec{
		{inetTable, "raw", filter, pre, priorityRaw, []ruleSpec{
			{"guests do not reach the host's loopback", all(iifname(), in(setBridges), family(unix.NFPROTO_IPV4), netField(16, 1, reg), equal(127), drop())},
		}},
		{inetTable, "prerouting", nat, pre, priorityDNAT, dnat},
		{inetTable, "output", nat, out, priorityDNAT, dnat},
		{inetTable, "postrouting", nat, post, prioritySNAT, postroutingRules()},
		{inetTable, "forward", filter, forward, priorityFilter, forwardRules()},
		{bridgeTable, "forward", filter, forward, priorityGuard, []ruleSpec{
			{"nobody hears its own broadcasts", all(fromTo(), in(setHairpins), oifname(), etherField(0, 6, regAfter), notIn(setMACs), drop())},
			strangers(setAssigned), strangers(setLearned),
		}},
		{bridgeTable, "prerouting", filter, pre, priorityGuard, []ruleSpec{
			{"rate limits", all(iifname(), jumpBy(setRates))},
			{"guests with assigned addresses", all(iifname(), in(setAssigned), goTo("assigned"))},
			{"guests on the host's bridges", all(iifname(), in(setLearned), goTo("learned"))},
		}},
	}
	return append(chains, guardChains()...)
}

// strangers keeps from a guest the frames to one other machine. A bridge sends
// those to a MAC that nobody has to all, so a guest could flood all by them.
func strangers(taps string) ruleSpec {
	return ruleSpec{"what is for another machine", all(oifname(), in(taps), etherField(0, 1, reg), masked(1), equal(0),
		oifname(), etherField(0, 6, regAfter), notIn(setMACs), drop())}
}

// Broadcasts and multicasts of one guest. The queue of a tap has room for 1000
// frames, so what a guest may send to all at once leaves room for what is sent to
// the others alone, and the rate leaves the slowest of them time to read it.
const (
	stormRate  = 1000 // frames a second
	stormBurst = 500
)

// storm drops what a guest sends to all beyond that. A guest that floods would
// otherwise fill the queues of all others, and they would lose the answers to
// what they ask.
func storm() ruleSpec {
	return ruleSpec{"broadcast storms", all(etherField(0, 1, reg), masked(1), equal(1), iifname(), load(&expr.Dynset{
		SrcRegKey: reg, SetName: setStorms, Operation: unix.NFT_DYNSET_OP_UPDATE,
		Exprs: []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: stormRate, Unit: expr.LimitTimeSecond, Burst: stormBurst, Over: true}},
	}), drop())}
}

// portOf loads the protocol and the destination port.
func portOf(proto, port uint32) match {
	return all(load(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto}), transportField(2, 2, port))
}

// postroutingRules give the host's address to what leaves our networks, and to
// what comes to a guest by a forward from where the answer would not come back
// through us: its own network, and 127.0.0.1.
func postroutingRules() []ruleSpec {
	to := func(set string, then match) match { return all(oifname(), in(set), then) }
	v4, v6 := family(unix.NFPROTO_IPV4), family(unix.NFPROTO_IPV6)
	source4, source6 := netField(12, 4, reg), netField(8, 16, reg)
	return []ruleSpec{
		{"the host to itself", all(oifname(), equal(ifname("lo")...), back())},
		{"forwards from loopback", to(setNAT, all(v4, netField(12, 1, reg), equal(127), masquerade()))},
		{"forwards from guests", to(setNAT, all(forwarded(), v4, source4, in(setSubnets), masquerade()))},
		{"within our networks", to(setBridges, back())},
		{"out of a network", all(v4, source4, in(setSubnets), masquerade())},
		{"out of a network", all(v6, source6, in(setSubnets6), masquerade())},
	}
}

// forwardRules let guests reach one another and, on networks of mode nat, out.
// Frames within one bridge come by here too where br_netfilter is on.
func forwardRules() []ruleSpec {
	return []ruleSpec{
		{"within a network", all(fromTo(), in(setWithin), accept())},
		{"answers", all(established(), accept())},
		{"isolated networks do not forward", all(iifname(), in(setBridges), iifname(), notIn(setNAT), drop())},
		{"port forwards", all(oifname(), in(setNAT), forwarded(), accept())},
		{"nobody else comes in", all(oifname(), in(setBridges), drop())},
	}
}

// Ethernet types (linux/if_ether.h).
const (
	ethIPv4  = 0x0800
	ethARP   = 0x0806
	ethIPv6  = 0x86dd
	ethVLAN  = 0x8100
	ethQinQ  = 0x88a8
	dhcpPort = 67
	dhcp6    = 547
)

// ICMP and ICMPv6 types.
const (
	icmpRedirect    = 5
	icmpv6RS        = 133
	icmpv6RA        = 134
	icmpv6NS        = 135
	icmpv6NA        = 136
	icmpv6Redirect  = 137
	icmpv6MLDReport = 143
)

// guardChains hold guests to their addresses. A rule whose field is not in the
// packet does not match, so what ends these chains is drop.
func guardChains() []chainSpec {
	chain := func(name string, rules ...ruleSpec) chainSpec {
		return chainSpec{table: bridgeTable, name: name, rules: rules}
	}
	fromMAC := all(iifname(), etherField(6, 6, regAfter))
	return []chainSpec{
		chain("assigned",
			storm(),
			ruleSpec{"another MAC", all(fromMAC, notIn(setMACs), drop())},
			ruleSpec{"ARP", all(etherType(ethARP), goTo("arp"))},
			ruleSpec{"IPv4", all(etherType(ethIPv4), goTo("ipv4"))},
			ruleSpec{"IPv6", all(etherType(ethIPv6), goTo("ipv6"))},
			ruleSpec{"VLAN tags and all else", drop()},
		),
		arpChain(), ipv4Chain(), ipv6Chain(), targetChain(), wholeChain(),
		chain("learned",
			storm(),
			ruleSpec{"another MAC", all(fromMAC, notIn(setMACs), drop())},
			ruleSpec{"another MAC in ARP", all(etherType(ethARP), iifname(), netField(8, 6, regAfter), notIn(setMACs), drop())},
			ruleSpec{"VLAN tags", all(etherType(ethVLAN), drop())},
			ruleSpec{"VLAN tags", all(etherType(ethQinQ), drop())},
			ruleSpec{"DHCP servers", all(udpFrom(dhcpPort), drop())},
			ruleSpec{"DHCPv6 servers", all(udpFrom(dhcp6), drop())},
			ruleSpec{"router advertisements", all(icmpv6Type(icmpv6RA), drop())},
			ruleSpec{"redirects", all(icmpv6Type(icmpv6Redirect), drop())},
			ruleSpec{"IPv6", all(etherType(ethIPv6), goTo("whole"))},
		),
	}
}

// arpChain: Ethernet and IPv4 only, from the guest's own MAC and address, or a
// question that asks whether an address is free.
func arpChain() chainSpec {
	own := all(netField(0, 6, reg), equal(0, 1, 8, 0, 6, 4), iifname(), netField(8, 6, regAfter), in(setMACs))
	return chainSpec{table: bridgeTable, name: "arp", rules: []ruleSpec{
		{"its own address", all(own, iifname(), netField(14, 4, regAfter), in(setIPs), accept())},
		{"address probes", all(own, netField(6, 2, reg), equal(0, 1), netField(14, 4, reg), equal(0, 0, 0, 0), accept())},
		{"all else", drop()},
	}}
}

func ipv4Chain() chainSpec {
	return chainSpec{table: bridgeTable, name: "ipv4", rules: []ruleSpec{
		{"DHCP servers", all(udpFrom(dhcpPort), drop())},
		{"redirects", all(icmpType(icmpRedirect), drop())},
		{"its own address", all(iifname(), netField(12, 4, regAfter), in(setIPs), accept())},
		{"DHCP requests", all(netField(12, 8, reg), equal(0, 0, 0, 0, 255, 255, 255, 255),
			protocol(unix.IPPROTO_UDP), transportField(0, 4, reg), equal(0, 68, 0, dhcpPort), accept())},
		{"all else", drop()},
	}}
}

func ipv6Chain() chainSpec {
	source := netField(8, 16, reg)
	unspecified := all(source, equal(make([]byte, 16)...))
	return chainSpec{table: bridgeTable, name: "ipv6", rules: []ruleSpec{
		{"router advertisements", all(icmpv6Type(icmpv6RA), drop())},
		{"redirects", all(icmpv6Type(icmpv6Redirect), drop())},
		{"DHCPv6 servers", all(udpFrom(dhcp6), drop())},
		{"the gateway's address", all(source, equal(bytesOf(gatewayLinkLocal.Addr())...), drop())},
		{"neighbour advertisements", all(icmpv6Type(icmpv6NA), jump("target"))},
		{"address probes", all(unspecified, icmpv6Type(icmpv6NS), jump("target"))},
		{"address probes", all(unspecified, icmpv6Type(icmpv6NS), accept())},
		{"router solicitations", all(unspecified, icmpv6Type(icmpv6RS), accept())},
		{"multicast reports", all(unspecified, icmpv6Type(icmpv6MLDReport), accept())},
		{"link-local addresses", all(netField(8, 2, reg), masked(0xff, 0xc0), equal(0xfe, 0x80), goTo("whole"))},
		{"its own address", all(iifname(), netField(8, 16, regAfter), in(setIPs6), goTo("whole"))},
		{"all else", drop()},
	}}
}

// targetChain returns if the target of a neighbour discovery message may be the
// guest's address.
func targetChain() chainSpec {
	return chainSpec{table: bridgeTable, name: "target", rules: []ruleSpec{
		{"the gateway's address", all(transportField(8, 16, reg), equal(bytesOf(gatewayLinkLocal.Addr())...), drop())},
		{"link-local addresses", all(transportField(8, 2, reg), masked(0xff, 0xc0), equal(0xfe, 0x80), back())},
		{"its own address", all(iifname(), transportField(8, 16, regAfter), in(setIPs6), back())},
		{"all else", drop()},
	}}
}

// wholeChain accepts IPv6 whose transport header the rules before have seen.
// Where extension headers push it beyond the first fragment, they have not, and
// a router advertisement would get by (RFC 7113).
func wholeChain() chainSpec {
	return chainSpec{table: bridgeTable, name: "whole", rules: []ruleSpec{
		{"what could be read", all(transportField(0, 1, reg), load(&expr.Cmp{Op: expr.CmpOpGte, Register: reg, Data: []byte{0}}), accept())},
		{"fragments but the first", all(laterFragment(), accept())},
		{"all else", drop()},
	}}
}
