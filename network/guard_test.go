package network

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// vnetHeader is the length of the header before each frame on a tap with IFF_VNET_HDR.
const vnetHeader = 10

// cable sends and receives the frames of one guest.
type cable struct {
	t   testing.TB
	tap *os.File
	mac net.HardwareAddr
	ip  netip.Addr
	ip6 netip.Addr

	name    string
	dropped uint64 // frames that its full queue has dropped
}

func plug(t testing.TB, n *Networks, v vm.VM, nw vm.Network) cable {
	t.Helper()
	mac, err := net.ParseMAC(v.NICs[0].MAC)
	if err != nil {
		t.Fatal(err)
	}
	return cable{
		t:    t,
		tap:  connect(t, n, v, nw),
		mac:  mac,
		ip:   v.NICs[0].IP,
		ip6:  v.NICs[0].IPv6,
		name: tapName(v.UUID, 0),
	}
}

func (c cable) send(frame []byte) {
	c.t.Helper()
	if len(frame) < 60 {
		frame = append(frame, make([]byte, 60-len(frame))...)
	}
	if _, err := c.tap.Write(append(make([]byte, vnetHeader), frame...)); err != nil {
		c.t.Fatal(err)
	}
}

// receives reports whether a frame that contains mark arrives before the frame that
// contains end.
func (c cable) receives(mark, end []byte) bool {
	c.t.Helper()
	if err := c.tap.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	received := false
	for buf := make([]byte, 64<<10); ; {
		k, err := c.tap.Read(buf)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.t.Fatalf("the last frame has not arrived; the marked one: %v", received)
			}
			c.t.Fatal(err)
		}
		received = received || bytes.Contains(buf[:k], mark)
		if bytes.Contains(buf[:k], end) {
			return received
		}
	}
}

// arrived returns the number of frames since its last call, including those that the full
// queue of the tap has dropped.
func (c *cable) arrived() int {
	c.t.Helper()
	raw, err := c.tap.SyscallConn()
	if err != nil {
		c.t.Fatal(err)
	}
	n := 0
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for buf := make([]byte, 64<<10); failed == nil; n++ {
			_, failed = unix.Read(int(fd), buf)
		}
		return true
	})
	if err != nil || !errors.Is(failed, unix.EAGAIN) {
		c.t.Fatal(err, failed)
	}
	dropped := link(c.t, c.name).Attrs().Statistics.TxDropped
	n += int(dropped-c.dropped) - 1
	c.dropped = dropped
	return n
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func ether(src net.HardwareAddr, kind uint16, payload ...[]byte) []byte {
	f := append(append(append([]byte{}, broadcast...), src...), byte(kind>>8), byte(kind))
	return append(f, bytes.Join(payload, nil)...)
}

func arp(src, sender net.HardwareAddr, op uint16, ip netip.Addr, mark []byte) []byte {
	header := binary.BigEndian.AppendUint16([]byte{0, 1, 8, 0, 6, 4}, op)
	target := []byte{0, 0, 0, 0, 0, 0, 192, 168, 100, 99}
	return ether(src, ethARP, header, sender, ip.AsSlice(), target, mark)
}

func ipv4(mac net.HardwareAddr, src, dst netip.Addr, proto byte, payload ...[]byte) []byte {
	body := bytes.Join(payload, nil)
	h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(body)))
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return ether(mac, ethIPv4, h, body)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func udp(from, to uint16, mark []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(mark)))
	return append(append(b, 0, 0), mark...)
}

func ipv6(mac net.HardwareAddr, src netip.Addr, proto byte, payload ...[]byte) []byte {
	body := bytes.Join(payload, nil)
	h := []byte{0x60, 0, 0, 0, byte(len(body) >> 8), byte(len(body)), proto, 255}
	h = append(append(h, src.AsSlice()...), netip.MustParseAddr("ff02::1").AsSlice()...)
	return ether(mac, ethIPv6, h, body)
}

func icmp6(kind byte, target netip.Addr, mark []byte) []byte {
	return append(append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...), mark...)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// A frameCase is a frame that a guest sends.
type frameCase struct {
	name    string
	arrives bool // whether another guest may receive it
	frame   func(c cable, mark []byte) []byte
}

