package vm

import "time"

// Boot holds the times of the boot events of the current or the last run of a VM. The time
// of an event that has not happened, or was not observed, is zero.
type Boot struct {
	Spawned time.Time // QEMU was launched
	Monitor time.Time // QEMU answered on its monitor
	Serial  time.Time // the guest wrote its first byte to the console
	DHCP    time.Time // the DHCP server acknowledged a lease of the guest
	Agent   time.Time // the guest agent answered for the first time
	TCP     time.Time // a TCP port of the guest accepted a connection for a request that waits for it
	// CloudInit is the time when cloud-init reported that it is done or disabled,
	// CloudInitFailed the time when it reported a failure.
	CloudInit, CloudInitFailed time.Time
}

// A BootMark names one event of a [Boot].
type BootMark string

// The boot events.
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
var BootMarks = []BootMark{
	BootSpawned,
	BootMonitor,
	BootSerial,
	BootDHCP,
	BootAgent,
	BootTCP,
	BootCloudInit,
	BootCloudInitFailed,
}

// At returns a pointer to the time of m in b. For an unknown mark it points to a new zero
// time outside b.
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
