package vm

import (
	"net/netip"
	"slices"
)

// MaxForwards is the maximum number of port forwards of a VM.
const MaxForwards = 64

// A Protocol is the transport protocol of a port.
type Protocol string

// The protocols of port forwards.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// A PortForward redirects connections or datagrams from a port of the host to a port of a
// guest.
type PortForward struct {
	ID          string // "pf-" and a random suffix, unique
	Slot        int    // of the NIC that receives the traffic
	Protocol    Protocol
	HostAddress netip.Addr // IPv4; 0.0.0.0 for all addresses of the host
	HostPort    int
	GuestPort   int
}

// Check returns a [Fault] of code [CodeInvalid] if a field of f is invalid. It does not check
// whether the port is free.
func (f PortForward) Check() error {
	if f.Protocol != TCP && f.Protocol != UDP {
		return InvalidField("/protocol", "must be tcp or udp")
	}
	if a := f.HostAddress; !a.Is4() || a.IsMulticast() || a.As4()[0] >= 240 || a.As4()[0] == 0 && !a.IsUnspecified() {
		return InvalidField("/host_address", "must be an IPv4 address of the host, or 0.0.0.0 for all of its addresses")
	}
	if f.HostPort < 1 || f.HostPort > 65535 {
		return InvalidField("/host_port", "must be 1 to 65535")
	}
	if f.GuestPort < 1 || f.GuestPort > 65535 {
		return InvalidField("/guest_port", "must be 1 to 65535")
	}
	return nil
}

// ForwardsTo returns the forwards in all that go to the NIC in the given slot.
func ForwardsTo(all []PortForward, slot int) []PortForward {
	return slices.DeleteFunc(slices.Clone(all), func(f PortForward) bool { return f.Slot != slot })
}
