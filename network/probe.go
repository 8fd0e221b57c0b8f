package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

const (
	// probePatience is the longest wait for a guest's answer.
	probePatience = time.Second
	// forwardPatience is how long a connection through a user-mode network must last to
	// count as answered: the connection is accepted before the guest is asked, and closed
	// if the guest refuses.
	forwardPatience = 300 * time.Millisecond
)

// CheckHostPorts implements [vm.HostNetwork]. A forward of a network of mode nat does not
// listen: it conflicts with no listener, but takes the packets to its ports.
func (n *Networks) CheckHostPorts(ctx context.Context, f vm.PortForward) error {
	if err := n.checkHostAddress(f.HostAddress); err != nil {
		return err
	}
	for one := range f.Each() {
		if err := n.checkHostPort(ctx, one); err != nil {
			return err
		}
	}
	return nil
}

// checkHostPort returns a fault if f, which is for one port, cannot listen.
func (n *Networks) checkHostPort(ctx context.Context, f vm.PortForward) error {
	address := netip.AddrPortFrom(f.HostAddress, uint16(f.HostPort)).String()
	err := tryListen(ctx, f.Protocol, address)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		return n.portInUse(f, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return notOfHost(f.HostAddress, err)
	case errors.Is(err, os.ErrPermission):
		return &vm.Fault{
			Code:   vm.CodeInvalid,
			Detail: fmt.Sprintf("vmand may not listen on port %d", f.HostPort),
			Err:    err,
			Hint:   "choose a port from 1024 on, or lower net.ipv4.ip_unprivileged_port_start",
			Fields: []vm.FieldFault{{Field: "/host_port", Detail: "is a port that only root may listen on"}},
		}
	}
	return unavailable(err, "listen on %s", address)
}

// checkHostAddress returns a fault if a port cannot be forwarded on an address: the kernel lets
// programs listen on broadcast addresses, too.
func (n *Networks) checkHostAddress(a netip.Addr) error {
	if a.IsUnspecified() || a.IsLoopback() || n.links == nil {
		return nil
	}
	addrs, err := n.links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return unavailable(err, "list the host's addresses")
	}
	broadcast := false
	for _, has := range addrs {
		p := addressOf(has)
		if p.Addr() == a {
			return nil
		}
		broadcast = broadcast || has.Broadcast.Equal(a.AsSlice()) ||
			a.Is4() && p.Bits() < 31 && p.Masked().Addr() == a
	}
	nonlocal := "ipv4/ip_nonlocal_bind"
	if a.Is6() {
		nonlocal = "ipv6/ip_nonlocal_bind"
	}
	if other, err := getSysctl(nonlocal); err == nil && other == "1" && !broadcast {
		return nil // an address that moves between hosts
	}
	return notOfHost(a, nil)
}

func notOfHost(a netip.Addr, err error) error {
	return &vm.Fault{
		Code:   vm.CodeInvalid,
		Detail: fmt.Sprintf("the host has no address %s", a),
		Err:    err,
		Fields: []vm.FieldFault{{Field: "/host_address", Detail: "must be an address of the host, 0.0.0.0 or ::"}},
	}
}

// portInUse returns the fault of a port that a program listens on.
func (n *Networks) portInUse(f vm.PortForward, err error) error {
	n.mu.Lock()
	l, program, found := n.listener(f)
	n.mu.Unlock()
	fault := &vm.Fault{Code: vm.CodeInUse, Hint: "choose another host port", Err: err}
	switch {
	case !found || program == "":
		program = "a program of the host"
	case program == "vmand itself" && l.Interface != 0:
		program = "vmand itself, which serves DHCP and DNS to guests"
		if l.Port == 53 {
			fault.Hint = "forward the port on one address of the host with host_address, or choose another host port"
		}
	}
	fault.Detail = fmt.Sprintf("%s port %d is in use by %s", f.Protocol, f.HostPort, program)
	return fault
}

// tryListen listens on an address and stops at once. It listens for the family of the address
// only.
func tryListen(ctx context.Context, protocol vm.Protocol, address string) error {
	var c net.ListenConfig
	family := "4"
	if strings.HasPrefix(address, "[") {
		family = "6"
	}
	if protocol == vm.UDP {
		l, err := c.ListenPacket(ctx, "udp"+family, address)
		if err == nil {
			l.Close()
		}
		return err
	}
	l, err := c.Listen(ctx, "tcp"+family, address)
	if err == nil {
		l.Close()
	}
	return err
}

// Probe implements [vm.HostNetwork].
func (n *Networks) Probe(ctx context.Context, v vm.VM, port int) error {
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	for _, nic := range v.NICs {
		if nic.Mode != vm.NetworkUser {
			continue
		}
		for _, f := range v.Forwards {
			if i := port - f.GuestPort; f.Slot == nic.Slot && f.Protocol == vm.TCP && 0 <= i && i < f.Count() {
				return probeForward(ctx, f.HostAddress, f.HostPort+i, port)
			}
		}
	}
	ip, _ := v.LocalIP()
	if !v.ReachableFromHost() {
		return &vm.Fault{
			Code:   vm.CodeInvalid,
			Detail: fmt.Sprintf("port %d of VM %s cannot be reached from the host", port, v.ID),
			Hint:   "forward a port of the host to it",
		}
	}
	if !ip.IsValid() {
		return unavailable(nil, "no address of VM %s is known yet", v.ID)
	}
	c, err := dial(ctx, netip.AddrPortFrom(ip, uint16(port)))
	if err != nil {
		return err
	}
	return c.Close()
}

func dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, unavailable(err, "nothing answers on port %s", strconv.Itoa(int(to.Port())))
	}
	return c, nil
}

// probeForward probes a port of a guest through a forward of a user-mode network.
func probeForward(ctx context.Context, host netip.Addr, hostPort, port int) error {
	if !host.IsValid() || host.IsUnspecified() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	c, err := dial(ctx, netip.AddrPortFrom(host, uint16(hostPort)))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(forwardPatience)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return unavailable(err, "nothing answers on port %d of the guest", port)
	}
	return nil
}
