package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

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

// CheckHostPort implements [vm.HostNetwork]. A forward of a network of mode nat does not
// listen: it conflicts with no listener, but takes the packets to its port.
func (n *Networks) CheckHostPort(ctx context.Context, f vm.PortForward) error {
	address := netip.AddrPortFrom(f.HostAddress, uint16(f.HostPort)).String()
	err := tryListen(ctx, f.Protocol, address)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		return &vm.Fault{
			Code:   vm.CodeInUse,
			Detail: fmt.Sprintf("%s port %d is in use by a program of the host", f.Protocol, f.HostPort),
			Hint:   "choose another host port",
			Err:    err,
		}
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return &vm.Fault{
			Code:   vm.CodeInvalid,
			Detail: fmt.Sprintf("the host has no address %s", f.HostAddress),
			Err:    err,
			Fields: []vm.FieldFault{{
				Field:  "/host_address",
				Detail: "must be an address of the host, or 0.0.0.0",
			}},
		}
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

// tryListen listens on an address and stops at once.
func tryListen(ctx context.Context, protocol vm.Protocol, address string) error {
	var c net.ListenConfig
	if protocol == vm.UDP {
		l, err := c.ListenPacket(ctx, "udp4", address)
		if err == nil {
			l.Close()
		}
		return err
	}
	l, err := c.Listen(ctx, "tcp4", address)
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
			if f.Slot == nic.Slot && f.Protocol == vm.TCP && f.GuestPort == port {
				return probeForward(ctx, f)
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

// probeForward probes a guest through a forward of a user-mode network.
func probeForward(ctx context.Context, f vm.PortForward) error {
	host := f.HostAddress
	if !host.IsValid() || host.IsUnspecified() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	c, err := dial(ctx, netip.AddrPortFrom(host, uint16(f.HostPort)))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(forwardPatience)); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return unavailable(err, "nothing answers on port %d of the guest", f.GuestPort)
	}
	return nil
}
