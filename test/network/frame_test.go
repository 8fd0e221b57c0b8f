package network

import (
	order "encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// Numbers of the protocols that the frames below speak.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherIPv6 = 0x86dd

	protoHopByHop    = 0
	protoTCP         = 6
	protoUDP         = 17
	protoFragment    = 44
	protoICMPv6      = 58
	protoDestination = 60

	arpRequest = 1
	arpReply   = 2

	icmpRouterAdvertisement    = 134
	icmpNeighbourAdvertisement = 136
)

var (
	everyMAC   = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes   = netip.MustParseAddr("ff02::1")
	allNodeMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// A station is who a frame is from or to.
type station struct {
	mac  net.HardwareAddr
	ip   netip.Addr // IPv4
	ip6  netip.Addr // global; zero without IPv6
	link netip.Addr // link-local
}

// newStation returns the station of a MAC address, whose link-local address is
// made of it (RFC 4291, appendix A).
func newStation(t testing.TB, mac, ip string) station {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	link := [16]byte{0: 0xfe, 1: 0x80, 8: hw[0] ^ 2, 9: hw[1], 10: hw[2], 11: 0xff, 12: 0xfe, 13: hw[3], 14: hw[4], 15: hw[5]}
	return station{mac: hw, ip: netip.MustParseAddr(ip), link: netip.AddrFrom16(link)}
}

func ether(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	f := append(append([]byte{}, to...), from...)
	f = append(order.BigEndian.AppendUint16(f, kind), payload...)
	if short := 60 - len(f); short > 0 {
		f = append(f, make([]byte, short)...)
	}
	return f
}

// tagged puts a VLAN tag into a frame.
func tagged(id uint16, frame []byte) []byte {
	f := append([]byte{}, frame[:12]...)
	f = order.BigEndian.AppendUint16(f, etherVLAN)
	return append(order.BigEndian.AppendUint16(f, id), frame[12:]...)
}

// arp returns the body of an ARP packet; words follow it where padding would be.
func arp(op uint16, fromMAC net.HardwareAddr, fromIP netip.Addr, toMAC net.HardwareAddr, toIP netip.Addr, words string) []byte {
	p := []byte{0, 1, 8, 0, 6, 4}
	p = order.BigEndian.AppendUint16(p, op)
	p = append(append(p, fromMAC...), fromIP.AsSlice()...)
	p = append(append(p, toMAC...), toIP.AsSlice()...)
	return append(p, words...)
}

// ipv4 returns a packet; offset is in bytes, more says that fragments follow.
func ipv4(from, to netip.Addr, proto byte, offset int, more bool, payload []byte) []byte {
	p := []byte{0x45, 0}
	p = order.BigEndian.AppendUint16(p, uint16(20+len(payload)))
	p = append(p, 0x77, 0x77) // the same id for all fragments
	fragment := uint16(offset / 8)
	if more {
		fragment |= 0x2000
	}
	p = order.BigEndian.AppendUint16(p, fragment)
	p = append(p, 64, proto, 0, 0)
	p = append(append(p, from.AsSlice()...), to.AsSlice()...)
	order.BigEndian.PutUint16(p[10:], ^fold(sum(0, p)))
	return append(p, payload...)
}

func udp(from, to netip.Addr, fromPort, toPort uint16, payload []byte) []byte {
	p := order.BigEndian.AppendUint16(nil, fromPort)
	p = order.BigEndian.AppendUint16(p, toPort)
	p = order.BigEndian.AppendUint16(p, uint16(8+len(payload)))
	p = append(append(p, 0, 0), payload...)
	order.BigEndian.PutUint16(p[6:], checksum(from, to, protoUDP, p))
	return p
}

// ipv6 returns a packet whose first header after the fixed one is next.
func ipv6(from, to netip.Addr, next byte, payload []byte) []byte {
	p := []byte{0x60, 0, 0, 0}
	p = order.BigEndian.AppendUint16(p, uint16(len(payload)))
	p = append(p, next, 255)
	p = append(append(p, from.AsSlice()...), to.AsSlice()...)
	return append(p, payload...)
}

// padded returns an options header of IPv6 that says nothing, before payload.
func padded(next byte, payload []byte) []byte {
	return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload...)
}

// fragment6 returns a fragment of what comes after the fixed header of IPv6.
func fragment6(next byte, offset int, more bool, payload []byte) []byte {
	field := uint16(offset)
	if more {
		field |= 1
	}
	p := order.BigEndian.AppendUint16([]byte{next, 0}, field)
	return append(append(p, 0, 0, 0x77, 0x77), payload...)
}

func icmp6(from, to netip.Addr, kind byte, body []byte) []byte {
	p := append([]byte{kind, 0, 0, 0}, body...)
	order.BigEndian.PutUint16(p[2:], checksum(from, to, protoICMPv6, p))
	return p
}

// routerAdvertisement is for an hour's default route; words are in an option that
// nobody knows.
func routerAdvertisement(from, to netip.Addr, words string) []byte {
	body := append([]byte{64, 0, 0x0e, 0x10}, make([]byte, 8)...)
	return icmp6(from, to, icmpRouterAdvertisement, append(body, wordsOption(words)...))
}

// neighbourAdvertisement says that target is at mac, and overrides what was known.
func neighbourAdvertisement(from, to, target netip.Addr, mac net.HardwareAddr, words string) []byte {
	body := append([]byte{0x20, 0, 0, 0}, target.AsSlice()...)
	body = append(append(body, 2, 1), mac...)
	return icmp6(from, to, icmpNeighbourAdvertisement, append(body, wordsOption(words)...))
}

// wordsOption returns an option of type 253 (RFC 4727: for experiments).
func wordsOption(words string) []byte {
	units := (2 + len(words) + 7) / 8
	o := append([]byte{253, byte(units)}, words...)
	return append(o, make([]byte, 8*units-len(o))...)
}

// checksum is that of UDP and ICMPv6 (RFC 1071) with its pseudo header.
func checksum(from, to netip.Addr, proto byte, p []byte) uint16 {
	s := sum(0, from.AsSlice())
	s = sum(s, to.AsSlice()) + uint32(proto) + uint32(len(p))
	return ^fold(sum(s, p))
}

func sum(s uint32, p []byte) uint32 {
	for i := 0; i+1 < len(p); i += 2 {
		s += uint32(p[i])<<8 | uint32(p[i+1])
	}
	if len(p)%2 == 1 {
		s += uint32(p[len(p)-1]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// dhcpServerPacket is what a DHCP server says to a client, from an address of its own.
func dhcpServerPacket(t testing.TB, kind dhcpv4.MessageType, from, to station, words string) []byte {
	t.Helper()
	m, err := dhcpv4.New(dhcpv4.WithHwAddr(to.mac), dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(from.ip.AsSlice()),
		dhcpv4.WithServerIP(from.ip.AsSlice()), dhcpv4.WithRouter(from.ip.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(from.ip.AsSlice())), dhcpv4.WithOption(dhcpv4.OptMessage(words)))
	if err != nil {
		t.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootReply
	return m.ToBytes()
}

// dhcp6ServerPacket is what a DHCPv6 server says to a client.
func dhcp6ServerPacket(t testing.TB, from station, words string) []byte {
	t.Helper()
	m, err := dhcpv6.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = dhcpv6.MessageTypeAdvertise
	m.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: from.mac}))
	m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionVendorOpts, OptionData: append([]byte{0, 0, 0, 1}, words...)})
	return m.ToBytes()
}
