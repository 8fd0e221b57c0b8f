package vm

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"
)

// Limits of NICs.
const (
	MaxNICs     = 8           // per VM
	MaxRateKbit = 100_000_000 // 100 Gbit/s
)

// NICModel is the network card that QEMU emulates.
type NICModel string

// The NIC models.
const (
	NICVirtio NICModel = "virtio" // virtio-net
	NICE1000e NICModel = "e1000e" // an Intel 82574L, for guests without a virtio driver
)

// NICState is the state of a NIC. Attaching and Detaching are recorded intents.
type NICState string

// The states of a NIC. A NIC that is created with its VM is attached.
const (
	NICAttaching NICState = "attaching"
	NICAttached  NICState = "attached"
	NICDetaching NICState = "detaching"
)

// A NIC is the record of one network card. It is a part of the record of its VM.
type NIC struct {
	Slot    int // 0 to MaxNICs-1; determines the PCI address and never changes
	Network string
	Mode    NetworkMode // the mode of the network, which never changes
	MAC     string      // six octets with colons, in lower case
	Model   NICModel
	IP      netip.Addr // assigned address; zero with mode bridge
	IPv6    netip.Addr // assigned address; zero without IPv6
	// Extra holds addresses that the guest may use besides the assigned ones, on networks that
	// vmand assigns addresses on. Several NICs may have the same one: it moves between their guests
	// (VRRP). No other NIC is assigned one of them.
	Extra    []netip.Prefix
	RateIn   int  // limit of traffic to the guest, in kbit/s; 0: no limit
	RateOut  int  // limit of traffic from the guest, in kbit/s; 0: no limit
	LinkDown bool // the guest sees no carrier
	State    NICState
	Reason   string // free text, set while State is detaching; may be empty
}

// Equal reports whether n and o are the same record.
func (n NIC) Equal(o NIC) bool {
	same := slices.Equal(n.Extra, o.Extra)
	n.Extra, o.Extra = nil, nil
	return same && reflect.DeepEqual(n, o)
}

// MACOf returns the default MAC address of the NIC in a slot of the VM with the given UUID: the
// octet 0x52, then the first 40 bits of a SHA-256 of both.
//
// In 0x52 the bit "locally administered" is set and the bit "group" is clear (IEEE 802, section
// 8.4): no vendor owns the address, and it is unicast. With QEMU's usual prefix 52:54:00 only 24
// bits would remain, and among 1,000 VMs on one network two would share an address with a
// probability of 1 in 34. With 40 bits it is 1 in 2 million.
func MACOf(uuid string, slot int) string {
	sum := sha256.Sum256([]byte(uuid + "/nic/" + strconv.Itoa(slot)))
	return net.HardwareAddr(append([]byte{0x52}, sum[:5]...)).String()
}

// CheckRates returns a [Fault] of code [CodeInvalid] if a rate limit of n is invalid or not
// supported by the mode of its network. field is the JSON pointer of the NIC in the request.
func (n NIC) CheckRates(field string) error {
	for f, rate := range map[string]int{"/rate_in": n.RateIn, "/rate_out": n.RateOut} {
		if rate < 0 || rate > MaxRateKbit {
			return InvalidField(field+f, "must be 1 to %d kbit/s, or 0 for no limit", MaxRateKbit)
		}
		if rate > 0 && n.Mode == NetworkUser {
			return InvalidField(field+f, "is not supported on a network of mode user")
		}
	}
	return nil
}

// NIC returns the NIC of v in the given slot, or a [Fault] of class [ErrNotFound].
func (v *VM) NIC(slot int) (NIC, error) {
	for _, n := range v.NICs {
		if n.Slot == slot {
			return n, nil
		}
	}
	return NIC{}, NotFound("NIC", fmt.Sprintf("%d of VM %s", slot, v.ID))
}

// NICIndex returns the index in v.NICs of the NIC in the given slot, or the index at which to
// insert it.
func (v *VM) NICIndex(slot int) int {
	i, _ := slices.BinarySearchFunc(v.NICs, slot, func(n NIC, slot int) int { return n.Slot - slot })
	return i
}

