package network

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"

	"github.com/mdlayher/netlink"

	"vmand/host"
	"vmand/vm"
)

// A listener is a socket of the host that waits for connections or datagrams.
type listener struct {
	host.Listening
	protocol vm.Protocol
}

// takes reports whether a port forward takes connections that the listener would get.
func (l listener) takes(f vm.PortForward) bool {
	return l.protocol == f.Protocol && f.HostPort <= l.Port && l.Port < f.HostPort+f.Count() &&
		(l.Both || l.Address.Is4() == f.HostAddress.Is4()) &&
		(f.HostAddress.IsUnspecified() || l.Address.IsUnspecified() || l.Address == f.HostAddress)
}

// readListeners returns the listening sockets of the host.
func readListeners(conn *netlink.Conn) ([]listener, error) {
	var all []listener
	for protocol, list := range map[vm.Protocol]func(*netlink.Conn) ([]host.Listening, error){
		vm.TCP: host.ListeningTCP,
		vm.UDP: host.ListeningUDP,
	} {
		sockets, err := list(conn)
		if err != nil {
			return nil, err
		}
		for _, s := range sockets {
			all = append(all, listener{s, protocol})
		}
	}
	return all, nil
}

// programs finds the programs of sockets. It is not safe for concurrent use.
type programs struct{ byInode map[uint32]string }

// of returns the programs of listening sockets, by inode, in words. A socket has none if /proc
// does not show it. A search of /proc is necessary only for new sockets.
func (p *programs) of(sockets []listener) map[uint32]string {
	wanted := map[uint32]bool{}
	missing := false
	for _, l := range sockets {
		wanted[l.Inode] = true
		_, known := p.byInode[l.Inode]
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
	for _, pid := range host.Processes() {
		files, _ := host.OpenFiles(pid)
		for _, file := range files {
			if inode, ok := host.SocketInode(file); ok && wanted[inode] {
				p.byInode[inode] = programOf(pid)
			}
		}
	}
	return p.byInode
}

// programOf returns the program of a process, in words.
func programOf(pid int) string {
	if pid == os.Getpid() {
		return "vmand itself"
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(name)), pid)
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
			return l, n.programs.of([]listener{l})[l.Inode], true
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
		detail := fmt.Sprintf("the forward of %s to VM %s ", t.f.Listens(), t.v.ID)
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
			if l.takes(t.f) && l.Interface == 0 && l.Address != netip.IPv6Loopback() {
				shadowed, by = append(shadowed, l), append(by, t)
				break
			}
		}
	}
	names := n.programs.of(shadowed)
	for i, l := range shadowed {
		program := names[l.Inode]
		if program == "" {
			program = "a program of the host"
		}
		problem(by[i], "make the program listen on another port, or DELETE /vms/%s/port_forwards/%s",
			"takes the connections of %s, which listens on %s", program, netip.AddrPortFrom(l.Address, uint16(l.Port)))
	}
	return found
}
