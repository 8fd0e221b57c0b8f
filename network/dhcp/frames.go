package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/insomniacslk/dhcp/dhcpv6/server6"
)

// A DHCPv6 client names itself by an identifier that clones of a guest share, so
// it is known by the Ethernet address its frames come from. A UDP socket does not
// tell that address; a packet socket does. Requests are read from the one,
// answers sent through the other, which also holds the port.

const (
	headerIPv6 = 40
	headerUDP  = 8
	// ipv6NextHeader, ipv6Destination and the like are offsets in a packet
	// (RFC 8200, section 3; RFC 768).
	ipv6NextHeader  = 6
	ipv6Source      = 8
	udpDestination  = headerIPv6 + 2
	udpLength       = headerIPv6 + 4
	maxDHCPv6Packet = 2048
)

// A sender is who sent a DHCPv6 request.
type sender struct {
	mac [6]byte
	ip  netip.Addr
}

// requests6 accepts, of IPv6 packets without extension headers, those to the
// port of DHCPv6 servers.
var requests6 = []bpf.Instruction{
	bpf.LoadAbsolute{Off: ipv6NextHeader, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
	bpf.LoadAbsolute{Off: udpDestination, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: dhcpv6.DefaultServerPort, SkipTrue: 1},
	bpf.RetConstant{Val: maxDHCPv6Packet},
	bpf.RetConstant{Val: 0},
}

// nothing6 accepts no packet.
var nothing6 = []bpf.Instruction{bpf.RetConstant{Val: 0}}

// sockets6 are the sockets of the DHCPv6 side.
type sockets6 struct {
	frames *os.File     // of kind SOCK_DGRAM: packets from the IPv6 header on
	udp    *net.UDPConn // answers
}

func listen6(name string, index int) (*sockets6, error) {
	udp, err := server6.NewIPv6UDPConn(name, &net.UDPAddr{IP: net.IPv6unspecified, Port: dhcpv6.DefaultServerPort})
	if err != nil {
		return nil, err
	}
	s := &sockets6{udp: udp}
	if err := s.prepare(index); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to DHCPv6 on %s: %w", name, err), s.Close())
	}
	return s, nil
}

// prepare joins the group that clients send to (RFC 8415, section 7.1) and opens
// the packet socket.
func (s *sockets6) prepare(index int) error {
	p := ipv6.NewPacketConn(s.udp)
	if err := p.JoinGroup(&net.Interface{Index: index}, &net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers}); err != nil {
		return fmt.Errorf("join the group of DHCPv6 servers: %w", err)
	}
	none, err := bpf.Assemble(nothing6)
	if err != nil {
		return err
	}
	if err := p.SetBPF(none); err != nil {
		return fmt.Errorf("close the ear of the UDP socket: %w", err)
	}
	// Protocol 0 until the filter is there: nothing comes in before.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	s.frames = os.NewFile(uintptr(fd), "dhcpv6")
	if err := attach(fd, requests6); err != nil {
		return err
	}
	address := &unix.SockaddrLinklayer{Protocol: hostToNetwork(unix.ETH_P_IPV6), Ifindex: index}
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
		return fmt.Errorf("attach a filter to a packet socket: %w", err)
	}
	return nil
}

func hostToNetwork(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// read reads one packet; it blocks. The sender's address has only its MAC.
func (s *sockets6) read(b []byte) (int, sender, error) {
	raw, err := s.frames.SyscallConn()
	if err != nil {
		return 0, sender{}, err
	}
	var n int
	var from unix.Sockaddr
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, from, failed = unix.Recvfrom(int(fd), b, 0)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, sender{}, err
	}
	ll, ok := from.(*unix.SockaddrLinklayer)
	if !ok || ll.Halen != 6 {
		return 0, sender{}, nil
	}
	return n, sender{mac: [6]byte(ll.Addr[:6])}, nil
}

// payload6 returns what is in an IPv6 packet with UDP in it, and from which
// address and port it is; not ok if the packet is malformed. Its checksum is not
// looked at: that of a packet from a guest of this host may not be filled in.
func payload6(packet []byte) (payload []byte, source netip.AddrPort, ok bool) {
	if len(packet) < headerIPv6+headerUDP || packet[0]>>4 != 6 || packet[ipv6NextHeader] != unix.IPPROTO_UDP {
		return nil, netip.AddrPort{}, false
	}
	length := int(binary.BigEndian.Uint16(packet[udpLength:]))
	if length < headerUDP || headerIPv6+length > len(packet) {
		return nil, netip.AddrPort{}, false
	}
	ip := netip.AddrFrom16([16]byte(packet[ipv6Source : ipv6Source+16]))
	port := binary.BigEndian.Uint16(packet[headerIPv6:])
	return packet[headerIPv6+headerUDP : headerIPv6+length], netip.AddrPortFrom(ip, port), true
}

// send sends an answer to a link-local address; the zone is the interface that
// the socket is bound to.
func (s *sockets6) send(b []byte, to netip.Addr) error {
	_, err := s.udp.WriteToUDPAddrPort(b, netip.AddrPortFrom(to.WithZone(""), dhcpv6.DefaultClientPort))
	return err
}

// Close closes both sockets.
func (s *sockets6) Close() error {
	var err error
	if s.frames != nil {
		err = s.frames.Close()
	}
	return errors.Join(err, s.udp.Close())
}
