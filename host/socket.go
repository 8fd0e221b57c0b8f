package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

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

// Layout of struct inet_diag_req_v2 and struct inet_diag_msg (linux/inet_diag.h).
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56
	diagPorts        = 8 // source and destination port, then the addresses
	diagInterface    = 44
	diagMessageSize  = 72
	diagUID          = 64
	diagInode        = 68
)

// FindSocket returns the TCP socket of this host that is bound to local and connected
// to peer. It fails with [ErrNoSocket] if there is none, as for a connection from
// another host.
func FindSocket(local, peer netip.AddrPort) (Socket, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return Socket{}, fmt.Errorf("find a socket: %w", err)
	}
	defer c.Close()
	family := unix.AF_INET6
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	r := make([]byte, diagRequestSize)
	r[0], r[1] = byte(family), unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(r[4:], ^uint32(0)) // every state
	binary.BigEndian.PutUint16(r[diagPorts:], local.Port())
	binary.BigEndian.PutUint16(r[diagPorts+2:], peer.Port())
	copy(r[diagPorts+4:], local.Addr().AsSlice())
	copy(r[diagPorts+20:], peer.Addr().AsSlice())
	binary.NativeEndian.PutUint64(r[diagInterface+4:], ^uint64(0)) // no cookie
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request},
		Data:   r,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return Socket{}, ErrNoSocket
	case err != nil:
		return Socket{}, fmt.Errorf("find a socket: %w", err)
	case len(answers) == 0 || len(answers[0].Data) < diagMessageSize:
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
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return true
	}
	hidden := false
	for _, dir := range dirs {
		if uidOf(dir) != s.UID {
			continue
		}
		ours := slices.Contains(programs, programOf(dir))
		holds, err := s.heldBy(dir)
		switch {
		case holds:
			return ours
		case errors.Is(err, fs.ErrPermission):
			hidden = hidden || ours
		}
	}
	return hidden
}

// heldBy reports whether a process, given by its directory in /proc, has a descriptor
// of the socket.
func (s Socket) heldBy(dir string) (bool, error) {
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return false, err
	}
	name := "socket:[" + strconv.FormatUint(uint64(s.inode), 10) + "]"
	for _, fd := range fds {
		if link, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil && link == name {
			return true, nil
		}
	}
	return false, nil
}

// uidOf returns the user of a process, given by its directory in /proc, or -1. root
// owns the directory of a process that may not be examined (PR_SET_DUMPABLE).
func uidOf(dir string) int {
	st, err := os.Stat(dir)
	if err != nil {
		return -1
	}
	if uid := int(st.Sys().(*syscall.Stat_t).Uid); uid != 0 {
		return uid
	}
	status, _ := os.ReadFile(dir + "/status")
	_, rest, _ := strings.Cut(string(status), "\nUid:\t")
	first, _, _ := strings.Cut(rest, "\t")
	uid, err := strconv.Atoi(first)
	if err != nil {
		return -1
	}
	return uid
}

// programOf returns the first argument of a process, given by its directory in /proc.
func programOf(dir string) string {
	args, _ := os.ReadFile(dir + "/cmdline") // none of a process that has ended
	program, _, _ := bytes.Cut(args, []byte{0})
	return string(program)
}