var assignedFrames = []frameCase{
	{"ARP from its own address", true, func(c cable, m []byte) []byte { return arp(c.mac, c.mac, 2, c.ip, m) }},
	{"an ARP probe", true, func(c cable, m []byte) []byte { return arp(c.mac, c.mac, 1, addr("0.0.0.0"), m) }},
	{"an ARP reply from 0.0.0.0", false, func(c cable, m []byte) []byte {
		return arp(c.mac, c.mac, 2, addr("0.0.0.0"), m)
	}},
	{"ARP from the gateway's address", false, func(c cable, m []byte) []byte {
		return arp(c.mac, c.mac, 2, addr("192.168.100.1"), m)
	}},
	{"ARP from another MAC inside", false, func(c cable, m []byte) []byte {
		return arp(c.mac, bridgeMAC("vman0"), 2, c.ip, m)
	}},
	{"ARP of another protocol", false, func(c cable, m []byte) []byte {
		f := arp(c.mac, c.mac, 2, c.ip, m)
		f[14+4] = 8
		return f
	}},
	{"another MAC", false, func(c cable, m []byte) []byte {
		return arp(bridgeMAC("x"), bridgeMAC("x"), 2, c.ip, m)
	}},
	{"IPv4 from its own address", true, func(c cable, m []byte) []byte {
		return ipv4(c.mac, c.ip, addr("192.168.100.255"), 17, udp(4000, 4000, m))
	}},
	{"IPv4 from a neighbour's address", false, func(c cable, m []byte) []byte {
		return ipv4(c.mac, addr("192.168.100.11"), addr("192.168.100.255"), 17, udp(4000, 4000, m))
	}},
	{"a DHCP request", true, func(c cable, m []byte) []byte {
		return ipv4(c.mac, addr("0.0.0.0"), addr("255.255.255.255"), 17, udp(68, 67, m))
	}},
	{"other UDP from 0.0.0.0", false, func(c cable, m []byte) []byte {
		return ipv4(c.mac, addr("0.0.0.0"), addr("255.255.255.255"), 17, udp(68, 4000, m))
	}},
	{"a DHCP offer", false, func(c cable, m []byte) []byte {
		return ipv4(c.mac, c.ip, addr("255.255.255.255"), 17, udp(67, 68, m))
	}},
	{"an ICMP redirect", false, func(c cable, m []byte) []byte {
		return ipv4(c.mac, c.ip, addr("192.168.100.255"), 1, []byte{5, 1, 0, 0, 0, 0, 0, 0}, m)
	}},
	{"IPv6 from its own address", true, func(c cable, m []byte) []byte {
		return ipv6(c.mac, c.ip6, 17, udp(4000, 4000, m))
	}},
	{"IPv6 from a link-local address", true, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 17, udp(4000, 4000, m))
	}},
	{"IPv6 from a neighbour's address", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fd00:64::b"), 17, udp(4000, 4000, m))
	}},
	{"IPv6 from the gateway's address", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1"), 17, udp(4000, 4000, m))
	}},
	{"a router advertisement", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 58, icmp6(icmpv6RA, addr("::"), m))
	}},
	{"a router advertisement behind an extension header", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 60, []byte{58, 0, 1, 4, 0, 0, 0, 0}, icmp6(icmpv6RA, addr("::"), m))
	}},
	{"a transport header beyond the first fragment", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 44, []byte{60, 0, 0, 1, 0, 0, 0, 9}, []byte{58, 200, 1, 4, 0, 0, 0, 0}, m)
	}},
	{"a first fragment with its transport header", true, func(c cable, m []byte) []byte {
		return ipv6(c.mac, c.ip6, 44, []byte{17, 0, 0, 1, 0, 0, 0, 9}, udp(4000, 4000, m))
	}},
	{"a later fragment", true, func(c cable, m []byte) []byte {
		return ipv6(c.mac, c.ip6, 44, []byte{17, 0, 0, 8, 0, 0, 0, 9}, m)
	}},
	{"an ICMPv6 redirect", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 58, icmp6(icmpv6Redirect, addr("::"), m))
	}},
	{"a DHCPv6 reply", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 17, udp(547, 546, m))
	}},
	{"a neighbour advertisement for its own address", true, func(c cable, m []byte) []byte {
		return ipv6(c.mac, c.ip6, 58, icmp6(icmpv6NA, c.ip6, m))
	}},
	{"a neighbour advertisement for a neighbour", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, c.ip6, 58, icmp6(icmpv6NA, addr("fd00:64::b"), m))
	}},
	{"a neighbour advertisement for the gateway", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, c.ip6, 58, icmp6(icmpv6NA, addr("fe80::1"), m))
	}},
	{"a probe for its own address", true, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("::"), 58, icmp6(icmpv6NS, c.ip6, m))
	}},
	{"a probe for a neighbour's address", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("::"), 58, icmp6(icmpv6NS, addr("fd00:64::b"), m))
	}},
	{"a frame with a VLAN tag", false, func(c cable, m []byte) []byte {
		f := arp(c.mac, c.mac, 2, c.ip, m)
		return append(append(append([]byte{}, f[:12]...), 0x81, 0, 0, 5), f[12:]...)
	}},
	{"a frame with two VLAN tags", false, func(c cable, m []byte) []byte {
		f := arp(c.mac, c.mac, 2, c.ip, m)
		return append(append(append([]byte{}, f[:12]...), 0x88, 0xa8, 0, 5, 0x81, 0, 0, 5), f[12:]...)
	}},
	{"another Ethernet type", false, func(c cable, m []byte) []byte { return ether(c.mac, 0x88cc, m) }},
	{"an LLC frame", false, func(c cable, m []byte) []byte { return ether(c.mac, 40, m) }},
}

