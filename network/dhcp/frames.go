package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

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

// sockets holds the two sockets of a protocol on an interface.
type sockets struct {
	frames *guard.Frames // receives
	udp    *net.UDPConn  // sends
}

func listen4(name string) (*sockets, error) {
	udp, err := server4.NewIPv4UDPConn(name, &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort})
	if err != nil {
		return nil, fmt.Errorf("listen for DHCP on %s: %w", name, err)
	}
	s := &sockets{udp: udp}
	index, err := guard.InterfaceIndex(udp, name)
	if err == nil {
		err = s.openFrames(index, unix.ETH_P_IP, guard.Filter4(dhcpv4.ServerPort))
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
		err = s.openFrames(index, unix.ETH_P_IPV6, guard.Filter6(dhcpv6.DefaultServerPort))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for DHCPv6 on %s: %w", name, err), s.Close())
	}
	return s, nil
}

// openFrames opens the packet socket with a filter, and makes the UDP socket receive
// nothing.
func (s *sockets) openFrames(index int, protocol uint16, filter []bpf.Instruction) (err error) {
	if err := guard.Attach(s.udp, guard.FilterNothing); err != nil {
		return err
	}
	s.frames, err = guard.OpenFrames(index, protocol, filter)
	return err
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
