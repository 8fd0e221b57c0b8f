package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoSocket means that no process of this host has a socket.
var ErrNoSocket = errors.New("no such socket")

// A Socket is a TCP socket of this host.
type Socket struct {
	UID   int // of the process that made it
	inode uint32
}

// Offsets in struct inet_diag_req_v2, and the size of that (linux/inet_diag.h).
const (
	requestStates    = 4
	requestPorts     = 8 // source and destination port, then the addresses
	requestInterface = 44
	requestSize      = 56
)

// Offsets in struct inet_diag_msg, and the size of that.
const (
	diagPort    = 4
	diagAddress = 8
	diagBound   = 40
	diagUID     = 64
	diagInode   = 68
	diagSize    = 72

	attrV6Only = 11 // INET_DIAG_SKV6ONLY
)

// diagRequest returns a request of sock_diag(7) for the sockets of a family and a protocol
// in some states, as bits.
func diagRequest(family, protocol byte, states uint32) []byte {
	r := make([]byte, requestSize)
	r[0], r[1] = family, protocol
	binary.NativeEndian.PutUint32(r[requestStates:], states)
	return r
}

// FindSocket returns the TCP socket of this host that is bound to local and connected
// to peer. It fails with [ErrNoSocket] if there is none, as for a connection from
// another host.
func FindSocket(local, peer netip.AddrPort) (Socket, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return Socket{}, fmt.Errorf("find a socket: %w", err)
	}
	defer c.Close()
	family := byte(unix.AF_INET6)
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	r := diagRequest(family, unix.IPPROTO_TCP, ^uint32(0)) // in every state
	binary.BigEndian.PutUint16(r[requestPorts:], local.Port())
	binary.BigEndian.PutUint16(r[requestPorts+2:], peer.Port())
	copy(r[requestPorts+4:], local.Addr().AsSlice())
	copy(r[requestPorts+20:], peer.Addr().AsSlice())
	binary.NativeEndian.PutUint64(r[requestInterface+4:], ^uint64(0)) // no cookie
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request},
		Data:   r,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return Socket{}, ErrNoSocket
	case err != nil:
		return Socket{}, fmt.Errorf("find a socket: %w", err)
	case len(answers) == 0 || len(answers[0].Data) < diagSize:
		return Socket{}, ErrNoSocket
	}
	m := answers[0].Data
	return Socket{
		UID:   int(binary.NativeEndian.Uint32(m[diagUID:])),
		inode: binary.NativeEndian.Uint32(m[diagInode:]),
	}, nil
}

// MayBeOf reports whether the socket belongs to a process that was started as one of
// these programs, given by absolute path. If its process may not be examined, MayBeOf
// reports whether any process of the same user is one of the programs.
func (s Socket) MayBeOf(programs ...string) bool {
	hidden := false
	for _, pid := range ProcessesOf(s.UID) {
		arguments := Arguments(pid)
		ours := len(arguments) > 0 && slices.Contains(programs, arguments[0])
		files, err := OpenFiles(pid)
		switch {
		case slices.ContainsFunc(files, s.is):
			return ours
		case errors.Is(err, fs.ErrPermission):
			hidden = hidden || ours
		}
	}
	return hidden
}

// is reports whether a file of [OpenFiles] is the socket.
func (s Socket) is(target string) bool {
	inode, ok := SocketInode(target)
	return ok && inode == s.inode
}

// A Listening is a socket of the host that waits for connections or datagrams.
type Listening struct {
	Address   netip.Addr // unspecified for all addresses
	Both      bool       // Address is IPv6, and the socket receives IPv4 too
	Port      int
	Interface int    // index of the interface that the socket is bound to; 0 for all
	Inode     uint32 // see [SocketInode]
}

// States of sockets (include/net/tcp_states.h), as bits: TCP sockets that listen, and UDP
// sockets without a peer.
const (
	stateUnconnected = 1 << 7
	stateListen      = 1 << 10
)

// OpenSocketDiag opens a connection for [ListeningTCP] and [ListeningUDP], in the network
// namespace of the calling thread. The caller must close it.
func OpenSocketDiag() (*netlink.Conn, error) { return netlink.Dial(unix.NETLINK_SOCK_DIAG, nil) }

// ListeningTCP returns the TCP sockets of the host that listen. The kernel leaves out
// connections, of which there may be many.
func ListeningTCP(c *netlink.Conn) ([]Listening, error) {
	return listening(c, unix.IPPROTO_TCP, stateListen)
}

// ListeningUDP returns the UDP sockets of the host without a peer.
func ListeningUDP(c *netlink.Conn) ([]Listening, error) {
	return listening(c, unix.IPPROTO_UDP, stateUnconnected)
}

func listening(c *netlink.Conn, protocol byte, states uint32) ([]Listening, error) {
	var all []Listening
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		replies, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
			Data:   diagRequest(family, protocol, states),
		})
		if err != nil {
			return nil, fmt.Errorf("list the listening sockets: %w", err)
		}
		for _, r := range replies {
			if l, ok := parseListening(r.Data); ok {
				all = append(all, l)
			}
		}
	}
	return all, nil
}

// parseListening returns the socket of a reply.
func parseListening(b []byte) (l Listening, ok bool) {
	if len(b) < diagSize {
		return l, false
	}
	l.Port = int(binary.BigEndian.Uint16(b[diagPort:]))
	l.Interface = int(binary.NativeEndian.Uint32(b[diagBound:]))
	l.Inode = binary.NativeEndian.Uint32(b[diagInode:])
	if b[0] == unix.AF_INET {
		l.Address = netip.AddrFrom4([4]byte(b[diagAddress:]))
		return l, true
	}
	l.Address = netip.AddrFrom16([16]byte(b[diagAddress:])).Unmap()
	l.Both = l.Address.Is6() && l.Address.IsUnspecified()
	attrs, err := netlink.UnmarshalAttributes(b[diagSize:])
	for _, at := range attrs {
		if at.Type == attrV6Only && len(at.Data) == 1 && at.Data[0] == 1 {
			l.Both = false
		}
	}
	return l, err == nil
}
