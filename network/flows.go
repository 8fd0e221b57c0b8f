package network

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flows ends connections that do not follow the rules. Connection tracking keeps a
// connection as it began: a client of a removed forward would still reach the guest, or the
// next VM with its address, and a client that sent before a forward existed would never reach
// the guest. It is safe for concurrent use.
type flows struct {
	kernel *netlink.Handle

	mu      sync.Mutex
	pending flowFilter // of the connections to end

	dump sync.Mutex // held across a dump of all connections
}

func newFlows() (*flows, error) {
	h, err := netlink.NewHandle(syscall.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, err
	}
	return &flows{kernel: h}, nil
}

// A flowMatch reports whether it matches a connection, given the addresses of the host.
type flowMatch func(f *netlink.ConntrackFlow, local map[netip.Addr]bool) bool

// A forwardedPort is a port forward in the words of the firewall's elements.
type forwardedPort struct {
	address             netip.Addr // of the host; zero for all
	proto               byte
	hostPort, guestPort uint16
	guest               netip.Addr
}

// forwardOf returns the port forward that e is. It is not ok if e is of another set.
func forwardOf(e element) (p forwardedPort, ok bool) {
	key, data := []byte(e.key), []byte(e.data)
	length := 4 // of an address
	switch e.set {
	case setForwards, setAnywhere:
	case setForwards6, setAnywhere6:
		length = 16
	default:
		return p, false
	}
	if e.set == setForwards || e.set == setForwards6 {
		p.address, _ = netip.AddrFromSlice(key[:length])
		key = key[length:]
	}
	p.proto, p.hostPort = key[0], binary.BigEndian.Uint16(key[4:])
	p.guest, ok = netip.AddrFromSlice(data[:length])
	p.guestPort = binary.BigEndian.Uint16(data[length:])
	return p, ok
}

// A flowPort is the protocol and the host port of a forward. The matches of forwards are kept by
// it, since a range of forwarded ports has a match for each.
type flowPort struct {
	proto    byte
	hostPort uint16
}

func (p forwardedPort) flowPort() flowPort { return flowPort{p.proto, p.hostPort} }

func source(t netlink.IPTuple) netip.Addr { return addrOf(t.SrcIP) }
func target(t netlink.IPTuple) netip.Addr { return addrOf(t.DstIP) }

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// through matches the connections through p, of those to its host port.
func (p forwardedPort) through(f *netlink.ConntrackFlow, _ map[netip.Addr]bool) bool {
	return source(f.Reverse) == p.guest && f.Reverse.SrcPort == p.guestPort
}

// around matches the datagrams to the host port of p that do not go to its guest. A
// connection by TCP ends by itself: the next attempt begins a new one.
func (p forwardedPort) around(f *netlink.ConntrackFlow, local map[netip.Addr]bool) bool {
	to := target(f.Forward)
	return to.Is4() == p.guest.Is4() &&
		(p.address == to || !p.address.IsValid() && (local[to] || to.IsLoopback())) &&
		(source(f.Reverse) != p.guest || f.Reverse.SrcPort != p.guestPort)
}

// ofRange returns a match for all connections of guests with an address from first to last.
func ofRange(first, last netip.Addr) flowMatch {
	has := func(a netip.Addr) bool { return first.Compare(a) <= 0 && a.Compare(last) <= 0 }
	return func(f *netlink.ConntrackFlow, _ map[netip.Addr]bool) bool {
		return has(source(f.Forward)) || has(source(f.Reverse))
	}
}

// noteChange records the elements that a change adds and removes; the next end ends the
// connections that do not follow them.
func (f *flows) noteChange(add, remove []element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range remove {
		if p, ok := forwardOf(e); ok {
			f.pending.addPort(p, p.through)
		}
		if e.set == setIPs || e.set == setIPs6 {
			if guest, ok := netip.AddrFromSlice([]byte(e.key)[len(ifname("")):]); ok {
				f.pending.addGuest(guest)
			}
		}
		if first, last, ok := e.addressRange(); ok {
			f.pending.other = append(f.pending.other, ofRange(first, last))
		}
	}
	for _, e := range add {
		if p, ok := forwardOf(e); ok && p.proto == unix.IPPROTO_UDP {
			f.pending.addPort(p, p.around)
		}
	}
}

