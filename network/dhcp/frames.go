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

// The server identifies a client by the source address of its Ethernet frames, which a
// guest cannot forge: a DHCPv4 request can carry the address of another guest, and DHCPv6
// clients send an identifier that clones of a guest share. Only a packet socket shows that
// address. So requests are read from a packet socket and replies are sent through a UDP
// socket, which also occupies the port.

// Offsets in packets (RFC 791, section 3.1; RFC 8200, section 3; RFC 768).
const (
	headerIPv4         = 20
	headerIPv6         = 40
	headerUDP          = 8
	ipv4TotalLength    = 2
	ipv4FragmentOffset = 6 // with the flag for more fragments
	ipv4Protocol       = 9
	ipv6NextHeader     = 6
	ipv6Source         = 8
	udpDestination     = 2
	udpLength          = 4

	fragmentMask = 0x3fff
	maxPacket    = 2048
)

// requests4 is a filter for unfragmented IPv4 packets to the port of DHCPv4 servers.
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

// requests6 is a filter for IPv6 packets without extension headers to the port of DHCPv6
// servers.
var requests6 = []bpf.Instruction{
	bpf.LoadAbsolute{Off: ipv6NextHeader, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
	bpf.LoadAbsolute{Off: headerIPv6 + udpDestination, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: dhcpv6.DefaultServerPort, SkipTrue: 1},
	bpf.RetConstant{Val: maxPacket},
	bpf.RetConstant{Val: 0},
}

// noPackets is a filter that accepts no packet.
var noPackets = []bpf.Instruction{bpf.RetConstant{Val: 0}}

// sockets holds the two sockets of a protocol on an interface.
type sockets struct {
	frames *os.File     // receives; of kind SOCK_DGRAM: packets begin with the IP header
	udp    *net.UDPConn // sends
}

func listen4(name string) (*sockets, error) {
	udp, err := server4.NewIPv4UDPConn(name, &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort})
	if err != nil {
		return nil, fmt.Errorf("listen for DHCP on %s: %w", name, err)
	}
	s := &sockets{udp: udp}
	index, err := guard.InterfaceIndex(udp, name)
	if err == nil {
		err = s.openFrames(index, unix.ETH_P_IP, requests4)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for DHCP on %s: %w", name, err), s.Close())
	}
	return s, nil
}

func listen6(name string) (*sockets, error) {
	udp, err := server6.NewIPv6UDPConn(name, &net.UDPAddr{IP: net.IPv6unspecified, Port: dhcpv6.DefaultServerPort})
	if err != nil {
		return nil, fmt.Errorf("listen for DHCPv6 on %s: %w", name, err)
	}
	s := &sockets{udp: udp}
	index, err := guard.InterfaceIndex(udp, name)
	if err == nil {
		// The group that clients send to (RFC 8415, section 7.1).
		group := &net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers}
		err = ipv6.NewPacketConn(udp).JoinGroup(&net.Interface{Index: index}, group)
	}
	if err == nil {
		err = s.openFrames(index, unix.ETH_P_IPV6, requests6)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for DHCPv6 on %s: %w", name, err), s.Close())
	}
	return s, nil
}

// openFrames opens the packet socket with a filter, and makes the UDP socket receive
// nothing.
func (s *sockets) openFrames(index int, protocol uint16, filter []bpf.Instruction) error {
	raw, err := s.udp.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = attach(int(fd), noPackets) })
	if err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	// Protocol 0 receives nothing until the filter is attached.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	s.frames = os.NewFile(uintptr(fd), "dhcp")
	if err := attach(fd, filter); err != nil {
		return err
	}
	address := &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: index}
	if err := unix.Bind(fd, address); err != nil {
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

// read blocks until a packet arrives, and returns its length and source address. The
// length is 0 for a packet that was not sent to this host.
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

// payload4 returns the UDP payload of an IPv4 packet. It is not ok if the packet is
// malformed. It ignores checksums: a packet from a guest on this host may lack them.
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

// payload6 returns the UDP payload of an IPv6 packet and its source address. It is not ok
// if the packet is malformed.
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

// send sends a reply. The zone of a link-local address is the interface that the socket is
// bound to.
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
