package network

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// A listener is a socket of the host that waits for connections or datagrams.
type listener struct {
	protocol vm.Protocol
	address  netip.Addr // IPv4; unspecified for all addresses
	port     int
	bound    int    // index of the interface that the socket is bound to; 0 for all
	inode    uint32 // identifies the socket in /proc
}

// takes reports whether a port forward takes connections that the listener would get.
func (l listener) takes(f vm.PortForward) bool {
	return l.protocol == f.Protocol && f.HostPort == l.port &&
		(f.HostAddress.IsUnspecified() || l.address.IsUnspecified() || l.address == f.HostAddress)
}

// States of sockets (include/net/tcp_states.h), as bits: TCP sockets that listen, and UDP
// sockets without a peer.
const (
	stateUnconnected = 1 << 7
	stateListen      = 1 << 10
)

// Offsets in struct inet_diag_msg (linux/inet_diag.h).
const (
	diagPort    = 4
	diagAddress = 8
	diagBound   = 40
	diagInode   = 68
	diagLength  = 72

	attrV6Only = 11 // INET_DIAG_SKV6ONLY
)

// readListeners returns the listening sockets of the host, by sock_diag(7): the kernel leaves
// out connections, of which there may be many.
func readListeners(conn *netlink.Conn) ([]listener, error) {
	var all []listener
	for protocol, kind := range map[vm.Protocol]struct {
		number byte
		states uint32
	}{
		vm.TCP: {unix.IPPROTO_TCP, stateListen},
		vm.UDP: {unix.IPPROTO_UDP, stateUnconnected},
	} {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			request := make([]byte, 56) // struct inet_diag_req_v2
			request[0], request[1] = family, kind.number
			binary.NativeEndian.PutUint32(request[4:], kind.states)
			replies, err := conn.Execute(netlink.Message{
				Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump},
				Data:   request,
			})
			if err != nil {
				return nil, fmt.Errorf("list the listening sockets: %w", err)
			}
			for _, r := range replies {
				if l, ok := parseListener(r.Data); ok {
					l.protocol = protocol
					all = append(all, l)
				}
			}
		}
	}
	return all, nil
}

// parseListener returns the socket of a reply. It is not ok if the socket receives no IPv4.
func parseListener(b []byte) (l listener, ok bool) {
	if len(b) < diagLength {
		return l, false
	}
	l.port = int(binary.BigEndian.Uint16(b[diagPort:]))
	l.bound = int(binary.NativeEndian.Uint32(b[diagBound:]))
	l.inode = binary.NativeEndian.Uint32(b[diagInode:])
	if b[0] == unix.AF_INET {
		l.address = netip.AddrFrom4([4]byte(b[diagAddress:]))
		return l, true
	}
	six := netip.AddrFrom16([16]byte(b[diagAddress:]))
	switch {
	case six.Is4In6():
		l.address = six.Unmap()
		return l, true
	case !six.IsUnspecified():
		return l, false
	}
	l.address = netip.IPv4Unspecified()
	attrs, err := netlink.UnmarshalAttributes(b[diagLength:])
	for _, at := range attrs {
		if at.Type == attrV6Only && len(at.Data) == 1 && at.Data[0] == 1 {
			return l, false
		}
	}
	return l, err == nil
}

// programs finds the programs of sockets. It is not safe for concurrent use.
type programs struct{ byInode map[uint32]string }

// of returns the programs of listening sockets, by inode, in words. A socket has none if /proc
// does not show it. A search of /proc is necessary only for new sockets.
func (p *programs) of(sockets []listener) map[uint32]string {
	wanted := map[uint32]bool{}
	missing := false
	for _, l := range sockets {
		wanted[l.inode] = true
		_, known := p.byInode[l.inode]
		missing = missing || !known
	}
	maps.DeleteFunc(p.byInode, func(inode uint32, _ string) bool { return !wanted[inode] })
	if !missing {
		return p.byInode
	}
	p.byInode = map[uint32]string{}
	for inode := range wanted {
		p.byInode[inode] = ""
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, file := range files {
		target, err := os.Readlink(file)
		number, isSocket := strings.CutPrefix(target, "socket:[")
		if err != nil || !isSocket {
			continue
		}
		inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32)
		if err == nil && wanted[uint32(inode)] {
			p.byInode[uint32(inode)] = programOf(filepath.Dir(filepath.Dir(file)))
		}
	}
	return p.byInode
}

// programOf returns the program of a directory in /proc, in words.
func programOf(dir string) string {
	pid := filepath.Base(dir)
	if pid == strconv.Itoa(os.Getpid()) {
		return "vmand itself"
	}
	name, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid)
}

// listener returns a listening socket that f would take connections from, and its program in
// words. It is not ok if there is none, or none can be seen. It must be called with mu held.
func (n *Networks) listener(f vm.PortForward) (l listener, program string, ok bool) {
	if n.sockets == nil {
		return l, "", false
	}
	all, err := readListeners(n.sockets)
	if err != nil {
		return l, "", false
	}
	for _, l := range all {
		if l.takes(f) {
			return l, n.programs.of([]listener{l})[l.inode], true
		}
	}
	return l, "", false
}

// forwardProblems returns the forwards that take the connections of a program of the host,
// and those of an address that the host does not have. It must be called with mu held.
func (n *Networks) forwardProblems(vms []vm.VM) (found []vm.NetworkProblem) {
	type taken struct {
		v vm.VM
		f vm.PortForward
	}
	var forwards []taken
	for _, v := range vms {
		for _, f := range v.Forwards {
			if nic, err := v.NIC(f.Slot); err == nil && nic.Mode == vm.NetworkNAT {
				forwards = append(forwards, taken{v, f})
			}
		}
	}
	if len(forwards) == 0 {
		return nil
	}
	local, err := n.localAddresses()
	if err != nil {
		return nil // the pass has reported it
	}
	problem := func(t taken, fix, format string, args ...any) {
		detail := fmt.Sprintf("the forward of %s port %d on %s to VM %s ", t.f.Protocol, t.f.HostPort, t.f.HostAddress, t.v.ID)
		found = append(found, vm.NetworkProblem{
			Kind:     vm.ProblemForward,
			Resource: vm.VMResource(t.v.ID),
			Detail:   detail + fmt.Sprintf(format, args...),
			Fix:      fmt.Sprintf(fix, t.v.ID, t.f.ID),
		})
	}
	var sockets []listener
	if n.sockets != nil {
		sockets, _ = readListeners(n.sockets)
	}
	var shadowed []listener
	var by []taken
	for _, t := range forwards {
		if a := t.f.HostAddress; !a.IsUnspecified() && !a.IsLoopback() && !local[a] {
			problem(t, "add the address to the host, or DELETE /vms/%s/port_forwards/%s",
				"gets nothing: the host has no address %s", a)
		}
		for _, l := range sockets {
			if l.takes(t.f) && l.bound == 0 {
				shadowed, by = append(shadowed, l), append(by, t)
				break
			}
		}
	}
	names := n.programs.of(shadowed)
	for i, l := range shadowed {
		program := names[l.inode]
		if program == "" {
			program = "a program of the host"
		}
		problem(by[i], "make the program listen on another port, or DELETE /vms/%s/port_forwards/%s",
			"takes the connections of %s, which listens on %s", program, netip.AddrPortFrom(l.address, uint16(l.port)))
	}
	return found
}
