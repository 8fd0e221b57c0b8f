package vm

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Limits of what a VM can have of NICs.
const (
	MaxNICs     = 8
	MaxRateKbit = 100_000_000 // 100 Gbit/s
)

// NICModel is the kind of card the guest sees.
type NICModel string

// The models of NICs.
const (
	NICVirtio NICModel = "virtio" // virtio-net
	NICE1000e NICModel = "e1000e" // an Intel 82574L, for guests without a virtio driver
)

// NICState is where a NIC is in its life. Attaching and Detaching are recorded
// intents.
type NICState string

// The states of a NIC. One that its VM is made with is attached.
const (
	NICAttaching NICState = "attaching"
	NICAttached  NICState = "attached"
	NICDetaching NICState = "detaching"
)

// A NIC is one network card of a VM as it is recorded, in the VM.
type NIC struct {
	Slot     int // 0 to MaxNICs-1: fixes its PCI address for its life
	Network  string
	Mode     NetworkMode // of the network, which keeps it for life
	MAC      string      // six octets with colons, in lower case
	Model    NICModel
	IP       netip.Addr // that it is given; zero with mode bridge
	IPv6     netip.Addr // zero without one
	RateIn   int        // most that the guest gets, in kbit/s; 0: no limit
	RateOut  int        // most that the guest sends, in kbit/s; 0: no limit
	LinkDown bool       // the cable is out
	State    NICState
	Reason   string // why it is still detaching, in words; may be empty
}

// MACOf returns the MAC address of the NIC in a slot of the VM with the given
// UUID: the octet 0x52 and the first 40 bits of the SHA-256 of both.
//
// In 0x52 the bit "locally administered" is set and the bit "group" is not
// (IEEE 802, section 8.4), so no vendor owns the address and it is a unicast
// one. QEMU's customary prefix 52:54:00 would leave 24 bits, and a thousand VMs
// on one network would then hold two alike in one case of 34; with 40 bits it
// is one in two million.
func MACOf(uuid string, slot int) string {
	sum := sha256.Sum256([]byte(uuid + "/nic/" + strconv.Itoa(slot)))
	return net.HardwareAddr(append([]byte{0x52}, sum[:5]...)).String()
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

// NIC returns the NIC in a slot of v, or a [Fault] of class [ErrNotFound].
func (v *VM) NIC(slot int) (NIC, error) {
	for _, n := range v.NICs {
		if n.Slot == slot {
			return n, nil
		}
	}
	return NIC{}, NotFound("nic of vm "+v.ID, strconv.Itoa(slot))
}

// NICIndex returns the index in v.NICs of the NIC in a slot, or where to insert it.
func (v *VM) NICIndex(slot int) int {
	i, _ := slices.BinarySearchFunc(v.NICs, slot, func(n NIC, slot int) int { return n.Slot - slot })
	return i
}

// FreeNICSlot returns the lowest slot of v that has no NIC.
func (v *VM) FreeNICSlot() (int, error) {
	for slot := range MaxNICs {
		if _, err := v.NIC(slot); err != nil {
			return slot, nil
		}
	}
	return 0, &Fault{Code: CodeLimitReached, Detail: fmt.Sprintf("VM %s already has %d NICs, the most there can be", v.ID, MaxNICs), Hint: "remove one first"}
}

// RemoveNIC takes a NIC, and what is forwarded to it, from v.
func (v *VM) RemoveNIC(slot int) {
	v.NICs = slices.DeleteFunc(slices.Clone(v.NICs), func(n NIC) bool { return n.Slot == slot })
	v.Forwards = slices.DeleteFunc(slices.Clone(v.Forwards), func(f PortForward) bool { return f.Slot == slot })
}

// A NewNIC is what is asked of a NIC.
type NewNIC struct {
	Network         string     // empty: [DefaultNetwork]
	IP              netip.Addr // zero: the lowest free one
	MAC             string     // empty: one that follows from the VM's UUID
	Model           NICModel   // empty: virtio
	RateIn, RateOut int        // kbit/s, 0: no limit
	LinkDown        bool
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

// SettleNICs returns the NICs that a VM really has, given what is recorded and
// what the host shows, and the slots that QEMU still has and should not. A NIC
// that was being attached and is not there never came to be.
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

// An AddressSource says how an address of a guest is known.
type AddressSource string

// The sources of addresses.
const (
	SourceAssigned  AddressSource = "assigned"  // vmand gives it to the guest, and lets it have no other
	SourceAgent     AddressSource = "agent"     // the guest's agent says so
	SourceNeighbour AddressSource = "neighbour" // the host's kernel has seen it on the network
)

// A LearnedAddress is an address that a guest has and nobody gave it.
type LearnedAddress struct {
	Slot   int           `json:"slot"`
	IP     netip.Addr    `json:"ip"`
	Source AddressSource `json:"source"`
	At     time.Time     `json:"at"`
}

// LocalIP returns the guest's address and how it is known: that of the first
// NIC which has one. Both are zero if none is known.
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

// ReachableFromHost reports whether the host can open connections to the guest
// at the address of [VM.LocalIP].
func (v *VM) ReachableFromHost() bool {
	ip, _ := v.LocalIP()
	for _, n := range v.NICs {
		if n.IP == ip && ip.IsValid() {
			return n.Mode != NetworkUser
		}
	}
	return ip.IsValid()
}
