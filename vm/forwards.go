package vm

import (
	"slices"
)

// MaxForwards is how many port forwards a VM can have.
const MaxForwards = 64

func (f PortForward) Check() error {
	if f.Protocol != TCP && f.Protocol != UDP {
		return InvalidField("/protocol", "must be tcp or udp")
	}
	if a := f.HostAddress; !a.Is4() || a.IsMulticast() {
		return InvalidField("/host_address", "must be an IPv4 address of the host, or 0.0.0.0 for all of them")
	}
	if f.HostPort < 1 || f.HostPort > 65535 {
		return InvalidField("/host_port", "must be 1 to 65535")
	}
	if f.GuestPort < 1 || f.GuestPort > 65535 {
		return InvalidField("/guest_port", "must be 1 to 65535")
	}
	return nil
}

// ForwardsTo returns those of all forwards that go to the NIC in a slot.
func ForwardsTo(all []PortForward, slot int) []PortForward {
	return slices.DeleteFunc(slices.Clone(all), func(f PortForward) bool { return f.Slot != slot })
}
