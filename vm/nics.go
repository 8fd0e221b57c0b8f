package vm

import (
	"fmt"
	"net/netip"
	"slices"
)

// A NewNIC is what is asked of a NIC.
type NewNIC struct {
	Network         string     // empty: [DefaultNetwork]
	IP              netip.Addr // zero: the lowest free one
	MAC             string     // empty: one that follows from the VM's UUID
	Model           NICModel   // empty: virtio
	RateIn, RateOut int        // kbit/s, 0: no limit
	LinkDown        bool
}

func (n NIC) CheckRates(field string) error {
	for f, rate := range map[string]int{"/rate_in": n.RateIn, "/rate_out": n.RateOut} {
		if rate < 0 || rate > MaxRateKbit {
			return InvalidField(field+f, "must be 1 to %d kbit/s, or 0 for no limit", MaxRateKbit)
		}
		if rate > 0 && n.Mode == NetworkUser {
			return InvalidField(field+f, "a NIC on a network of mode user has no limits")
		}
	}
	return nil
}

// FreeNICSlot returns the lowest slot of v that has no NIC.
func FreeNICSlot(v VM) (int, error) {
	for slot := range MaxNICs {
		if _, err := v.NIC(slot); err != nil {
			return slot, nil
		}
	}
	return 0, &Fault{Code: CodeLimitReached, Detail: fmt.Sprintf("VM %s already has %d NICs, the most there can be", v.ID, MaxNICs), Hint: "remove one first"}
}

// NICIndex returns where in v.NICs the NIC of a slot is, or belongs.
func NICIndex(v VM, slot int) int {
	i, _ := slices.BinarySearchFunc(v.NICs, slot, func(n NIC, slot int) int { return n.Slot - slot })
	return i
}

// RemoveNIC takes a NIC, and what is forwarded to it, from v.
func (v *VM) RemoveNIC(slot int) {
	v.NICs = slices.DeleteFunc(slices.Clone(v.NICs), func(n NIC) bool { return n.Slot == slot })
	v.Forwards = slices.DeleteFunc(slices.Clone(v.Forwards), func(f PortForward) bool { return f.Slot == slot })
}

// NICEdits are what can be changed of a NIC at any time; nil leaves a thing as
// it is.
type NICEdits struct {
	RateIn, RateOut *int // kbit/s, 0: no limit
	LinkDown        *bool
}

func (e NICEdits) Apply(n *NIC) {
	set(&n.RateIn, e.RateIn)
	set(&n.RateOut, e.RateOut)
	set(&n.LinkDown, e.LinkDown)
}
