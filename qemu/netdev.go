package qemu

import (
	"fmt"
	"net/netip"

	"vmand/vm"
)

// portFDs name the descriptors of a port in QEMU: by their numbers on the command
// line, by the names that getfd gave them in a hot-plug.
type portFDs struct {
	file, vhost string
}

// netdev is the argument of -netdev and netdev_add: the host's half of a NIC.
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

// strItem is an element of a list of strings in QEMU's schema.
type strItem struct {
	Str string `json:"str"`
}

// nicPair returns both halves of a NIC. The card is alone on its root port, always
// at 0x0: a guest does not see a device elsewhere on a port. The card has no option ROM,
// so a guest cannot boot from it; see deviceArgs for the one that it boots from.
func nicPair(p vm.Port, fds portFDs) (netdev, device, error) {
	if p.Slot < 0 || p.Slot >= vm.MaxNICs {
		return netdev{}, device{}, fault(vm.CodeInvalid, nil, "a VM has no NIC slot %d", p.Slot)
	}
	noROM := ""
	card := device{
		ID:      nicDevice(p.Slot),
		Bus:     rootPort(p.Slot),
		Addr:    pciAddr(0, 0),
		Netdev:  nicNetdev(p.Slot),
		MAC:     p.MAC,
		ROMFile: &noROM,
	}
	switch p.Model {
	case vm.NICVirtio:
		card.Driver, card.HostMTU = "virtio-net-pci", p.MTU
	case vm.NICE1000e:
		card.Driver = "e1000e"
	default:
		return netdev{}, device{}, fault(vm.CodeInvalid, nil, "NIC %d: model %q is not known", p.Slot, p.Model)
	}
	host, err := hostHalf(p, fds)
	return host, card, err
}

// netdevTypes are QEMU's names for the kinds of ports. The types "socket" and
// "stream" have the same format on a stream. But "stream" looks up a passed file in a
// thread without a monitor (net/stream.c in QEMU 7.2), so a hot-plug with it succeeds
// and connects nothing.
var netdevTypes = map[vm.PortKind]string{vm.PortTap: "tap", vm.PortStream: "socket", vm.PortUser: "user"}

// hostHalf returns the host's half of a NIC.
func hostHalf(p vm.Port, fds portFDs) (netdev, error) {
	if p.Kind != vm.PortUser && fds.file == "" {
		return netdev{}, fault(vm.CodeInvalid, nil, "NIC %d: a port of kind %q has no file", p.Slot, p.Kind)
	}
	n := netdev{Type: netdevTypes[p.Kind], ID: nicNetdev(p.Slot)}
	switch p.Kind {
	case vm.PortTap:
		n.FD, n.VHostFD, n.VHost = fds.file, fds.vhost, fds.vhost != ""
		return n, nil
	case vm.PortStream:
		n.FD = fds.file
		return n, nil
	case vm.PortUser:
		return userNetdev(n, p)
	}
	return netdev{}, fault(vm.CodeInvalid, nil, "NIC %d: port kind %q is not known", p.Slot, p.Kind)
}

// userNetdev completes n for a port of QEMU's user-mode network.
func userNetdev(n netdev, p vm.Port) (netdev, error) {
	for _, a := range []netip.Addr{p.Subnet.Addr(), p.Gateway, p.IP} {
		if !a.Is4() {
			return netdev{}, fault(vm.CodeInvalid, nil,
				"NIC %d: a user-mode network needs a subnet, a gateway and an address", p.Slot)
		}
	}
	n.Net = p.Subnet.String()
	n.Host = p.Gateway.String()
	n.DHCPStart = p.IP.String()
	n.DNS = userDNS(p).String()
	n.DomainName = p.Domain
	n.Restrict = p.Restrict
	n.IPv6 = new(bool)
	for _, f := range onePortEach(p.Forwards) {
		rule, err := forwardRule(f)
		if err != nil {
			return netdev{}, err
		}
		n.HostFwd = append(n.HostFwd, strItem{rule})
	}
	return n, nil
}

// userDNS returns the address at which a user-mode network answers DNS: the third of
// the subnet, which is QEMU's default, or the next one that is not the gateway's or
// the guest's, which QEMU refuses.
func userDNS(p vm.Port) netip.Addr {
	a := p.Subnet.Masked().Addr().Next().Next().Next()
	for a == p.Gateway || a == p.IP {
		a = a.Next()
	}
	return a
}

// forwardSource returns the socket that a forward listens on, in QEMU's syntax. Its
// parts cannot contain other options: one of two protocols, an address and numbers.
func forwardSource(f vm.PortForward) (string, error) {
	const maxPort = 1<<16 - 1
	known := f.Protocol == vm.TCP || f.Protocol == vm.UDP
	ports := min(f.HostPort, f.GuestPort) >= 1 && max(f.HostPort, f.GuestPort) <= maxPort
	if !known || !f.HostAddress.Is4() || !ports {
		return "", fault(vm.CodeInvalid, nil, "port forward %s is invalid: %q %v:%d to port %d",
			f.ID, f.Protocol, f.HostAddress, f.HostPort, f.GuestPort)
	}
	return fmt.Sprintf("%s:%s:%d", f.Protocol, f.HostAddress, f.HostPort), nil
}

// forwardRule returns a forward in QEMU's syntax. It names no address of the guest:
// QEMU uses the one that its DHCP gives.
func forwardRule(f vm.PortForward) (string, error) {
	source, err := forwardSource(f)
	return fmt.Sprintf("%s-:%d", source, f.GuestPort), err
}
