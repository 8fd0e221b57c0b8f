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

// udp4 returns the frame of a UDP datagram over IPv4.
func udp4(to, from net.HardwareAddr, source, destination netip.Addr, sourcePort, port uint16, payload []byte) []byte {
	datagram := udp(source, destination, sourcePort, port, payload)
	return ether(to, from, etherIPv4, ipv4(source, destination, protoUDP, 0, false, datagram))
}

// udp6 returns the frame of a UDP datagram over IPv6.
func udp6(to, from net.HardwareAddr, source, destination netip.Addr, sourcePort, port uint16, payload []byte) []byte {
	datagram := udp(source, destination, sourcePort, port, payload)
	return ether(to, from, etherIPv6, ipv6(source, destination, protoUDP, datagram))
}

// spoofed returns frames that a guest must not be able to send, by name. Each contains its
// name, so that a capture identifies it.
func spoofed(t *testing.T, me, victim, gateway station) map[string][][]byte {
	var (
		stranger  = net.HardwareAddr{0x52, 0xee, 0xee, 0xee, 0xee, 0xee}
		nobody    = netip.MustParseAddr("192.168.100.200")
		world     = netip.MustParseAddr(harness.FarAddress)
		broadcast = netip.MustParseAddr("255.255.255.255")
		servers6  = netip.MustParseAddr("ff02::1:2")
		macOf6    = net.HardwareAddr{0x33, 0x33, 0, 1, 0, 2}
	)
	frames := map[string][][]byte{}
	add := func(name string, build func(name string) []byte) { frames[name] = [][]byte{build(name)} }
	type mac = net.HardwareAddr
	sendARP := func(to mac, op uint16, fromMAC mac, fromIP netip.Addr, toMAC mac) func(string) []byte {
		return func(name string) []byte {
			return ether(to, me.mac, etherARP, arp(op, fromMAC, fromIP, toMAC, victim.ip, name))
		}
	}
	to4 := func(from mac, source netip.Addr) func(string) []byte {
		return func(name string) []byte {
			return udp4(victim.mac, from, source, victim.ip, 1000, 7777, []byte(name))
		}
	}
	to6 := func(from mac, source netip.Addr) func(string) []byte {
		return func(name string) []byte {
			return udp6(victim.mac, from, source, victim.ip6, 1000, 7777, []byte(name))
		}
	}
	multicast := func(next byte, payload []byte) []byte {
		return ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, allNodes, next, payload))
	}
	ra := func(name string) []byte { return routerAdvertisement(me.link, allNodes, name) }
	na := func(target netip.Addr) func(string) []byte {
		return func(name string) []byte {
			return multicast(protoICMPv6, neighbourAdvertisement(me.link, allNodes, target, me.mac, name))
		}
	}

	add("sp:arp-gateway", sendARP(everyMAC, arpReply, me.mac, gateway.ip, victim.mac))
	add("sp:arp-victim", sendARP(everyMAC, arpRequest, me.mac, victim.ip, everyMAC))
	add("sp:arp-mac", sendARP(victim.mac, arpReply, stranger, me.ip, victim.mac))

	add("sp:ip-gateway", to4(me.mac, gateway.ip))
	add("sp:ip-nobody", to4(me.mac, nobody))
	add("sp:ip-world", to4(me.mac, world))
	add("sp:mac-stranger", to4(stranger, me.ip))
	add("sp:mac-gateway", to4(gateway.mac, me.ip))
	add("sp:mac-victim", func(name string) []byte {
		return udp4(everyMAC, victim.mac, me.ip, broadcast, 1, 7777, []byte(name))
	})

	server := func(kind dhcpv4.MessageType, name string) []byte {
		return udp(me.ip, broadcast, 67, 68, dhcpServerPacket(t, kind, me, victim, name))
	}
	add("sp:dhcp-offer", func(name string) []byte {
		offer := server(dhcpv4.MessageTypeOffer, name)
		return ether(everyMAC, me.mac, etherIPv4, ipv4(me.ip, broadcast, protoUDP, 0, false, offer))
	})
	add("sp:dhcp-ack", func(name string) []byte {
		ack := server(dhcpv4.MessageTypeAck, name)
		return ether(victim.mac, me.mac, etherIPv4, ipv4(me.ip, victim.ip, protoUDP, 0, false, ack))
	})
	add("sp:dhcp6", func(name string) []byte {
		return udp6(victim.mac, me.mac, me.link, victim.link, 547, 546, dhcp6ServerPacket(t, me, name))
	})
	frames["sp:offer-in-fragments"] = offerInFragments(me, broadcast,
		server(dhcpv4.MessageTypeOffer, "sp:offer-in-fragments"))
	add("sp:fragment", func(name string) []byte {
		return ether(victim.mac, me.mac, etherIPv4, ipv4(gateway.ip, victim.ip, protoUDP, 1480, false, []byte(name)))
	})

	add("sp:ip6-gateway", to6(me.mac, gateway.ip6))
	add("sp:ip6-link", to6(me.mac, gateway.link))
	add("sp:multicast6", func(name string) []byte {
		return udp6(macOf6, me.mac, victim.ip6, servers6, 546, 547, []byte(name))
	})
	add("sp:ra", func(name string) []byte { return multicast(protoICMPv6, ra(name)) })
	add("sp:ra-padded", func(name string) []byte {
		return multicast(protoDestination, padded(protoICMPv6, ra(name)))
	})
	add("sp:ra-hop-by-hop", func(name string) []byte {
		return multicast(protoHopByHop, padded(protoICMPv6, ra(name)))
	})
	add("sp:na-gateway", na(gateway.link))
	add("sp:na-victim", na(victim.ip6))

	spoofedIP := to4(me.mac, gateway.ip)
	add("sp:tag-0", func(name string) []byte { return tagged(0, spoofedIP(name)) })
	add("sp:tag-5", func(name string) []byte { return tagged(5, spoofedIP(name)) })
	add("sp:tag-twice", func(name string) []byte { return tagged(0, tagged(0, spoofedIP(name))) })
	add("sp:tag-ra", func(name string) []byte { return tagged(0, multicast(protoICMPv6, ra(name))) })
	return frames
}