var learnedFrames = []frameCase{
	{"ARP from any address", true, func(c cable, m []byte) []byte {
		return arp(c.mac, c.mac, 2, addr("10.1.2.3"), m)
	}},
	{"IPv4 from any address", true, func(c cable, m []byte) []byte {
		return ipv4(c.mac, addr("10.1.2.3"), addr("10.1.2.255"), 17, udp(4000, 4000, m))
	}},
	{"another Ethernet type", true, func(c cable, m []byte) []byte { return ether(c.mac, 0x88b5, m) }},
	{"another MAC", false, func(c cable, m []byte) []byte {
		return arp(bridgeMAC("x"), bridgeMAC("x"), 2, addr("10.1.2.3"), m)
	}},
	{"another MAC inside ARP", false, func(c cable, m []byte) []byte {
		return arp(c.mac, bridgeMAC("x"), 2, addr("10.1.2.3"), m)
	}},
	{"a DHCP offer", false, func(c cable, m []byte) []byte {
		return ipv4(c.mac, addr("10.1.2.3"), addr("255.255.255.255"), 17, udp(67, 68, m))
	}},
	{"a router advertisement", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 58, icmp6(icmpv6RA, addr("::"), m))
	}},
	{"a transport header beyond the first fragment", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 44, []byte{60, 0, 0, 1, 0, 0, 0, 9}, []byte{58, 200, 1, 4, 0, 0, 0, 0}, m)
	}},
	{"a DHCPv6 reply", false, func(c cable, m []byte) []byte {
		return ipv6(c.mac, addr("fe80::1234"), 17, udp(547, 546, m))
	}},
	{"a frame with a VLAN tag", false, func(c cable, m []byte) []byte {
		f := arp(c.mac, c.mac, 2, addr("10.1.2.3"), m)
		return append(append(append([]byte{}, f[:12]...), 0x81, 0, 0, 5), f[12:]...)
	}},
}

