package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the name of vmand's two tables, one of family inet and one of family
// bridge. Other programs must not add to them: they are replaced as a whole.
const tableName = "vman"

// The tables.
var (
	inetTable   = &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	bridgeTable = &nftables.Table{Family: nftables.TableFamilyBridge, Name: tableName}
)

// The sets and maps. The rules are constant; what depends on networks and VMs is here.
const (
	setBridges   = "bridges"   // interface: vmand's bridges
	setNAT       = "nat"       // interface: bridges with guests that reach the outside
	setServed    = "served"    // interface . IPv4 address . UDP port: servers that read requests from frames
	setServed6   = "served6"   // interface . IPv6 address . UDP port
	setWithin    = "within"    // interface . interface: a bridge and itself, if its guests reach one another
	setSubnets   = "subnets"   // IPv4 ranges that are masqueraded
	setSubnets6  = "subnets6"  // IPv6 ranges that are masqueraded
	setForwards  = "forwards"  // host address . protocol . host port: guest address . guest port
	setAnywhere  = "anywhere"  // protocol . host port, on all host addresses: guest address . guest port
	setForwards6 = "forwards6" // the same as forwards for IPv6
	setAnywhere6 = "anywhere6" // the same as anywhere for IPv6
	setGuests6   = "guests6"   // IPv6 ranges of networks with port forwards
	setAssigned  = "assigned"  // interface: taps of guests with assigned addresses
	setLearned   = "learned"   // interface: taps on the host's own bridges
	setMACs      = "macs"      // interface . MAC address of the guest
	setIPs       = "ips"       // interface . IPv4 address of the guest
	setIPs6      = "ips6"      // interface . IPv6 address of the guest
	setExtras    = "extras"    // interface . range of further IPv4 addresses of the guest
	setExtras6   = "extras6"   // interface . range of further IPv6 addresses of the guest
	setRates     = "rates"     // interface: the chain that limits the sending rate of a guest
	setHairpins  = "hairpins"  // interface . interface: a tap in hairpin mode and itself
	setStorms    = "storms"    // interface: filled by the kernel; recent broadcasts and multicasts of each tap
	setStrays    = "strays"    // interface: filled by the kernel; an IPv4 address that a guest used without a permission
	setStrays6   = "strays6"   // the same as strays for IPv6
)

// A setSpec describes a set or a map.
type setSpec struct {
	table    *nftables.Table
	name     string
	key      []nftables.SetDatatype
	data     []nftables.SetDatatype // of the values of a map; nil for a set
	interval bool                   // with a key of several parts, an element has the first and the last key of its range
	meter    bool                   // filled by the rules
}

func setSpecs() []setSpec {
	ifn, ip, ip6, mac := nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeIP6Addr, nftables.TypeEtherAddr
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	type of = []nftables.SetDatatype
	return []setSpec{
		{table: inetTable, name: setBridges, key: of{ifn}},
		{table: inetTable, name: setNAT, key: of{ifn}},
		{table: inetTable, name: setServed, key: of{ifn, ip, port}},
		{table: inetTable, name: setServed6, key: of{ifn, ip6, port}},
		{table: inetTable, name: setWithin, key: of{ifn, ifn}},
		{table: inetTable, name: setSubnets, key: of{ip}, interval: true},
		{table: inetTable, name: setSubnets6, key: of{ip6}, interval: true},
		{table: inetTable, name: setForwards, key: of{ip, proto, port}, data: of{ip, port}},
		{table: inetTable, name: setAnywhere, key: of{proto, port}, data: of{ip, port}},
		{table: inetTable, name: setForwards6, key: of{ip6, proto, port}, data: of{ip6, port}},
		{table: inetTable, name: setAnywhere6, key: of{proto, port}, data: of{ip6, port}},
		{table: inetTable, name: setGuests6, key: of{ip6}, interval: true},
		{table: bridgeTable, name: setAssigned, key: of{ifn}},
		{table: bridgeTable, name: setLearned, key: of{ifn}},
		{table: bridgeTable, name: setMACs, key: of{ifn, mac}},
		{table: bridgeTable, name: setIPs, key: of{ifn, ip}},
		{table: bridgeTable, name: setIPs6, key: of{ifn, ip6}},
		{table: bridgeTable, name: setExtras, key: of{ifn, ip}, interval: true},
		{table: bridgeTable, name: setExtras6, key: of{ifn, ip6}, interval: true},
		{table: bridgeTable, name: setRates, key: of{ifn}, data: of{nftables.TypeVerdict}},
		{table: bridgeTable, name: setHairpins, key: of{ifn, ifn}},
		{table: bridgeTable, name: setStorms, key: of{ifn}, meter: true},
		{table: bridgeTable, name: setStrays, key: of{ifn}, data: of{ip}, meter: true},
		{table: bridgeTable, name: setStrays6, key: of{ifn}, data: of{ip6}, meter: true},
	}
}