// offerInFragments returns the packet of a DHCP server in two fragments. Only the first has
// the UDP ports and the text.
func offerInFragments(me station, to netip.Addr, packet []byte) [][]byte {
	cut := (len(packet) - 1) / 8 * 8
	return [][]byte{
		ether(everyMAC, me.mac, etherIPv4, ipv4(me.ip, to, protoUDP, 0, true, packet[:cut])),
		ether(everyMAC, me.mac, etherIPv4, ipv4(me.ip, to, protoUDP, cut, false, packet[cut:])),
	}
}

// inFragments returns a packet in two fragments, which the host may reassemble. The end of
// its text is in the second.
func inFragments(from, to station, packet []byte) [][]byte {
	cut := 24
	return [][]byte{
		ether(to.mac, from.mac, etherIPv4, ipv4(from.ip, to.ip, protoUDP, 0, true, packet[:cut])),
		ether(to.mac, from.mac, etherIPv4, ipv4(from.ip, to.ip, protoUDP, cut, false, packet[cut:])),
	}
}

// hidden returns a router advertisement in fragments, the first of which has no ICMPv6 header
// (RFC 7113). A bridge cannot recognise it. The neighbour must ignore it.
func hidden(me station) [][]byte {
	fragment := func(p []byte) []byte {
		return ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, allNodes, protoFragment, p))
	}
	return [][]byte{
		fragment(fragment6(protoDestination, 0, true, padded(protoICMPv6, nil))),
		fragment(fragment6(protoDestination, 8, false, routerAdvertisement(me.link, allNodes, "hidden"))),
	}
}

// honest returns allowed frames that resemble the spoofed ones, by name.
func honest(me, victim station) map[string][][]byte {
	const whole = "a packet in two fragments with ok:fragment"
	advertisement := neighbourAdvertisement(me.link, allNodes, me.ip6, me.mac, "ok:na")
	return map[string][][]byte{
		"ok:arp":      {ether(everyMAC, me.mac, etherARP, arp(arpReply, me.mac, me.ip, victim.mac, victim.ip, "ok:arp"))},
		"ok:ip":       {udp4(victim.mac, me.mac, me.ip, victim.ip, 1000, 7777, []byte("ok:ip"))},
		"ok:fragment": inFragments(me, victim, udp(me.ip, victim.ip, 1000, 7777, []byte(whole))),
		"ok:ip6":      {udp6(victim.mac, me.mac, me.ip6, victim.ip6, 1000, 7777, []byte("ok:ip6"))},
		"ok:link":     {udp6(victim.mac, me.mac, me.link, victim.link, 1000, 7777, []byte("ok:link"))},
		"ok:na":       {ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, allNodes, protoICMPv6, advertisement))},
	}
}

