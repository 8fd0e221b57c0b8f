// Package vm defines the domain of vmand: templates, VMs, disks, images, networks and
// operations, their states, the checks of a request, and the pure functions that derive
// the true state of a resource from its record and from an observation of the host
// ([Settle], [SettleDisk], [SettleNICs]).
//
// The package imports no other package of this module and has no goroutine, lock, clock
// or I/O. Package manager implements the use cases on top of it. Packages store (SQLite),
// qemu and network implement its ports: [Store], [Driver] and [HostNetwork].
package vm

import "time"

// A VM is the record of one virtual machine.
type VM struct {
	Seq          int64  // order of creation, unique; set by the store
	ID           string // a DNS label, unique; see [ValidName]
	UUID         string // the SMBIOS UUID the guest sees; also QEMU's identity over QMP
	Template     Template
	State        State
	Reason       Reason
	ReasonDetail string // free text, such as the last lines of QEMU's log; may be empty
	Desired      Desired
	Root         DiskFile // the root disk; created and deleted with the VM
	Machine      string   // versioned machine type, fixed by the first start; empty before it
	Accel        Accel    // of the current or the last run; empty before the first start
	AccelReason  string   // why not KVM although vmand uses it where it works; empty otherwise
	CreatedAt    time.Time
	UpdatedAt    time.Time
	StartedAt    time.Time // start of the current or the last run; zero before the first start
	Revision     int64     // increases with every change; set by the store

	Description string
	Labels      map[string]string // nil for none
	Restart     RestartPolicy
	Restarts    int       // consecutive automatic restarts, see [VM.PlanRestart]
	RestartAt   time.Time // when the next automatic restart is due, zero for none
	Autostart   Autostart
	BootDevice  BootDevice // takes effect at the next start
	Shutdown    Shutdown

	NICs     []NIC         // in order of their slots; nil for none
	Forwards []PortForward // in order of creation; nil for none
	CDROMs   []CDROM       // the seed first, then by number; nil for none
	// Boot and Learned are observed in the guest. Only [Change].Learned writes them.
	Boot    Boot
	Learned []LearnedAddress
}

// Limits of an [Autostart].
const (
	MaxOrder = 1000
	MaxDelay = time.Hour
)

// An Autostart controls the start of a VM after the host has booted. Only a VM with
// the desired state running is started.
type Autostart struct {
	Enabled bool
	Order   int           // lower values start first; equal values start in order of creation
	Delay   time.Duration // pause between this start and the next one; whole seconds
}

// Accel is the accelerator that executes the instructions of a guest.
type Accel string

// The accelerators of QEMU that vmand uses.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// A BootDevice is what the firmware of a VM tries first.
type BootDevice string

// The boot devices.
const (
	BootDisk    BootDevice = ""        // the drives by their boot index, see [RootBootIndex]
	BootNetwork BootDevice = "network" // the NIC in the lowest slot, and then the drives
)

// Desired is the state that a client last requested for a VM.
type Desired string

// The states that a client can request.
const (
	DesiredRunning Desired = "running"
	DesiredStopped Desired = "stopped"
)

// Live reports whether v has a QEMU process that can plug and unplug devices.
func (v VM) Live() bool { return v.State == Running || v.State == Paused }

// Version returns the recorded version of v.
func (v VM) Version() Version { return Version{v.Seq, v.Revision} }

// A NewVM is a request to create a VM.
type NewVM struct {
	ID          string // empty: generated
	Template    string
	Image       string // source of the root disk; empty: the boot image of the daemon, if one is configured
	FullClone   bool   // the root disk is a copy of the image instead of an overlay
	RootSizeMiB int64  // 0: the size of the image, or [DefaultMiB] without one
	VMEdits     VMEdits
	NICs        *[]NewNIC // nil: one on the default network
	CDROMs      []NewCDROM
	CloudInit   *CloudInit // nil: the guest gets no seed
}

// VMEdits are the settings of a VM that can change in any state. A nil field keeps the
// recorded value.
type VMEdits struct {
	Description *string
	Labels      *map[string]string // replaces all labels
	Restart     *RestartPolicy
	Autostart   *Autostart
	BootDevice  *BootDevice
	// ShutdownTimeout and ShutdownAction are the parts of the [Shutdown].
	ShutdownTimeout *time.Duration
	ShutdownAction  *ShutdownAction
	// Desired enables or disables automatic restarts and the start at boot. It does not
	// start or stop the VM.
	Desired *Desired
}

// Apply copies the fields of e to v. It returns a [Fault] of code [CodeInvalid] that names
// the first invalid field; v may then be partly changed.
func (e VMEdits) Apply(v *VM) error {
	if e.Description != nil {
		if err := checkDescription(*e.Description); err != nil {
			return err
		}
		v.Description = *e.Description
	}
	if e.Labels != nil {
		if err := checkLabels(*e.Labels); err != nil {
			return err
		}
		v.Labels = nil
		if len(*e.Labels) > 0 {
			v.Labels = *e.Labels
		}
	}
	if e.Restart != nil {
		switch *e.Restart {
		case RestartNever, RestartOnFailure, RestartAlways:
		default:
			return InvalidField("/restart_policy", "must be never, on-failure or always")
		}
		v.Restart = *e.Restart
	}
	if e.Autostart != nil {
		a := *e.Autostart
		if a.Order < 0 || a.Order > MaxOrder {
			return InvalidField("/autostart_order", "must be 0 to %d", MaxOrder)
		}
		if a.Delay < 0 || a.Delay > MaxDelay || a.Delay%time.Second != 0 {
			return InvalidField("/autostart_delay", "must be 0 to %d seconds", int(MaxDelay/time.Second))
		}
		v.Autostart = a
	}
	if e.BootDevice != nil {
		switch *e.BootDevice {
		case BootDisk, BootNetwork:
		default:
			return InvalidField("/boot_device", "must be disk or network")
		}
		v.BootDevice = *e.BootDevice
	}
	if err := e.applyShutdown(v); err != nil {
		return err
	}
	if e.Desired != nil {
		switch *e.Desired {
		case DesiredRunning, DesiredStopped:
		default:
			return InvalidField("/desired_state", "must be running or stopped")
		}
		v.Desired = *e.Desired
	}
	return nil
}

// set copies *from to *to; it is a no-op if from is nil.
func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}