// A chainSpec describes a chain and its rules. A chain without a hook is the target of
// jumps.
type chainSpec struct {
	table    *nftables.Table
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority int
	rules    []ruleSpec
}

// A ruleSpec describes a rule. The comment shows in `nft list ruleset` and identifies the
// rule when the tables are compared, so a changed rule needs a changed comment.
type ruleSpec struct {
	comment string
	exprs   match
}

// Priorities of the chains. priorityRaw runs before connection tracking, priorityDNAT and
// prioritySNAT are the usual ones of address translation, and priorityGuard runs before
// br_netfilter passes bridged frames to the tables of family inet.
const (
	priorityRaw    = -300
	priorityDNAT   = -100
	priorityFilter = 0
	prioritySNAT   = 100
	priorityGuard  = -300
)

// chainSpecs returns all chains. Every policy is accept: the rules drop only traffic of
// vmand's networks.
func chainSpecs() []chainSpec { return append(inetChains(), bridgeChains()...) }

// inetChains returns the chains of the host's IP stack.
func inetChains() []chainSpec {
	v4, v6 := family(unix.NFPROTO_IPV4), family(unix.NFPROTO_IPV6)
	destination, destination6 := netField(16, 4, reg), netField(24, 16, reg)
	loopback := all(netField(16, 1, reg), equal(127))
	// A connection from ::1 cannot be forwarded: the kernel drops every packet to ::1 that arrives on
	// another interface, as the replies would. IPv4 has the sysctl route_localnet for this.
	dnat := []ruleSpec{
		{"port forwards of one host address", all(
			v4, destination, portTo(regSecond, regThird), mapped(setForwards), toGuest(),
		)},
		{"port forwards of all host addresses", all(
			v4, toHost(), portTo(reg, regSecond), mapped(setAnywhere), toGuest(),
		)},
		{"IPv6 port forwards of one host address", all(
			v6, destination6, portTo(regAfter, regAfter+1), mapped(setForwards6), toGuest6(),
		)},
		{"IPv6 port forwards of all host addresses", all(
			v6, destination6, differs(bytesOf(netip.IPv6Loopback())...), toHost(),
			portTo(reg, regSecond), mapped(setAnywhere6), toGuest6(),
		)},
	}
	raw := []ruleSpec{
		{"guests do not reach the host's loopback", all(iifname(), in(setBridges), v4, loopback, drop())},
	}
	// The servers have read these already, and a firewall that rejects them would tell the
	// guest. With br_netfilter the hook prerouting would be too early.
	input := []ruleSpec{
		{"requests to vmand's servers", all(
			v4, protocol(unix.IPPROTO_UDP), iifname(), netField(16, 4, regAfter), transportField(2, 2, regAfter+1),
			in(setServed), drop(),
		)},
		{"IPv6 requests to vmand's servers", all(
			v6, protocol(unix.IPPROTO_UDP), iifname(), netField(24, 16, regAfter),
			transportField(2, 2, regAfter+4), in(setServed6), drop(),
		)},
	}
	pre, out := nftables.ChainHookPrerouting, nftables.ChainHookOutput
	post, forward := nftables.ChainHookPostrouting, nftables.ChainHookForward
	filter, nat := nftables.ChainTypeFilter, nftables.ChainTypeNAT
	return []chainSpec{
		{inetTable, "raw", filter, pre, priorityRaw, raw},
		{inetTable, "input", filter, nftables.ChainHookInput, priorityRaw, input},
		{inetTable, "prerouting", nat, pre, priorityDNAT, dnat},
		{inetTable, "output", nat, out, priorityDNAT, dnat},
		{inetTable, "postrouting", nat, post, prioritySNAT, postroutingRules()},
		{inetTable, "forward", filter, forward, priorityFilter, forwardRules()},
	}
}

