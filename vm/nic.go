package vm

import (
	"crypto/sha256"
	"net"
	"net/netip"
	"os"
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

// NIC returns the NIC in a slot of v, or a [Fault] of class [ErrNotFound].
func (v *VM) NIC(slot int) (NIC, error) {
	for _, n := range v.NICs {
		if n.Slot == slot {
			return n, nil
		}
	}
	return NIC{}, NotFound("nic of vm "+v.ID, strconv.Itoa(slot))
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

// PortKind says through what the frames of a NIC go.
type PortKind string

// The kinds of ports.
const (
	PortTap    PortKind = "tap"    // Files[0] is a tap
	PortStream PortKind = "stream" // Files[0] is a connected stream socket, each frame after its length in 4 bytes
	PortUser   PortKind = "user"   // QEMU's own user-mode network (libslirp)
)

// A Port is what a NIC is connected to, as QEMU gets it.
type Port struct {
	NIC
	Kind  PortKind
	Files []*os.File
	VHost *os.File // /dev/vhost-net, for a tap; nil for none
	MTU   int      // 0: 1500

	// For PortUser:
	Subnet   netip.Prefix
	Gateway  netip.Addr // the host, as the guest sees it
	Domain   string
	Restrict bool
	Forwards []PortForward
}

// ClosePorts closes the files of ports; those of QEMU stay open.
func ClosePorts(ports []Port) {
	for _, p := range ports {
		for _, f := range p.Files {
			f.Close()
		}
		if p.VHost != nil {
			p.VHost.Close()
		}
	}
}

// A Protocol is what a port number belongs to.
type Protocol string

// The protocols of port forwards.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// A PortForward leads what arrives on a port of the host to a port of a guest.
type PortForward struct {
	ID          string // "pf-" and a random word, unique
	Slot        int    // of the NIC it goes to
	Protocol    Protocol
	HostAddress netip.Addr // IPv4; 0.0.0.0 for every address of the host
	HostPort    int
	GuestPort   int
}

// Boot is when what happened in the present or the last run of a VM; what has
// not, or was not seen, is zero.
type Boot struct {
	Spawned time.Time // QEMU was launched
	Monitor time.Time // QEMU answered
	Serial  time.Time // the guest wrote its first byte to the console
	DHCP    time.Time // the guest has confirmed its address
	Agent   time.Time // the guest agent gave its first answer
	TCP     time.Time // somebody who waited for it got an answer on a TCP port
	// CloudInit is when cloud-init said that it is done, or has nothing to do;
	// CloudInitFailed when it said that it has failed.
	CloudInit, CloudInitFailed time.Time
}

// A BootMark names one time of a [Boot].
type BootMark string

// The marks of a boot.
const (
	BootSpawned BootMark = "spawned"
	BootMonitor BootMark = "monitor"
	BootSerial  BootMark = "serial"
	BootDHCP    BootMark = "dhcp"
	BootAgent   BootMark = "agent"
	BootTCP     BootMark = "tcp"

	BootCloudInit       BootMark = "cloud-init"
	BootCloudInitFailed BootMark = "cloud-init-failed"
)

// BootMarks lists every mark, in the order of a boot.
var BootMarks = []BootMark{BootSpawned, BootMonitor, BootSerial, BootDHCP, BootAgent, BootTCP, BootCloudInit, BootCloudInitFailed}

// At returns the time that a mark names, to read or to set.
func (b *Boot) At(m BootMark) *time.Time {
	switch m {
	case BootSpawned:
		return &b.Spawned
	case BootMonitor:
		return &b.Monitor
	case BootSerial:
		return &b.Serial
	case BootDHCP:
		return &b.DHCP
	case BootAgent:
		return &b.Agent
	case BootTCP:
		return &b.TCP
	case BootCloudInit:
		return &b.CloudInit
	case BootCloudInitFailed:
		return &b.CloudInitFailed
	}
	return new(time.Time)
}
