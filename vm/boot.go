package vm

import "time"

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