// bridgeChains returns the chains of the bridges: what passes from a guest and to it.
func bridgeChains() []chainSpec {
	toOtherMAC := all(oifname(), etherField(0, 6, regAfter), notIn(setMACs))
	forward := []ruleSpec{
		{"no guest receives its own broadcasts", all(fromTo(), in(setHairpins), toOtherMAC, drop())},
		otherMAC(setAssigned),
		otherMAC(setLearned),
	}
	prerouting := []ruleSpec{
		{"rate limits", all(iifname(), jumpBy(setRates))},
		{"guests with assigned addresses", all(iifname(), in(setAssigned), goTo("assigned"))},
		{"guests on the host's bridges", all(iifname(), in(setLearned), goTo("learned"))},
	}
	filter := nftables.ChainTypeFilter
	chains := []chainSpec{
		{bridgeTable, "forward", filter, nftables.ChainHookForward, priorityGuard, forward},
		{bridgeTable, "prerouting", filter, nftables.ChainHookPrerouting, priorityGuard, prerouting},
	}
	return append(chains, guardChains()...)
}

// otherMAC returns the rule that keeps unicast frames to another MAC address from the
// taps of a set. A bridge sends a frame for an unknown MAC address to all ports, so one
// guest could flood all others with such frames.
func otherMAC(taps string) ruleSpec {
	unicast := all(etherField(0, 1, reg), masked(1), equal(0))
	return ruleSpec{"unicast frames to another MAC address", all(
		oifname(), in(taps), unicast, oifname(), etherField(0, 6, regAfter), notIn(setMACs), drop(),
	)}
}

// Limits of the broadcasts and multicasts of one guest. The queue of a tap holds 1000
// frames: the burst leaves half of it for unicast frames, and the rate leaves the slowest
// guest time to read.
const (
	stormRate  = 1000 // frames per second
	stormBurst = 500  // frames
)

// stormRule returns the rule that drops broadcasts and multicasts above these limits. A
// guest that floods would otherwise fill the queues of all others, and they would lose
// the replies to their requests.
func stormRule() ruleSpec {
	toGroup := all(etherField(0, 1, reg), masked(1), equal(1))
	limit := &expr.Limit{
		Type:  expr.LimitTypePkts,
		Rate:  stormRate,
		Unit:  expr.LimitTimeSecond,
		Burst: stormBurst,
		Over:  true,
	}
	meter := &expr.Dynset{
		SrcRegKey: reg,
		SetName:   setStorms,
		Operation: unix.NFT_DYNSET_OP_UPDATE,
		Exprs:     []expr.Any{limit},
	}
	return ruleSpec{"broadcast storms", all(toGroup, iifname(), load(meter), drop())}
}

// note records the address after the interface name in the registers for that interface, unless
// the map has one that is younger than meterTimeout. It is for [Networks.Blocked].
func note(strays string) match {
	return load(&expr.Dynset{
		SrcRegKey:  reg,
		SrcRegData: regAfter,
		SetName:    strays,
		Operation:  unix.NFT_DYNSET_OP_ADD,
	})
}

// portTo loads the protocol and the destination port into registers.
func portTo(proto, port uint32) match {
	return all(load(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto}), transportField(2, 2, port))
}

