package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"vmand/network/guard"
)

// Clients are known by the Ethernet address that their frames come from, the one
// thing that a guest cannot invent: a DHCPv4 request can carry another's address,
// and DHCPv6 clients name themselves by an identifier that clones of a guest
// share. A UDP socket does not tell that address; a packet socket does. Requests
// are read from the one, answers sent through the other, which also holds the port.

// Offsets in packets (RFC 791, section 3.1; RFC 8200, section 3; RFC 768).
const (
	headerIPv4         = 20
	headerIPv6         = 40
	headerUDP          = 8
	ipv4TotalLength    = 2
	ipv4FragmentOffset = 6 // and the flag that more follow
	ipv4Protocol       = 9
	ipv6NextHeader     = 6
	ipv6Source         = 8
	udpDestination     = 2
	udpLength          = 4

	fragmentMask = 0x3fff
	maxPacket    = 2048
)

// requests4 accepts, of IPv4 packets, whole ones to the port of DHCPv4 servers.
var requests4 = []bpf.Instruction{
	bpf.LoadAbsolute{Off: ipv4Protocol, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
	bpf.LoadAbsolute{Off: ipv4FragmentOffset, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: fragmentMask, SkipTrue: 4},
	bpf.LoadMemShift{Off: 0},
	bpf.LoadIndirect{Off: udpDestination, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: dhcpv4.ServerPort, SkipTrue: 1},
	bpf.RetConstant{Val: maxPacket},
	bpf.RetConstant{Val: 0},
}

// requests6 accepts, of IPv6 packets without extension headers, those to the
// port of DHCPv6 servers.
var requests6 = []bpf.Instruction{
	bpf.LoadAbsolute{Off: ipv6NextHeader, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
	bpf.LoadAbsolute{Off: headerIPv6 + udpDestination, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: dhcpv6.DefaultServerPort, SkipTrue: 1},
	bpf.RetConstant{Val: maxPacket},
	bpf.RetConstant{Val: 0},
}

// nothingAtAll accepts no packet.
var nothingAtAll = []bpf.Instruction{bpf.RetConstant{Val: 0}}

// sockets are how one of the two protocols is spoken on an interface.
type sockets struct {
	frames *os.File     // of kind SOCK_DGRAM: packets from the IP header on
	udp    *net.UDPConn // answers
}

func listen4(name string) (*sockets, error) {
	udp, err := server4.NewIPv4UDPConn(name, &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort})
	if err != nil {
		return nil, fmt.Errorf("listen to DHCP on %s: %w", name, err)
	}
	s := &sockets{udp: udp}
	index, err := guard.InterfaceIndex(udp, name)
	if err == nil {
		err = s.hear(index, unix.ETH_P_IP, requests4)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to DHCP on %s: %w", name, err), s.Close())
	}
	return s, nil
}

func listen6(name string) (*sockets, error) {
	udp, err := server6.NewIPv6UDPConn(name, &net.UDPAddr{IP: net.IPv6unspecified, Port: dhcpv6.DefaultServerPort})
	if err != nil {
		return nil, fmt.Errorf("listen to DHCPv6 on %s: %w", name, err)
	}
	s := &sockets{udp: udp}
	index, err := guard.InterfaceIndex(udp, name)
	if err == nil {
		// The group that clients send to (RFC 8415, section 7.1).
		err = ipv6.NewPacketConn(udp).JoinGroup(&net.Interface{Index: index}, &net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers})
	}
	if err == nil {
		err = s.hear(index, unix.ETH_P_IPV6, requests6)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to DHCPv6 on %s: %w", name, err), s.Close())
	}
	return s, nil
}

// hear closes the ear of the UDP socket and opens a packet socket for what a
// filter accepts.
func (s *sockets) hear(index int, protocol uint16, filter []bpf.Instruction) error {
	raw, err := s.udp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = attach(int(fd), nothingAtAll) }); err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	// Protocol 0 until the filter is there: nothing comes in before.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	s.frames = os.NewFile(uintptr(fd), "dhcp")
	if err := attach(fd, filter); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: index}); err != nil {
		return fmt.Errorf("bind a packet socket: %w", err)
	}
	return nil
}

func attach(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	if err != nil {
		return fmt.Errorf("attach a filter to a socket: %w", err)
	}
	return nil
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// read reads one packet and the Ethernet address it is from; it blocks.
func (s *sockets) read(b []byte) (int, [6]byte, error) {
	raw, err := s.frames.SyscallConn()
	if err != nil {
		return 0, [6]byte{}, err
	}
	var n int
	var from unix.Sockaddr
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, from, failed = unix.Recvfrom(int(fd), b, 0)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, [6]byte{}, err
	}
	ll, ok := from.(*unix.SockaddrLinklayer)
	if !ok || ll.Halen != 6 || ll.Pkttype == unix.PACKET_OTHERHOST || ll.Pkttype == unix.PACKET_OUTGOING {
		return 0, [6]byte{}, nil
	}
	return n, [6]byte(ll.Addr[:6]), nil
}

// payload4 returns what is in an IPv4 packet with UDP in it; not ok if the packet
// is malformed. Checksums are not looked at: those of a packet from a guest of
// this host may not be filled in.
func payload4(packet []byte) (payload []byte, ok bool) {
	if len(packet) < headerIPv4 || packet[0]>>4 != 4 || packet[ipv4Protocol] != unix.IPPROTO_UDP ||
		binary.BigEndian.Uint16(packet[ipv4FragmentOffset:])&fragmentMask != 0 {
		return nil, false
	}
	header, total := 4*int(packet[0]&0xf), int(binary.BigEndian.Uint16(packet[ipv4TotalLength:]))
	if header < headerIPv4 || total > len(packet) || header > total {
		return nil, false
	}
	return payloadUDP(packet[header:total])
}

// payload6 returns what is in an IPv6 packet with UDP in it, and the address it
// is from; not ok if the packet is malformed.
func payload6(packet []byte) (payload []byte, source netip.Addr, ok bool) {
	if len(packet) < headerIPv6 || packet[0]>>4 != 6 || packet[ipv6NextHeader] != unix.IPPROTO_UDP {
		return nil, netip.Addr{}, false
	}
	payload, ok = payloadUDP(packet[headerIPv6:])
	return payload, netip.AddrFrom16([16]byte(packet[ipv6Source : ipv6Source+16])), ok
}

func payloadUDP(b []byte) ([]byte, bool) {
	if len(b) < headerUDP {
		return nil, false
	}
	length := int(binary.BigEndian.Uint16(b[udpLength:]))
	if length < headerUDP || length > len(b) {
		return nil, false
	}
	return b[headerUDP:length], true
}

// send sends an answer. The zone of a link-local address is the interface that
// the socket is bound to.
func (s *sockets) send(b []byte, to netip.AddrPort) error {
	_, err := s.udp.WriteToUDPAddrPort(b, to)
	return err
}

// Close closes both sockets.
func (s *sockets) Close() error {
	var err error
	if s.frames != nil {
		err = s.frames.Close()
	}
	return errors.Join(err, s.udp.Close())
}
