package network

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"vmand/test/harness"
)

// spoofed returns frames that a guest may not send, by what they are. Each has its
// name in it, so that one knows it wherever it arrives.
func spoofed(t *testing.T, me, victim, gateway station) map[string][][]byte {
	stranger := net.HardwareAddr{0x52, 0xee, 0xee, 0xee, 0xee, 0xee}
	nobody := netip.MustParseAddr("192.168.100.200")
	broadcast := netip.MustParseAddr("255.255.255.255")
	every6 := netip.MustParseAddr("ff02::1:2")
	to4 := func(from net.HardwareAddr, source netip.Addr, words string) []byte {
		return ether(victim.mac, from, etherIPv4, ipv4(source, victim.ip, protoUDP, 0, false, udp(source, victim.ip, 1000, 7777, []byte(words))))
	}
	to6 := func(from net.HardwareAddr, source netip.Addr, words string) []byte {
		return ether(victim.mac, from, etherIPv6, ipv6(source, victim.ip6, protoUDP, udp(source, victim.ip6, 1000, 7777, []byte(words))))
	}
	server := func(kind dhcpv4.MessageType, words string) []byte {
		return udp(me.ip, broadcast, 67, 68, dhcpServerPacket(t, kind, me, victim, words))
	}
	ra := func(words string) []byte { return routerAdvertisement(me.link, allNodes, words) }
	icmp := func(next byte, payload []byte) []byte {
		return ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, allNodes, next, payload))
	}
	na := func(target netip.Addr, words string) []byte {
		return ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, allNodes, protoICMPv6, neighbourAdvertisement(me.link, allNodes, target, me.mac, words)))
	}
	offer := server(dhcpv4.MessageTypeOffer, "sp:offer-in-fragments")
	return map[string][][]byte{
		"sp:arp-gateway":        {ether(everyMAC, me.mac, etherARP, arp(arpReply, me.mac, gateway.ip, victim.mac, victim.ip, "sp:arp-gateway"))},
		"sp:arp-victim":         {ether(everyMAC, me.mac, etherARP, arp(arpRequest, me.mac, victim.ip, everyMAC, victim.ip, "sp:arp-victim"))},
		"sp:arp-mac":            {ether(victim.mac, me.mac, etherARP, arp(arpReply, stranger, me.ip, victim.mac, victim.ip, "sp:arp-mac"))},
		"sp:ip-gateway":         {to4(me.mac, gateway.ip, "sp:ip-gateway")},
		"sp:ip-nobody":          {to4(me.mac, nobody, "sp:ip-nobody")},
		"sp:ip-world":           {to4(me.mac, netip.MustParseAddr(harness.FarAddress), "sp:ip-world")},
		"sp:mac-stranger":       {to4(stranger, me.ip, "sp:mac-stranger")},
		"sp:mac-victim":         {ether(everyMAC, victim.mac, etherIPv4, ipv4(me.ip, broadcast, protoUDP, 0, false, udp(me.ip, broadcast, 1, 7777, []byte("sp:mac-victim"))))},
		"sp:mac-gateway":        {to4(gateway.mac, me.ip, "sp:mac-gateway")},
		"sp:dhcp-offer":         {ether(everyMAC, me.mac, etherIPv4, ipv4(me.ip, broadcast, protoUDP, 0, false, server(dhcpv4.MessageTypeOffer, "sp:dhcp-offer")))},
		"sp:dhcp-ack":           {ether(victim.mac, me.mac, etherIPv4, ipv4(me.ip, victim.ip, protoUDP, 0, false, server(dhcpv4.MessageTypeAck, "sp:dhcp-ack")))},
		"sp:dhcp6":              {ether(victim.mac, me.mac, etherIPv6, ipv6(me.link, victim.link, protoUDP, udp(me.link, victim.link, 547, 546, dhcp6ServerPacket(t, me, "sp:dhcp6"))))},
		"sp:ip6-gateway":        {to6(me.mac, gateway.ip6, "sp:ip6-gateway")},
		"sp:ip6-link":           {to6(me.mac, gateway.link, "sp:ip6-link")},
		"sp:ra":                 {icmp(protoICMPv6, ra("sp:ra"))},
		"sp:ra-padded":          {icmp(protoDestination, padded(protoICMPv6, ra("sp:ra-padded")))},
		"sp:ra-hop-by-hop":      {icmp(protoHopByHop, padded(protoICMPv6, ra("sp:ra-hop-by-hop")))},
		"sp:na-gateway":         {na(gateway.link, "sp:na-gateway")},
		"sp:na-victim":          {na(victim.ip6, "sp:na-victim")},
		"sp:tag-0":              {tagged(0, to4(me.mac, gateway.ip, "sp:tag-0"))},
		"sp:tag-5":              {tagged(5, to4(me.mac, gateway.ip, "sp:tag-5"))},
		"sp:tag-ra":             {tagged(0, icmp(protoICMPv6, ra("sp:tag-ra")))},
		"sp:tag-twice":          {tagged(0, tagged(0, to4(me.mac, gateway.ip, "sp:tag-twice")))},
		"sp:fragment":           {ether(victim.mac, me.mac, etherIPv4, ipv4(gateway.ip, victim.ip, protoUDP, 1480, false, []byte("sp:fragment")))},
		"sp:offer-in-fragments": offerInFragments(me, broadcast, offer),
		"sp:multicast6":         {ether(net.HardwareAddr{0x33, 0x33, 0, 1, 0, 2}, me.mac, etherIPv6, ipv6(victim.ip6, every6, protoUDP, udp(victim.ip6, every6, 546, 547, []byte("sp:multicast6"))))},
	}
}

