package vm

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// Limits of port forwards.
const (
	MaxForwards = 64   // per VM
	MaxPorts    = 1000 // per forward
	// MaxVMPorts is the maximum number of forwarded ports of a VM. nftables has an entry for each,
	// and the kernel needs 25 ms to list 10,000 entries, with a square law (TestMostForwardsOfOneVM).
	MaxVMPorts = 10_000
	// MaxUserPorts is the maximum number of ports of a VM that are forwarded on networks of mode
	// user, where each port is a socket of passt or QEMU.
	MaxUserPorts = 256
)

// A Protocol is the transport protocol of a port.
type Protocol string

// The protocols of port forwards.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// A PortForward redirects connections or datagrams from ports of the host to ports of a guest:
// HostPort to GuestPort, the next one to the next one, and so on.
type PortForward struct {
	ID          string // "pf-" and a random suffix, unique
	Slot        int    // of the NIC that receives the traffic
	Protocol    Protocol
	HostAddress netip.Addr // 0.0.0.0 for all IPv4 addresses of the host, :: for all IPv6 addresses
	HostPort    int
	GuestPort   int
	Ports       int // number of consecutive ports; 0: 1
}

// Count returns the number of ports that f forwards.
func (f PortForward) Count() int { return max(1, f.Ports) }

// Each yields a forward of one port for each port of f.
func (f PortForward) Each() iter.Seq[PortForward] {
	return func(yield func(PortForward) bool) {
		for i := range f.Count() {
			one := f
			one.HostPort, one.GuestPort, one.Ports = f.HostPort+i, f.GuestPort+i, 1
			if !yield(one) {
				return
			}
		}
	}
}

// Listens returns the protocol, the host ports and the host address of f in words.
func (f PortForward) Listens() string {
	if f.Count() == 1 {
		return fmt.Sprintf("%s port %d on %s", f.Protocol, f.HostPort, f.HostAddress)
	}
	return fmt.Sprintf("%s ports %d to %d on %s", f.Protocol, f.HostPort, f.HostPort+f.Count()-1, f.HostAddress)
}

// CheckForwards returns a [Fault] of code [CodeLimitReached] if v has more forwards, or more
// forwarded ports, than a VM may have.
func (v *VM) CheckForwards() error {
	limit := func(hint, format string, args ...any) error {
		return &Fault{
			Code:   CodeLimitReached,
			Detail: fmt.Sprintf("VM %s would have ", v.ID) + fmt.Sprintf(format, args...) + ", the limit",
			Hint:   hint,
		}
	}
	if len(v.Forwards) > MaxForwards {
		return limit("remove a port forward first, or use a range of ports", "more than %d port forwards", MaxForwards)
	}
	every, user := 0, 0
	for _, f := range v.Forwards {
		every += f.Count()
		if n, err := v.NIC(f.Slot); err == nil && n.Mode == NetworkUser {
			user += f.Count()
		}
	}
	if every > MaxVMPorts {
		return limit("forward fewer ports", "%d forwarded ports, more than %d", every, MaxVMPorts)
	}
	if user > MaxUserPorts {
		return limit("forward fewer ports, or use a network of mode nat",
			"%d forwarded ports on networks of mode user, more than %d", user, MaxUserPorts)
	}
	return nil
}

// Check returns a [Fault] of code [CodeInvalid] if a field of f is invalid. It does not check
// whether the port is free.
func (f PortForward) Check() error {
	if f.Protocol != TCP && f.Protocol != UDP {
		return InvalidField("/protocol", "must be tcp or udp")
	}
	if !isListenAddress(f.HostAddress) {
		return InvalidField("/host_address", "must be an address of the host other than ::1 and link-local ones, "+
			"0.0.0.0 for all of its IPv4 addresses, or :: for all of its IPv6 addresses")
	}
	if f.HostPort < 1 || f.HostPort > 65535 {
		return InvalidField("/host_port", "must be 1 to 65535")
	}
	if f.GuestPort < 1 || f.GuestPort > 65535 {
		return InvalidField("/guest_port", "must be 1 to 65535")
	}
	if f.Ports < 0 || f.Ports > MaxPorts {
		return InvalidField("/ports", "must be 1 to %d", MaxPorts)
	}
	if last := max(f.HostPort, f.GuestPort) + f.Count() - 1; last > 65535 {
		return InvalidField("/ports", "%d ports from %d on end at %d: the last port is 65535",
			f.Count(), max(f.HostPort, f.GuestPort), last)
	}
	return nil
}

// isListenAddress reports whether a host can have the address a, or a stands for all of its
// addresses of one family. A link-local address needs a zone, which a forward has not, and the
// kernel cannot forward from ::1.
func isListenAddress(a netip.Addr) bool {
	if !a.Is4() {
		return a.Is6() && !a.Is4In6() && a.Zone() == "" && !a.IsMulticast() && !a.IsLinkLocalUnicast() && !a.IsLoopback()
	}
	return !a.IsMulticast() && a.As4()[0] < 240 && (a.As4()[0] != 0 || a.IsUnspecified())
}

// ForwardsTo returns the forwards in all that go to the NIC in the given slot.
func ForwardsTo(all []PortForward, slot int) []PortForward {
	return slices.DeleteFunc(slices.Clone(all), func(f PortForward) bool { return f.Slot != slot })
}