// TestSpoofedPacketsDoNotArrive sends frames from a guest and captures frames in its
// neighbour and on the host.
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
	gateway := station{
		ip:   netip.MustParseAddr("192.168.100.1"),
		ip6:  netip.MustParseAddr("fd00:100::1"),
		link: netip.MustParseAddr("fe80::1"),
	}
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
	for name, frames := range good {
		a.Send("eth0", frames...)
		b.WaitCaptured("eth0", name) // and so the frames before it
	}
	captured := b.Captured("eth0")
	for name := range bad {
		if n := harness.CountFrames(captured, name); n > 0 {
			t.Errorf("%d frames %s arrived in the guest", n, name)
		}
		if n := onBridge.Count(name); n > 0 {
			t.Errorf("%d frames %s arrived on the host", n, name)
		}
	}
	if onBridge.Count("ok:arp") == 0 {
		t.Error("the capture on the host has no allowed frame")
	}
	// The frames have changed nothing in the neighbour.
	b.Run("ping -c 1 -W 5 192.168.100.1")
	if got := b.Reaches(harness.FarAddress); got == "" {
		t.Errorf("the neighbour does not reach %s", harness.FarAddress)
	}
	for _, line := range strings.Split(b.Run("ip -6 route show default"), "\n") {
		if line != "" && !strings.Contains(line, gateway.link.String()) {
			t.Errorf("the default route of the neighbour is %q, want the gateway", line)
		}
	}
	if got := b.Run("ip -6 neigh show %s", gateway.link); strings.Contains(got, stations[0].mac.String()) {
		t.Errorf("the neighbour's entry for the gateway is %q", got)
	}
}

// garbage returns invalid frames: random bytes, valid headers before random bytes, and wrong
// lengths.
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
	var (
		zero     = netip.IPv4Unspecified()
		gateway  = netip.MustParseAddr("192.168.100.1")
		servers6 = netip.MustParseAddr("ff02::1:2")
		routers6 = netip.MustParseAddr("ff02::2")
	)
	var frames [][]byte
	for i := range 50 {
		n := 1 + random.IntN(1000)
		solicitation := icmp6(me.link, routers6, 133, noise(n))
		frames = append(frames,
			ether(everyMAC, me.mac, uint16(random.Uint32()), noise(n)),
			ether(everyMAC, noise(6), etherIPv4, noise(n)),
			ether(everyMAC, me.mac, etherARP, noise(28)),
			udp4(everyMAC, me.mac, zero, broadcast, 68, 67, noise(n)),
			udp4(everyMAC, me.mac, me.ip, gateway, uint16(1024+i), 53, noise(n)),
			udp6(allNodeMAC, me.mac, me.link, servers6, 546, 547, noise(n)),
			ether(allNodeMAC, me.mac, etherIPv6, ipv6(me.link, routers6, protoICMPv6, solicitation)))
	}
	return frames
}

// TestFloodingGuestDoesNotAffectOthers makes one guest send garbage as fast as it can.
func TestFloodingGuestDoesNotAffectOthers(t *testing.T) {
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
	cpu, start, logged := harness.CPUTime(t, d.PID()), time.Now(), len(d.Log())
	ended := make(chan error, 1)
	go func() {
		out, code, err := a.Try(string(lines), "vmt send -for 10s eth0")
		if sent, _ := strconv.Atoi(out); err == nil && (code != 0 || sent < len(garbage(me))) {
			err = fmt.Errorf("the guest sent only %d frames, exit status %d: %s", sent, code, out)
		}
		ended <- err
	}()
	// DHCP, DNS and the network work for another guest meanwhile.
	b.Run("killall udhcpc; sleep 1; udhcpc -n -q -f -i eth0 -s /lib/udhcpc -t 10 -T 1")
	b.Run("nslookup b.vman0.internal")
	b.Reaches(harness.FarAddress)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// The rules limit the rate of frames that reach the daemon, so that its CPU time does
	// not depend on the speed of the guest.
	share := (harness.CPUTime(t, d.PID()) - cpu).Seconds() / time.Since(start).Seconds()
	if share > 0.5 {
		t.Errorf("the daemon used %.2f of a core during the flood, want at most 0.5", share)
	}
	after := d.MemoryMiB("VmRSS")
	if after > memory+64 {
		t.Errorf("the daemon has %d MiB, want at most 64 MiB more than the %d MiB before", after, memory)
	}
	if n := len(d.Log()) - logged; n > 64<<10 {
		t.Errorf("the daemon logged %d bytes during the flood, want at most 64 KiB", n)
	}
	t.Logf("flood: %.2f of a core, %d to %d MiB, %d bytes logged", share, memory, after, len(d.Log())-logged)
}