// offerInFragments has the ports of UDP, and its words, in the first fragment
// alone: what follows cannot be put together without it.
func offerInFragments(me station, to netip.Addr, packet []byte) [][]byte {
	cut := (len(packet) - 1) / 8 * 8
	return [][]byte{
		ether(everyMAC, me.mac, etherIPv4, ipv4(me.ip, to, protoUDP, 0, true, packet[:cut])),
		ether(everyMAC, me.mac, etherIPv4, ipv4(me.ip, to, protoUDP, cut, false, packet[cut:])),
	}
}

// inFragments sends a packet in two parts, as the host may put it together on its
// way; its last words are in the second.
func inFragments(from, to station, packet []byte) [][]byte {
	cut := 24
	return [][]byte{
		ether(to.mac, from.mac, etherIPv4, ipv4(from.ip, to.ip, protoUDP, 0, true, packet[:cut])),
		ether(to.mac, from.mac, etherIPv4, ipv4(from.ip, to.ip, protoUDP, cut, false, packet[cut:])),
	}
}

// hidden returns a router advertisement in fragments of which no header of ICMP is
// in the first (RFC 7113). A bridge cannot know it; whether anybody believes it counts.
func hidden(me station) [][]byte {
	fragment := func(p []byte) []byte {
		return ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, allNodes, protoFragment, p))
	}
	return [][]byte{
		fragment(fragment6(protoDestination, 0, true, padded(protoICMPv6, nil))),
		fragment(fragment6(protoDestination, 8, false, routerAdvertisement(me.link, allNodes, "hidden"))),
	}
}

// honest returns frames that look like the spoofed ones and are allowed.
func honest(me, victim station) map[string][][]byte {
	return map[string][][]byte{
		"ok:arp":      {ether(everyMAC, me.mac, etherARP, arp(arpReply, me.mac, me.ip, victim.mac, victim.ip, "ok:arp"))},
		"ok:ip":       {ether(victim.mac, me.mac, etherIPv4, ipv4(me.ip, victim.ip, protoUDP, 0, false, udp(me.ip, victim.ip, 1000, 7777, []byte("ok:ip"))))},
		"ok:fragment": inFragments(me, victim, udp(me.ip, victim.ip, 1000, 7777, []byte("a whole packet, which has ok:fragment at its end"))),
		"ok:ip6":      {ether(victim.mac, me.mac, etherIPv6, ipv6(me.ip6, victim.ip6, protoUDP, udp(me.ip6, victim.ip6, 1000, 7777, []byte("ok:ip6"))))},
		"ok:link":     {ether(victim.mac, me.mac, etherIPv6, ipv6(me.link, victim.link, protoUDP, udp(me.link, victim.link, 1000, 7777, []byte("ok:link"))))},
		"ok:na":       {ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, allNodes, protoICMPv6, neighbourAdvertisement(me.link, allNodes, me.ip6, me.mac, "ok:na")))},
	}
}

