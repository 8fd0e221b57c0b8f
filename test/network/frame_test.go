package network

import (
	order "encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// Numbers of protocols.
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

// A station is the sender or the receiver of a frame.
type station struct {
	mac  net.HardwareAddr
	ip   netip.Addr // IPv4
	ip6  netip.Addr // global IPv6; zero: none
	link netip.Addr // link-local IPv6
}

// newStation returns the station with a MAC address, and the link-local address that is
// derived from it (RFC 4291, appendix A).
func newStation(t testing.TB, mac, ip string) station {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	link := [16]byte{
		0: 0xfe, 1: 0x80,
		8: hw[0] ^ 2, 9: hw[1], 10: hw[2], 11: 0xff, 12: 0xfe, 13: hw[3], 14: hw[4], 15: hw[5],
	}
	return station{mac: hw, ip: netip.MustParseAddr(ip), link: netip.AddrFrom16(link)}
}

// ether returns an Ethernet frame of at least 60 bytes.
func ether(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	f := append(append([]byte{}, to...), from...)
	f = append(order.BigEndian.AppendUint16(f, kind), payload...)
	if short := 60 - len(f); short > 0 {
		f = append(f, make([]byte, short)...)
	}
	return f
}

// tagged returns a frame with a VLAN tag.
func tagged(id uint16, frame []byte) []byte {
	f := append([]byte{}, frame[:12]...)
	f = order.BigEndian.AppendUint16(f, etherVLAN)
	return append(order.BigEndian.AppendUint16(f, id), frame[12:]...)
}

// arp returns an ARP packet, followed by text in place of padding.
func arp(
	op uint16,
	fromMAC net.HardwareAddr, fromIP netip.Addr,
	toMAC net.HardwareAddr, toIP netip.Addr,
	text string,
) []byte {
	p := []byte{0, 1, 8, 0, 6, 4}
	p = order.BigEndian.AppendUint16(p, op)
	p = append(append(p, fromMAC...), fromIP.AsSlice()...)
	p = append(append(p, toMAC...), toIP.AsSlice()...)
	return append(p, text...)
}

// ipv4 returns a packet or a fragment of one. offset is in bytes; more is true unless it is
// the last fragment.
func ipv4(from, to netip.Addr, proto byte, offset int, more bool, payload []byte) []byte {
	p := []byte{0x45, 0}
	p = order.BigEndian.AppendUint16(p, uint16(20+len(payload)))
	p = append(p, 0x77, 0x77) // the id of all packets, so that fragments belong together
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

// udp returns a datagram with its checksum.
func udp(from, to netip.Addr, fromPort, toPort uint16, payload []byte) []byte {
	p := order.BigEndian.AppendUint16(nil, fromPort)
	p = order.BigEndian.AppendUint16(p, toPort)
	p = order.BigEndian.AppendUint16(p, uint16(8+len(payload)))
	p = append(append(p, 0, 0), payload...)
	order.BigEndian.PutUint16(p[6:], checksum(from, to, protoUDP, p))
	return p
}

// ipv6 returns a packet. next is the type of the header at the begin of the payload.
func ipv6(from, to netip.Addr, next byte, payload []byte) []byte {
	p := []byte{0x60, 0, 0, 0}
	p = order.BigEndian.AppendUint16(p, uint16(len(payload)))
	p = append(p, next, 255)
	p = append(append(p, from.AsSlice()...), to.AsSlice()...)
	return append(p, payload...)
}

// padded returns an options header of IPv6 with padding only, followed by the payload.
func padded(next byte, payload []byte) []byte {
	return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload...)
}

// fragment6 returns a fragment header of IPv6, followed by the payload.
func fragment6(next byte, offset int, more bool, payload []byte) []byte {
	field := uint16(offset)
	if more {
		field |= 1
	}
	p := order.BigEndian.AppendUint16([]byte{next, 0}, field)
	return append(append(p, 0, 0, 0x77, 0x77), payload...)
}

// icmp6 returns an ICMPv6 message with its checksum.
func icmp6(from, to netip.Addr, kind byte, body []byte) []byte {
	p := append([]byte{kind, 0, 0, 0}, body...)
	order.BigEndian.PutUint16(p[2:], checksum(from, to, protoICMPv6, p))
	return p
}

// routerAdvertisement returns the announcement of a default route for an hour, with text in
// an unknown option.
func routerAdvertisement(from, to netip.Addr, text string) []byte {
	body := append([]byte{64, 0, 0x0e, 0x10}, make([]byte, 8)...)
	return icmp6(from, to, icmpRouterAdvertisement, append(body, textOption(text)...))
}

// neighbourAdvertisement returns the announcement that target has the address mac, with the
// override flag, and text in an unknown option.
func neighbourAdvertisement(from, to, target netip.Addr, mac net.HardwareAddr, text string) []byte {
	body := append([]byte{0x20, 0, 0, 0}, target.AsSlice()...)
	body = append(append(body, 2, 1), mac...)
	return icmp6(from, to, icmpNeighbourAdvertisement, append(body, textOption(text)...))
}

// textOption returns an option of type 253, which is for experiments (RFC 4727).
func textOption(text string) []byte {
	units := (2 + len(text) + 7) / 8
	o := append([]byte{253, byte(units)}, text...)
	return append(o, make([]byte, 8*units-len(o))...)
}

// checksum returns the checksum of UDP and ICMPv6 (RFC 1071), with the pseudo header.
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

// dhcpServerPacket returns an answer of a DHCP server that offers its own address.
func dhcpServerPacket(t testing.TB, kind dhcpv4.MessageType, from, to station, text string) []byte {
	t.Helper()
	m, err := dhcpv4.New(
		dhcpv4.WithHwAddr(to.mac),
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithYourIP(from.ip.AsSlice()),
		dhcpv4.WithServerIP(from.ip.AsSlice()),
		dhcpv4.WithRouter(from.ip.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(from.ip.AsSlice())),
		dhcpv4.WithOption(dhcpv4.OptMessage(text)))
	if err != nil {
		t.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootReply
	return m.ToBytes()
}

// dhcp6ServerPacket returns an advertisement of a DHCPv6 server.
func dhcp6ServerPacket(t testing.TB, from station, text string) []byte {
	t.Helper()
	m, err := dhcpv6.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = dhcpv6.MessageTypeAdvertise
	m.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: from.mac}))
	m.AddOption(&dhcpv6.OptionGeneric{
		OptionCode: dhcpv6.OptionVendorOpts,
		OptionData: append([]byte{0, 0, 0, 1}, text...),
	})
	return m.ToBytes()
}