// postroutingRules give the host's address to packets that leave vmand's networks. They
// also give it to packets of a forward from the guest's own network and from 127.0.0.1: the
// replies would otherwise bypass the host.
func postroutingRules() []ruleSpec {
	to := func(set string, then match) match { return all(oifname(), in(set), then) }
	v4, v6 := family(unix.NFPROTO_IPV4), family(unix.NFPROTO_IPV6)
	source4, source6 := netField(12, 4, reg), netField(8, 16, reg)
	fromLoopback := all(v4, netField(12, 1, reg), equal(127))
	return []ruleSpec{
		{"from the host to itself", all(oifname(), equal(ifname("lo")...), leaveChain())},
		{"port forwards from loopback", to(setNAT, all(fromLoopback, masquerade()))},
		{"port forwards from guests", to(setNAT, all(forwarded(), v4, source4, in(setSubnets), masquerade()))},
		{"IPv6 port forwards from guests", to(setNAT, all(forwarded(), v6, source6, in(setGuests6), masquerade()))},
		{"between vmand's networks", to(setBridges, leaveChain())},
		{"out of an IPv4 network", all(v4, source4, in(setSubnets), masquerade())},
		{"out of an IPv6 network", all(v6, source6, in(setSubnets6), masquerade())},
	}
}

// forwardRules let guests reach one another and, on networks of mode nat, the outside.
// With br_netfilter, frames within one bridge pass these rules too.
func forwardRules() []ruleSpec {
	return []ruleSpec{
		{"within a network", all(fromTo(), in(setWithin), accept())},
		{"replies", all(established(), accept())},
		{"isolated networks do not forward", all(iifname(), in(setBridges), iifname(), notIn(setNAT), drop())},
		{"port forwards", all(oifname(), in(setNAT), forwarded(), accept())},
		{"no other connections to guests", all(oifname(), in(setBridges), drop())},
	}
}

// Ethernet types (linux/if_ether.h) and UDP ports.
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

