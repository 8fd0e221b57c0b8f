package network

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
)

// flows ends connections that the rules no longer allow. Connection tracking would keep
// them alive: a client of a removed forward would still reach the guest, or the next VM
// with its address. It is safe for concurrent use.
type flows struct {
	kernel *netlink.Handle

	mu      sync.Mutex
	removed []flowMatch // connections to end

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

// A flowMatch matches all connections of a guest or, with a host port, those through one
// port forward.
type flowMatch struct {
	guest               netip.Addr
	proto               byte
	hostPort, guestPort uint16
}

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (m flowMatch) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	source, _ := netip.AddrFromSlice(f.Forward.SrcIP)
	replier, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	if m.hostPort == 0 {
		return source.Unmap() == m.guest || replier.Unmap() == m.guest
	}
	return replier.Unmap() == m.guest && f.Forward.Protocol == m.proto &&
		f.Forward.DstPort == m.hostPort && f.Reverse.SrcPort == m.guestPort
}

// flowMatchOf returns a match for the connections that e allows. It is not ok if e is of
// a set that allows none.
func flowMatchOf(e element) (m flowMatch, ok bool) {
	key := []byte(e.key)
	switch e.set {
	case setIPs, setIPs6:
		m.guest, ok = netip.AddrFromSlice(key[len(ifname("")):])
		return m, ok
	case setForwards:
		key = key[4:]
	case setAnywhere:
	default:
		return m, false
	}
	data := []byte(e.data)
	m.guest, ok = netip.AddrFromSlice(data[:4])
	m.proto = key[0]
	m.hostPort, m.guestPort = binary.BigEndian.Uint16(key[4:]), binary.BigEndian.Uint16(data[4:])
	return m, ok
}

// noteRemoved records removed elements; the next endRemoved ends their connections.
func (f *flows) noteRemoved(elements []element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range elements {
		if m, ok := flowMatchOf(e); ok {
			f.removed = append(f.removed, m)
		}
	}
}

// endRemoved ends the connections of the noted elements. One dump of all connections
// serves every caller that waits for it.
func (f *flows) endRemoved() error {
	f.dump.Lock()
	defer f.dump.Unlock()
	f.mu.Lock()
	removed := f.removed
	f.removed = nil
	f.mu.Unlock()
	byFamily := map[netlink.InetFamily][]netlink.CustomConntrackFilter{}
	for _, m := range removed {
		family := netlink.InetFamily(netlink.FAMILY_V4)
		if m.guest.Is6() {
			family = netlink.FAMILY_V6
		}
		byFamily[family] = append(byFamily[family], m)
	}
	var failed error
	for family, matches := range byFamily {
		_, err := f.kernel.ConntrackDeleteFilters(netlink.ConntrackTable, family, matches...)
		failed = errors.Join(failed, err)
	}
	return failed
}

// endRemovedFlows ends the connections that a change of the rules has removed, best
// effort. It must be called without mu held.
func (n *Networks) endRemovedFlows() {
	if err := n.firewall.flows.endRemoved(); err != nil {
		n.log.Warn("connections that are no longer allowed may continue",
			"err", unavailable(err, "end connections"))
	}
}
