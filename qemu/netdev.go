package qemu

import (
	"fmt"
	"net/netip"

	"vmand/vm"
)

// portFDs name the descriptors of a port in QEMU: by their number for what is
// there from the start, by the word they were passed under for what is plugged
// later.
type portFDs struct {
	file, vhost string
}

// netdev is the argument of -netdev and of netdev_add: the host's half of a NIC.
type netdev struct {
	Type string `json:"type"`
	ID   string `json:"id"`

	// Of type tap or socket:
	FD      string `json:"fd,omitempty"`
	VHostFD string `json:"vhostfd,omitempty"`
	VHost   bool   `json:"vhost,omitempty"`

	// Of type user:
	Net        string    `json:"net,omitempty"`
	Host       string    `json:"host,omitempty"`
	DNS        string    `json:"dns,omitempty"`
	DHCPStart  string    `json:"dhcpstart,omitempty"`
	DomainName string    `json:"domainname,omitempty"`
	Restrict   bool      `json:"restrict,omitempty"`
	IPv6       *bool     `json:"ipv6,omitempty"`
	HostFwd    []strItem `json:"hostfwd,omitempty"`
}

type strItem struct {
	Str string `json:"str"`
}

// nicPair returns the two halves of a NIC. It sits alone on its root port,
// always at 0x0: a device anywhere else on a port is never seen by the guest.
// Without an option ROM nothing can boot from the network.
func nicPair(p vm.Port, fds portFDs) (netdev, device, error) {
	if p.Slot < 0 || p.Slot >= vm.MaxNICs {
		return netdev{}, device{}, fault(vm.CodeInvalid, nil, "a vm has no NIC slot %d", p.Slot)
	}
	noROM := ""
	card := device{ID: nicDevice(p.Slot), Bus: rootPort(p.Slot), Addr: pciAddr(0, 0), Netdev: nicNetdev(p.Slot), MAC: p.MAC, ROMFile: &noROM}
	switch p.Model {
	case vm.NICVirtio:
		card.Driver, card.HostMTU = "virtio-net-pci", p.MTU
	case vm.NICE1000e:
		card.Driver = "e1000e"
	default:
		return netdev{}, device{}, fault(vm.CodeInvalid, nil, "nic %d: model %q is not known", p.Slot, p.Model)
	}
	host, err := hostHalf(p, fds)
	return host, card, err
}

// netdevTypes are QEMU's words for the kinds of ports. What type "socket" says on
// a stream is what type "stream" says; but the latter looks for a passed file in
// a thread that knows of none (net/stream.c in QEMU 7.2), so a NIC that is
// plugged with it succeeds and is connected to nothing.
var netdevTypes = map[vm.PortKind]string{vm.PortTap: "tap", vm.PortStream: "socket", vm.PortUser: "user"}

func hostHalf(p vm.Port, fds portFDs) (netdev, error) {
	n := netdev{Type: netdevTypes[p.Kind], ID: nicNetdev(p.Slot)}
	if p.Kind != vm.PortUser && fds.file == "" {
		return netdev{}, fault(vm.CodeInvalid, nil, "nic %d: a port of kind %q has no file", p.Slot, p.Kind)
	}
	switch p.Kind {
	case vm.PortTap:
		n.FD, n.VHostFD, n.VHost = fds.file, fds.vhost, fds.vhost != ""
	case vm.PortStream:
		n.FD = fds.file
	case vm.PortUser:
		for _, a := range []netip.Addr{p.Subnet.Addr(), p.Gateway, p.IP} {
			if !a.Is4() {
				return netdev{}, fault(vm.CodeInvalid, nil, "nic %d: a user-mode network needs a subnet, a gateway and an address", p.Slot)
			}
		}
		n.Net, n.Host, n.DHCPStart, n.DNS = p.Subnet.String(), p.Gateway.String(), p.IP.String(), userDNS(p).String()
		n.DomainName, n.Restrict, n.IPv6 = p.Domain, p.Restrict, new(bool)
		for _, f := range p.Forwards {
			rule, err := forwardRule(f)
			if err != nil {
				return netdev{}, err
			}
			n.HostFwd = append(n.HostFwd, strItem{rule})
		}
	default:
		return netdev{}, fault(vm.CodeInvalid, nil, "nic %d: port kind %q is not known", p.Slot, p.Kind)
	}
	return n, nil
}

// userDNS returns where a user-mode network answers for the host's resolver: the
// third address of the subnet, as QEMU's own choice is, or the next one that
// neither the gateway nor the guest has, or QEMU would refuse it.
func userDNS(p vm.Port) netip.Addr {
	a := p.Subnet.Masked().Addr().Next().Next().Next()
	for a == p.Gateway || a == p.IP {
		a = a.Next()
	}
	return a
}

// forwardSource says what a forward listens on, in QEMU's words. It is made of
// what has no room for anything else: a word of two, an address and numbers.
func forwardSource(f vm.PortForward) (string, error) {
	const maxPort = 1<<16 - 1
	known := f.Protocol == vm.TCP || f.Protocol == vm.UDP
	if !known || !f.HostAddress.Is4() || min(f.HostPort, f.GuestPort) < 1 || max(f.HostPort, f.GuestPort) > maxPort {
		return "", fault(vm.CodeInvalid, nil, "port forward %s cannot be: %q %v:%d to port %d", f.ID, f.Protocol, f.HostAddress, f.HostPort, f.GuestPort)
	}
	return fmt.Sprintf("%s:%s:%d", f.Protocol, f.HostAddress, f.HostPort), nil
}

// forwardRule says a forward in QEMU's words. With no address of the guest, it
// is the one that DHCP gives.
func forwardRule(f vm.PortForward) (string, error) {
	source, err := forwardSource(f)
	return fmt.Sprintf("%s-:%d", source, f.GuestPort), err
}