// sendAll sends each frame, and after it one that the rules accept.
func sendAll(t *testing.T, from, to cable, cases []frameCase, accepted func(mark []byte) []byte) {
	t.Helper()
	// With br_netfilter, connection tracking holds fragments back until all have arrived.
	if err := setSysctl("bridge/bridge-nf-call-ip6tables", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for i, c := range cases {
		mark := []byte("mark-" + hex.EncodeToString([]byte{byte(i), 0xa5}) + "-of-a-test-frame")
		end := []byte("end-" + hex.EncodeToString([]byte{byte(i), 0x5a}) + "-of-a-test-frame")
		from.send(c.frame(from, mark))
		from.send(accepted(end))
		if got := to.receives(mark, end); got != c.arrives {
			t.Errorf("%s: arrives %v, want %v", c.name, got, c.arrives)
		}
	}
}

func TestGuestsSendOnlyFromTheirAddresses(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	a, b := plug(t, n, guest("a", nw, 10), nw), plug(t, n, guest("b", nw, 11), nw)
	sendAll(t, a, b, assignedFrames, func(m []byte) []byte { return arp(a.mac, a.mac, 2, a.ip, m) })
}

// hostNetwork creates a bridge that is not vmand's, and returns a network on it.
func hostNetwork(t testing.TB) vm.Network {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link(t, "br0")); err != nil {
		t.Fatal(err)
	}
	return vm.Network{Name: "lan", Mode: vm.NetworkBridge, Bridge: "br0", Revision: 1}
}

func TestGuestsOnHostBridgesMayUseAnyIPAddressAndOneMAC(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := hostNetwork(t)
	up(t, n, nw)
	va := guest("a", nw, 0)
	a, b := plug(t, n, va, nw), plug(t, n, guest("b", nw, 0), nw)
	sendAll(t, a, b, learnedFrames, func(m []byte) []byte { return arp(a.mac, a.mac, 2, addr("10.1.2.3"), m) })

	if err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex:    link(t, "br0").Attrs().Index,
		IP:           net.IPv4(10, 1, 2, 3),
		HardwareAddr: a.mac,
		State:        netlink.NUD_STALE,
		Family:       netlink.FAMILY_V4,
	}); err != nil {
		t.Fatal(err)
	}
	s, err := n.Reconcile(t.Context(), vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{va}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if l := s.Learned["a"]; len(l) != 1 || l[0].IP != addr("10.1.2.3") || l[0].Source != vm.SourceNeighbour {
		t.Errorf("learned %+v", s.Learned)
	}
	nw.VLAN = 5
	if err := n.Up(t.Context(), nw); codeOf(err) != vm.CodeNetworkUnavailable {
		t.Errorf("Up with a VLAN on a bridge that does not filter VLANs: %v", err)
	}
}

// Frames to the reserved group addresses go to the host and pass no rule of the bridge. The
// bridge must not learn from them.
func TestGuestsCannotUseTheMACOfAnother(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	a, b := plug(t, n, guest("a", nw, 10), nw), plug(t, n, guest("b", nw, 11), nw)
	c := plug(t, n, guest("c", nw, 12), nw)
	to := func(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
		f := ether(from, kind, payload)
		copy(f, to)
		return f
	}
	b.send(arp(b.mac, b.mac, 2, b.ip, nil)) // as an ordinary guest does
	for _, last := range []byte{0, 2, 3, 0x0e} {
		a.send(to(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, last}, b.mac, 0x88cc, []byte("I am another")))
	}
	secret, end := []byte("a frame for one guest"), []byte("a later frame for all guests")
	f := arp(c.mac, c.mac, 2, c.ip, secret)
	copy(f, b.mac)
	c.send(f)
	c.send(arp(c.mac, c.mac, 2, c.ip, end))
	if !b.receives(secret, end) {
		t.Error("a guest does not receive a frame to its MAC address")
	}
	if a.receives(secret, end) {
		t.Error("a guest receives a frame to the MAC address of another")
	}
}

func TestIsolatedGuestsDoNotReachOneAnother(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	a, b := plug(t, n, guest("a", nw, 10), nw), plug(t, n, guest("b", nw, 11), nw)
	nw.IsolateVMs, nw.Revision = true, 2
	up(t, n, nw)
	mark, end := []byte("from-one-isolated-guest-to-another"), []byte("after-the-isolation-was-removed")
	a.send(arp(a.mac, a.mac, 2, a.ip, mark))
	nw.IsolateVMs, nw.Revision = false, 3
	up(t, n, nw)
	a.send(arp(a.mac, a.mac, 2, a.ip, end))
	if b.receives(mark, end) {
		t.Error("a guest receives a frame of another isolated guest")
	}
}