// noteRebuild records that the tables were missing or wrong: datagrams that began meanwhile
// pass by the forwards, and those of guests leave the host with the address of the guest.
func (f *flows) noteRebuild(elements []element) {
	f.noteChange(elements, nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending.other = append(f.pending.other, unmasqueraded(elements))
}

// unmasqueraded returns a match for the datagrams that leave a network of mode nat with the
// address of a guest.
func unmasqueraded(elements []element) flowMatch {
	var bounds []element
	for _, e := range elements {
		if e.set == setSubnets || e.set == setSubnets6 {
			bounds = append(bounds, e)
		}
	}
	inSubnet := func(a netip.Addr) bool {
		key := string(a.AsSlice())
		var last element // the greatest bound that is not above the address
		for _, e := range bounds {
			if len(e.key) == len(key) && e.key <= key && e.key >= last.key {
				last = e
			}
		}
		return last.key != "" && !last.end
	}
	return func(f *netlink.ConntrackFlow, local map[netip.Addr]bool) bool {
		from, to := source(f.Forward), target(f.Forward)
		return f.Forward.Protocol == unix.IPPROTO_UDP && target(f.Reverse) == from &&
			inSubnet(from) && !inSubnet(to) && !local[to] && !to.IsMulticast()
	}
}

// A flowFilter selects connections of one dump.
type flowFilter struct {
	ports  map[flowPort][]flowMatch // for connections to a host port
	guests map[netip.Addr]bool      // of which all connections are selected
	other  []flowMatch
	local  map[netip.Addr]bool
}

func (x *flowFilter) addPort(p forwardedPort, m flowMatch) {
	if x.ports == nil {
		x.ports = map[flowPort][]flowMatch{}
	}
	x.ports[p.flowPort()] = append(x.ports[p.flowPort()], m)
}

func (x *flowFilter) addGuest(guest netip.Addr) {
	if x.guests == nil {
		x.guests = map[netip.Addr]bool{}
	}
	x.guests[guest] = true
}

func (x *flowFilter) isEmpty() bool { return len(x.ports)+len(x.guests)+len(x.other) == 0 }

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (x flowFilter) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	matches := func(m flowMatch) bool { return m(f, x.local) }
	return x.guests[source(f.Forward)] || x.guests[source(f.Reverse)] ||
		slices.ContainsFunc(x.ports[flowPort{f.Forward.Protocol, f.Forward.DstPort}], matches) ||
		slices.ContainsFunc(x.other, matches)
}

// end ends the connections of the noted changes. One dump of all connections serves every
// caller that waits for it. local returns the addresses of the host.
func (f *flows) end(local func() (map[netip.Addr]bool, error)) error {
	f.dump.Lock()
	defer f.dump.Unlock()
	f.mu.Lock()
	filter := f.pending
	f.pending = flowFilter{}
	f.mu.Unlock()
	if filter.isEmpty() {
		return nil
	}
	var failed error
	filter.local, failed = local()
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		_, err := f.kernel.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		failed = errors.Join(failed, err)
	}
	return failed
}

// endFlows ends the connections that do not follow a change of the rules, best effort. It
// must be called without mu held.
func (n *Networks) endFlows() {
	if err := n.firewall.flows.end(n.localAddresses); err != nil {
		n.log.Warn("connections may not follow the changed rules", "err", unavailable(err, "end connections"))
	}
}

// localAddresses returns the addresses of the host.
func (n *Networks) localAddresses() (map[netip.Addr]bool, error) {
	addrs, err := n.links.AddrList(nil, netlink.FAMILY_ALL)
	local := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		local[addressOf(a).Addr()] = true
	}
	return local, err
}