// guardChains returns the chains that hold guests to their addresses. A rule does not
// match a packet without the field that it compares, so each chain ends with a drop.
func guardChains() []chainSpec {
	otherSource := ruleSpec{"from another MAC address", all(
		iifname(), etherField(6, 6, regAfter), notIn(setMACs), drop(),
	)}
	otherARP := all(etherType(ethARP), iifname(), netField(8, 6, regAfter), notIn(setMACs), drop())
	return []chainSpec{
		guardChain("assigned",
			stormRule(),
			otherSource,
			ruleSpec{"ARP", all(etherType(ethARP), goTo("arp"))},
			ruleSpec{"IPv4", all(etherType(ethIPv4), goTo("ipv4"))},
			ruleSpec{"IPv6", all(etherType(ethIPv6), goTo("ipv6"))},
			ruleSpec{"VLAN tags and other protocols", drop()},
		),
		arpChain(), ipv4Chain(), ipv6Chain(), targetChain(), wholeChain(),
		guardChain("learned",
			stormRule(),
			otherSource,
			ruleSpec{"ARP from another MAC address", otherARP},
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

func guardChain(name string, rules ...ruleSpec) chainSpec {
	return chainSpec{table: bridgeTable, name: name, rules: rules}
}

// arpChain accepts ARP for Ethernet and IPv4 from the guest's own MAC and IP address, and
// ARP probes, which ask whether an address is free.
func arpChain() chainSpec {
	ethernetIPv4 := all(netField(0, 6, reg), equal(0, 1, 8, 0, 6, 4))
	own := all(ethernetIPv4, iifname(), netField(8, 6, regAfter), in(setMACs))
	probe := all(netField(6, 2, reg), equal(0, 1), netField(14, 4, reg), equal(0, 0, 0, 0))
	return guardChain("arp",
		ruleSpec{"the guest's address", all(own, iifname(), netField(14, 4, regAfter), in(setIPs), accept())},
		ruleSpec{"the guest's extra addresses", all(own, iifname(), netField(14, 4, regAfter), in(setExtras), accept())},
		ruleSpec{"address probes", all(own, probe, accept())},
		ruleSpec{"an address that is not the guest's", all(own, iifname(), netField(14, 4, regAfter), note(setStrays))},
		ruleSpec{"everything else", drop()},
	)
}

func ipv4Chain() chainSpec {
	unspecifiedToAll := all(netField(12, 8, reg), equal(0, 0, 0, 0, 255, 255, 255, 255))
	dhcpPorts := all(protocol(unix.IPPROTO_UDP), transportField(0, 4, reg), equal(0, 68, 0, dhcpPort))
	return guardChain("ipv4",
		ruleSpec{"DHCP servers", all(udpFrom(dhcpPort), drop())},
		ruleSpec{"redirects", all(icmpType(icmpRedirect), drop())},
		ruleSpec{"the guest's address", all(iifname(), netField(12, 4, regAfter), in(setIPs), accept())},
		ruleSpec{"the guest's extra addresses", all(iifname(), netField(12, 4, regAfter), in(setExtras), accept())},
		ruleSpec{"DHCP requests", all(unspecifiedToAll, dhcpPorts, accept())},
		ruleSpec{"an address that is not the guest's", all(
			netField(12, 4, reg), differs(0, 0, 0, 0), iifname(), netField(12, 4, regAfter), note(setStrays),
		)},
		ruleSpec{"everything else", drop()},
	)
}

func ipv6Chain() chainSpec {
	source := netField(8, 16, reg)
	unspecified := all(source, equal(make([]byte, 16)...))
	linkLocal := all(netField(8, 2, reg), masked(0xff, 0xc0), equal(0xfe, 0x80))
	return guardChain("ipv6",
		ruleSpec{"router advertisements", all(icmpv6Type(icmpv6RA), drop())},
		ruleSpec{"redirects", all(icmpv6Type(icmpv6Redirect), drop())},
		ruleSpec{"DHCPv6 servers", all(udpFrom(dhcp6), drop())},
		ruleSpec{"the gateway's address", all(source, equal(bytesOf(gatewayLinkLocal.Addr())...), drop())},
		ruleSpec{"neighbour advertisements", all(icmpv6Type(icmpv6NA), jump("target"))},
		ruleSpec{"address probes", all(unspecified, icmpv6Type(icmpv6NS), jump("target"))},
		ruleSpec{"address probes", all(unspecified, icmpv6Type(icmpv6NS), accept())},
		ruleSpec{"router solicitations", all(unspecified, icmpv6Type(icmpv6RS), accept())},
		ruleSpec{"multicast reports", all(unspecified, icmpv6Type(icmpv6MLDReport), accept())},
		ruleSpec{"link-local addresses", all(linkLocal, goTo("whole"))},
		ruleSpec{"the guest's address", all(iifname(), netField(8, 16, regAfter), in(setIPs6), goTo("whole"))},
		ruleSpec{"the guest's extra addresses", all(iifname(), netField(8, 16, regAfter), in(setExtras6), goTo("whole"))},
		ruleSpec{"an address that is not the guest's", all(
			source, differs(make([]byte, 16)...), iifname(), netField(8, 16, regAfter), note(setStrays6),
		)},
		ruleSpec{"everything else", drop()},
	)
}

// targetChain returns to its caller if the guest may have the target address of a
// neighbour discovery message, and drops the message otherwise.
func targetChain() chainSpec {
	gateway := all(transportField(8, 16, reg), equal(bytesOf(gatewayLinkLocal.Addr())...))
	linkLocal := all(transportField(8, 2, reg), masked(0xff, 0xc0), equal(0xfe, 0x80))
	target := all(iifname(), transportField(8, 16, regAfter))
	return guardChain("target",
		ruleSpec{"the gateway's address", all(gateway, drop())},
		ruleSpec{"link-local addresses", all(linkLocal, leaveChain())},
		ruleSpec{"the guest's address", all(target, in(setIPs6), leaveChain())},
		ruleSpec{"the guest's extra addresses", all(target, in(setExtras6), leaveChain())},
		ruleSpec{"an address that is not the guest's", all(target, note(setStrays6))},
		ruleSpec{"everything else", drop()},
	)
}

// wholeChain accepts IPv6 packets with a transport header that the previous rules could read.
// Extension headers can push that header beyond the first fragment, and a router
// advertisement would pass unread (RFC 7113).
func wholeChain() chainSpec {
	hasTransport := all(
		transportField(0, 1, reg),
		load(&expr.Cmp{Op: expr.CmpOpGte, Register: reg, Data: []byte{0}}),
	)
	return guardChain("whole",
		ruleSpec{"readable transport headers", all(hasTransport, accept())},
		ruleSpec{"later fragments", all(laterFragment(), accept())},
		ruleSpec{"everything else", drop()},
	)
}