// TestSpoofedPacketsDoNotArrive sends packets from inside a guest and looks for
// them in its neighbour and on the host.
func TestSpoofedPacketsDoNotArrive(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.Call("PATCH", "/networks/vman0", map[string]any{"ipv6_subnet": "fd00:100::/64"}).Want(200)
	var stations []station
	for _, id := range []string{"a", "b"} {
		v := d.CreateVM(id)
		s := newStation(t, v.NICs[0].MAC, *v.LocalIP)
		s.ip6 = netip.MustParseAddr(*v.NICs[0].IPv6)
		stations = append(stations, s)
	}
	gateway := station{ip: netip.MustParseAddr("192.168.100.1"), ip6: netip.MustParseAddr("fd00:100::1"), link: netip.MustParseAddr("fe80::1")}
	l.Host.Must("look at the bridge", func() error {
		ifi, err := net.InterfaceByName("vman0")
		if err != nil {
			return err
		}
		gateway.mac = ifi.HardwareAddr
		return nil
	})
	shells := d.StartAll("a", "b")
	a, b := shells[0], shells[1]
	b.Capture("eth0")
	onBridge := l.Host.Sniff("vman0")

	bad, good := spoofed(t, stations[0], stations[1], gateway), honest(stations[0], stations[1])
	for _, frames := range bad {
		a.Send("eth0", frames...)
	}
	a.Send("eth0", hidden(stations[0])...)
	for words, frames := range good {
		a.Send("eth0", frames...)
		b.WaitCaptured("eth0", words) // and with it all that was sent before
	}
	heard := b.Captured("eth0")
	for words := range bad {
		if n := harness.CountFrames(heard, words); n > 0 {
			t.Errorf("%d frames of %s have arrived in the guest", n, words)
		}
		if n := onBridge.Count(words); n > 0 {
			t.Errorf("%d frames of %s have arrived on the host", n, words)
		}
	}
	if onBridge.Count("ok:arp") == 0 {
		t.Error("the host has not heard what is allowed: the test would miss what is not")
	}
	// Nobody believes anything of it.
	b.Run("ping -c 1 -W 5 192.168.100.1")
	if got := b.Reaches(harness.FarAddress); got == "" {
		t.Error("the neighbour has lost its way")
	}
	for _, line := range strings.Split(b.Run("ip -6 route show default"), "\n") {
		if line != "" && !strings.Contains(line, gateway.link.String()) {
			t.Errorf("the neighbour has the default route %q", line)
		}
	}
	if got := b.Run("ip -6 neigh show %s", gateway.link); strings.Contains(got, stations[0].mac.String()) {
		t.Errorf("the neighbour believes the gateway is %q", got)
	}
}

// garbage returns frames that are wrong in every way: of random bytes, with
// honest beginnings and random rests, with lengths that lie.
func garbage(me station) [][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		return p
	}
	broadcast := netip.MustParseAddr("255.255.255.255")
	var frames [][]byte
	for i := range 50 {
		n := 1 + random.IntN(1000)
		frames = append(frames,
			ether(everyMAC, me.mac, uint16(random.Uint32()), noise(n)),
			ether(everyMAC, noise(6), etherIPv4, noise(n)),
			ether(everyMAC, me.mac, etherARP, noise(28)),
			ether(everyMAC, me.mac, etherIPv4, ipv4(netip.IPv4Unspecified(), broadcast, protoUDP, 0, false, udp(netip.IPv4Unspecified(), broadcast, 68, 67, noise(n)))),
			ether(everyMAC, me.mac, etherIPv4, ipv4(me.ip, netip.MustParseAddr("192.168.100.1"), protoUDP, 0, false, udp(me.ip, netip.MustParseAddr("192.168.100.1"), uint16(1024+i), 53, noise(n)))),
			ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, netip.MustParseAddr("ff02::1:2"), protoUDP, udp(me.link, netip.MustParseAddr("ff02::1:2"), 546, 547, noise(n)))),
			ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, netip.MustParseAddr("ff02::2"), protoICMPv6, icmp6(me.link, netip.MustParseAddr("ff02::2"), 133, noise(n)))))
	}
	return frames
}

// TestAGuestThatFloodsHurtsNobody lets one guest send garbage as fast as it can.
func TestAGuestThatFloodsHurtsNobody(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	v := d.CreateVM("a")
	d.CreateVM("b")
	shells := d.StartAll("a", "b")
	a, b := shells[0], shells[1]
	me := newStation(t, v.NICs[0].MAC, *v.LocalIP)
	var lines []byte
	for _, f := range garbage(me) {
		lines = append(append(lines, hex.EncodeToString(f)...), '\n')
	}
	memory := d.MemoryMiB("VmRSS")
	cpu, start, said := harness.CPUTime(t, d.PID()), time.Now(), len(d.Log())
	ended := make(chan error, 1)
	go func() {
		out, code, err := a.Try(string(lines), "vmt send -for 10s eth0")
		if sent, _ := strconv.Atoi(out); err == nil && (code != 0 || sent < len(garbage(me))) {
			err = fmt.Errorf("it was no flood: %d frames, exit status %d: %s", sent, code, out)
		}
		ended <- err
	}()
	// Meanwhile the others are served.
	b.Run("killall udhcpc; sleep 1; udhcpc -n -q -f -i eth0 -s /lib/udhcpc -t 10 -T 1")
	b.Run("nslookup b.vman0.internal")
	b.Reaches(harness.FarAddress)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// The rules let only so much of a flood through: what the daemon has to do does
	// not depend on how fast a guest can send, and less of it fits into a second of
	// a host that is busy.
	share := (harness.CPUTime(t, d.PID()) - cpu).Seconds() / time.Since(start).Seconds()
	if share > 0.5 {
		t.Errorf("the daemon took %.2f of a core during the flood", share)
	}
	after := d.MemoryMiB("VmRSS")
	if after > memory+64 {
		t.Errorf("the daemon had %d MiB and has %d", memory, after)
	}
	if n := len(d.Log()) - said; n > 64<<10 {
		t.Errorf("the daemon wrote %d bytes of log", n)
	}
	t.Logf("flood: %.2f of a core, %d to %d MiB, %d bytes of log", share, memory, after, len(d.Log())-said)
}