// FreeNICSlot returns the lowest slot of v without a NIC. It fails with [CodeLimitReached] if
// there is none.
func (v *VM) FreeNICSlot() (int, error) {
	for slot := range MaxNICs {
		if _, err := v.NIC(slot); err != nil {
			return slot, nil
		}
	}
	return 0, &Fault{
		Code:   CodeLimitReached,
		Detail: fmt.Sprintf("VM %s already has %d NICs, the maximum", v.ID, MaxNICs),
		Hint:   "remove a NIC first",
	}
}

// RemoveNIC removes the NIC in the given slot and its port forwards from v. It does not modify
// the arrays of v.NICs and v.Forwards.
func (v *VM) RemoveNIC(slot int) {
	v.NICs = slices.DeleteFunc(slices.Clone(v.NICs), func(n NIC) bool { return n.Slot == slot })
	v.Forwards = slices.DeleteFunc(slices.Clone(v.Forwards), func(f PortForward) bool { return f.Slot == slot })
}

// A NewNIC is a request to create a NIC.
type NewNIC struct {
	Network         string     // empty: [DefaultNetwork]
	IP              netip.Addr // zero: the lowest free address
	MAC             string     // empty: [MACOf] the UUID of the VM and the slot
	Model           NICModel   // empty: virtio
	RateIn, RateOut int        // kbit/s, 0: no limit
	LinkDown        bool
	Extra           []netip.Prefix
}

// NICEdits are the settings of a NIC that can change in any state. A nil field keeps the
// recorded value.
type NICEdits struct {
	RateIn, RateOut *int // kbit/s, 0: no limit
	LinkDown        *bool
	Extra           *[]netip.Prefix
}

// Apply copies the fields of e to n without checking them; see [NIC.CheckRates] and
// [Network.CheckExtraAddresses].
func (e NICEdits) Apply(n *NIC) {
	set(&n.RateIn, e.RateIn)
	set(&n.RateOut, e.RateOut)
	set(&n.LinkDown, e.LinkDown)
	set(&n.Extra, e.Extra)
}

// SettleNICs returns the NICs that a VM really has, given its recorded NICs and an observation
// of the VM, and the slots of those to unplug again because QEMU still has them. A NIC in state
// attaching that QEMU does not have is dropped: it was never attached.
func SettleNICs(recorded []NIC, seen Observation) (have []NIC, unplug []int) {
	unknown := seen.Alive() && seen.NICs == nil
	for _, n := range recorded {
		plugged := slices.Contains(seen.NICs, n.Slot)
		switch {
		case n.State == NICAttached || unknown:
		case n.State == NICAttaching && plugged:
			n.State = NICAttached
		case n.State == NICDetaching && plugged:
			unplug = append(unplug, n.Slot)
		default:
			continue
		}
		have = append(have, n)
	}
	return have, unplug
}

// An AddressSource is the source of an address of a guest.
type AddressSource string

// The sources of addresses.
const (
	SourceAssigned  AddressSource = "assigned"  // vmand assigned the address; the guest cannot use another one
	SourceAgent     AddressSource = "agent"     // the guest agent reported it
	SourceNeighbour AddressSource = "neighbour" // the neighbour table of the host contains it
)

// A LearnedAddress is an observed address of a guest that vmand did not assign.
type LearnedAddress struct {
	Slot   int           `json:"slot"`
	IP     netip.Addr    `json:"ip"`
	Source AddressSource `json:"source"`
	At     time.Time     `json:"at"`
}

// LocalIP returns the address of the first NIC of v that has one, and its source. Both are zero
// if no address is known.
func (v *VM) LocalIP() (netip.Addr, AddressSource) {
	for _, n := range v.NICs {
		if n.IP.IsValid() {
			return n.IP, SourceAssigned
		}
		for _, l := range v.Learned {
			if l.Slot == n.Slot {
				return l.IP, l.Source
			}
		}
	}
	return netip.Addr{}, ""
}

// ReachableFromHost reports whether the host can connect to the guest of v at the address that
// [VM.LocalIP] returns.
func (v *VM) ReachableFromHost() bool {
	ip, _ := v.LocalIP()
	for _, n := range v.NICs {
		if n.IP == ip && ip.IsValid() {
			return n.Mode != NetworkUser
		}
	}
	return ip.IsValid()
}