func TestAGuestCannotSendFasterThanItsRate(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	va := guest("a", nw, 10)
	va.NICs[0].RateOut = 8 // kbit/s: so slow that nothing arrives after the burst
	a, b := plug(t, n, va, nw), plug(t, n, guest("b", nw, 11), nw)
	to := func(f []byte) []byte {
		copy(f, b.mac)
		return f
	}
	big := make([]byte, 1400)
	for range 1000 { // 1.4 MB
		a.send(to(ipv4(a.mac, a.ip, b.ip, 17, udp(4000, 4000, big))))
	}
	if got := b.arrived(); got < 100 || got > 300 {
		t.Errorf("%d of 1000 frames have arrived at 8 kbit/s, want 100 to 300", got)
	}
	va.NICs[0].RateOut, va.Revision = 0, 2
	if err := n.Update(t.Context(), va, map[string]vm.Network{nw.Name: nw}); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		a.send(to(ipv4(a.mac, a.ip, b.ip, 17, udp(4000, 4000, big))))
	}
	if got := b.arrived(); got < 1000 {
		t.Errorf("%d of 1000 frames have arrived without a limit, want all", got)
	}
}

func TestFloodOfOneGuestDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	for name, newRecord := range map[string]func(testing.TB) vm.Network{
		"assigned": func(testing.TB) vm.Network { return natNetwork() },
		"learned":  hostNetwork,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newHost(t)
			nw := newRecord(t)
			up(t, n, nw)
			a, b := plug(t, n, guest("a", nw, 10), nw), plug(t, n, guest("b", nw, 11), nw)
			c := plug(t, n, guest("c", nw, 12), nw)
			a.ip, c.ip = addr("192.168.100.10"), addr("192.168.100.12") // the host's bridge accepts any
			frame := func(from cable, to string, mark []byte) []byte {
				mac, err := net.ParseMAC(to)
				if err != nil {
					t.Fatal(err)
				}
				f := arp(from.mac, from.mac, 2, from.ip, mark)
				copy(f, mac)
				return f
			}
			b.arrived() // the frames that the host sends when a network comes up
			start := time.Now()
			for range 2000 {
				a.send(frame(a, "ff:ff:ff:ff:ff:ff", nil))
				a.send(frame(a, "33:33:00:00:00:fb", nil))
				a.send(frame(a, "52:00:00:00:00:99", nil)) // an unknown MAC address
			}
			got := b.arrived()
			// The limit grows with the time that this took. The host may add a few frames.
			if most := stormBurst + int(stormRate*time.Since(start).Seconds()) + 20; got < stormBurst || got > most {
				t.Errorf("%d of 6000 frames have arrived; want %d to %d", got, stormBurst, most)
			}
			for _, to := range []string{b.mac.String(), "ff:ff:ff:ff:ff:ff"} {
				mark, end := []byte("from another guest to "+to), []byte("after the frame to "+to)
				c.send(frame(c, to, mark))
				c.send(frame(c, to, end))
				if !b.receives(mark, end) {
					t.Errorf("a frame of a third guest to %s has not arrived", to)
				}
			}
		})
	}
}

func TestAGuestDoesNotReceiveItsOwnBroadcasts(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	a, b := plug(t, n, guest("a", nw, 10), nw), plug(t, n, guest("b", nw, 11), nw)
	for _, c := range []struct {
		to      string
		returns bool
	}{
		{"ff:ff:ff:ff:ff:ff", false},
		{"33:33:ff:00:00:0a", false},
		{"52:00:00:00:00:99", false},
		{a.mac.String(), true},
	} {
		mark, end := []byte("to "+c.to+" from a guest"), []byte("after the frame to "+c.to)
		to, err := net.ParseMAC(c.to)
		if err != nil {
			t.Fatal(err)
		}
		f := arp(a.mac, a.mac, 2, a.ip, mark)
		copy(f, to)
		a.send(f)
		b.send(arp(b.mac, b.mac, 2, b.ip, end))
		if got := a.receives(mark, end); got != c.returns {
			t.Errorf("a frame to %s returns to its sender: %v, want %v", c.to, got, c.returns)
		}
	}
}
