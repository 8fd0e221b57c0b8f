package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in packets (RFC 791, section 3.1; RFC 8200, section 3; RFC 768).
const (
	headerIPv4         = 20
	headerIPv6         = 40
	headerUDP          = 8
	ipv4TotalLength    = 2
	ipv4FragmentOffset = 6 // with the flag for more fragments
	ipv4Protocol       = 9
	ipv4Source         = 12
	ipv4Destination    = 16
	ipv6NextHeader     = 6
	ipv6Source         = 8
	ipv6Destination    = 24
	udpDestination     = 2
	udpLength          = 4

	fragmentMask = 0x3fff
)

// MaxPacket is the size in bytes of the longest packet that [Frames] receives.
const MaxPacket = 4096

// Filter4 returns a filter for unfragmented IPv4 packets to a UDP port.
func Filter4(port uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: ipv4Protocol, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
		bpf.LoadAbsolute{Off: ipv4FragmentOffset, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: fragmentMask, SkipTrue: 4},
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: udpDestination, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: port, SkipTrue: 1},
		bpf.RetConstant{Val: MaxPacket},
		bpf.RetConstant{Val: 0},
	}
}

// Filter6 returns a filter for IPv6 packets without extension headers to a UDP port.
func Filter6(port uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: ipv6NextHeader, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
		bpf.LoadAbsolute{Off: headerIPv6 + udpDestination, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: port, SkipTrue: 1},
		bpf.RetConstant{Val: MaxPacket},
		bpf.RetConstant{Val: 0},
	}
}

// FilterNothing is a filter that accepts no packet.
var FilterNothing = []bpf.Instruction{bpf.RetConstant{Val: 0}}

// FilterOthers returns a filter that accepts the packets which did not arrive through an
// interface: those of the host itself.
func FilterOthers(index int) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(index), SkipTrue: 1},
		bpf.RetConstant{Val: 0xffffffff},
		bpf.RetConstant{Val: 0},
	}
}

// Frames receives the packets of an interface before the host's firewall judges them, with
// the Ethernet address of their sender. Read and Close are safe for concurrent use.
type Frames struct{ file *os.File }

// OpenFrames opens the frames of an interface. protocol is unix.ETH_P_IP or unix.ETH_P_IPV6.
// The filter sees packets that begin with the IP header.
func OpenFrames(index int, protocol uint16, filter []bpf.Instruction) (*Frames, error) {
	// Protocol 0 receives nothing until the filter is attached.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	f := &Frames{os.NewFile(uintptr(fd), "frames")}
	if err := attach(fd, filter); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	address := &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: index}
	if err := unix.Bind(fd, address); err != nil {
		return nil, errors.Join(fmt.Errorf("bind a packet socket: %w", err), f.Close())
	}
	return f, nil
}

// SetReadBuffer sets how many bytes the kernel keeps for the reader, best effort. It is not
// limited by the sysctl net.core.rmem_max.
func (f *Frames) SetReadBuffer(size int) {
	raw, err := f.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size)
	})
}

// Attach attaches a filter to a socket.
func Attach(socket syscall.Conn, filter []bpf.Instruction) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = attach(int(fd), filter) })
	return errors.Join(err, failed)
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

// Read blocks until a packet arrives, and returns its length and source address. The
// length is 0 for a packet that was not sent to this host.
func (f *Frames) Read(b []byte) (int, [6]byte, error) {
	raw, err := f.file.SyscallConn()
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

// Close unblocks a reader.
func (f *Frames) Close() error { return f.file.Close() }

// A UDPPacket is a UDP datagram inside an IP packet.
type UDPPacket struct {
	Payload []byte // a part of the packet
	From    netip.AddrPort
	To      netip.Addr
}

// ParseUDP4 returns the datagram of an IPv4 packet. It is not ok if the packet is malformed.
// It ignores checksums: a packet from a guest on this host may lack them.
func ParseUDP4(packet []byte) (u UDPPacket, ok bool) {
	if len(packet) < headerIPv4 || packet[0]>>4 != 4 || packet[ipv4Protocol] != unix.IPPROTO_UDP ||
		binary.BigEndian.Uint16(packet[ipv4FragmentOffset:])&fragmentMask != 0 {
		return u, false
	}
	header, total := 4*int(packet[0]&0xf), int(binary.BigEndian.Uint16(packet[ipv4TotalLength:]))
	if header < headerIPv4 || total > len(packet) || header > total {
		return u, false
	}
	u.To = netip.AddrFrom4([4]byte(packet[ipv4Destination:]))
	return parseUDP(u, packet[header:total], netip.AddrFrom4([4]byte(packet[ipv4Source:])))
}

// ParseUDP6 returns the datagram of an IPv6 packet. It is not ok if the packet is malformed.
func ParseUDP6(packet []byte) (u UDPPacket, ok bool) {
	if len(packet) < headerIPv6 || packet[0]>>4 != 6 || packet[ipv6NextHeader] != unix.IPPROTO_UDP {
		return u, false
	}
	u.To = netip.AddrFrom16([16]byte(packet[ipv6Destination:]))
	return parseUDP(u, packet[headerIPv6:], netip.AddrFrom16([16]byte(packet[ipv6Source:])))
}

func parseUDP(u UDPPacket, b []byte, from netip.Addr) (UDPPacket, bool) {
	if len(b) < headerUDP {
		return u, false
	}
	length := int(binary.BigEndian.Uint16(b[udpLength:]))
	if length < headerUDP || length > len(b) {
		return u, false
	}
	u.From = netip.AddrPortFrom(from, binary.BigEndian.Uint16(b))
	u.Payload = b[headerUDP:length]
	return u, true
}
