package network

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
)

// flows ends connections that the rules let pass no more. Connection tracking
// would go on with them: whoever sends to a port that was forwarded would still
// reach the guest, or the next VM that gets its address.
type flows struct {
	kernel *netlink.Handle

	mu      sync.Mutex
	pending []flowMatch

	dump sync.Mutex // held during a look at all connections
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

// A flowMatch holds for the connections of a guest or, with a host port, those
// through one forward.
type flowMatch struct {
	guest               netip.Addr
	proto               byte
	hostPort, guestPort uint16
}

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (m flowMatch) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	source, _ := netip.AddrFromSlice(f.Forward.SrcIP)
	answers, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	if m.hostPort == 0 {
		return source.Unmap() == m.guest || answers.Unmap() == m.guest
	}
	return answers.Unmap() == m.guest && f.Forward.Protocol == m.proto && f.Forward.DstPort == m.hostPort && f.Reverse.SrcPort == m.guestPort
}

// matchOf returns which connections there are because of an element.
func matchOf(e element) (m flowMatch, ok bool) {
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
	m.guest, ok = netip.AddrFromSlice([]byte(e.data)[:4])
	m.proto, m.hostPort, m.guestPort = key[0], binary.BigEndian.Uint16(key[4:]), binary.BigEndian.Uint16([]byte(e.data)[4:])
	return m, ok
}

// over notes elements that are no more, whose connections the next end ends.
func (f *flows) over(elements []element) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range elements {
		if m, ok := matchOf(e); ok {
			f.pending = append(f.pending, m)
		}
	}
}

// end ends the connections that were noted. One look at all connections is for
// all who wait for it.
func (f *flows) end() error {
	f.dump.Lock()
	defer f.dump.Unlock()
	f.mu.Lock()
	pending := f.pending
	f.pending = nil
	f.mu.Unlock()
	byFamily := map[netlink.InetFamily][]netlink.CustomConntrackFilter{}
	for _, m := range pending {
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

// cut ends the connections of what a change of the rules has removed. The caller
// does not hold n.mu.
func (n *Networks) cut() {
	if err := n.firewall.flows.end(); err != nil {
		n.log.Warn("connections through what is removed may go on", "err", unavailable(err, "end connections"))
	}
}
