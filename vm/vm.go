// Package vm is the ground of vmand: what a template, a virtual machine, a disk, an
// image, a network and an operation are, the states they can be in, what is true of
// them given what is recorded and what the host shows, and what is wrong with a
// request.
//
// It imports no other package of this module, and it has no goroutine, no lock, no
// clock and no I/O. Package manager carries out the use cases over it. SQLite (package
// store), QEMU (package qemu) and the network of the host (package network) implement
// its ports: [Store], [Driver] and [HostNetwork].
package vm

import "time"

// A VM is one virtual machine as it is recorded.
type VM struct {
	Seq          int64  // order of creation, unique; set by the store
	ID           string // a DNS label, unique; see [ValidName]
	UUID         string // the SMBIOS UUID the guest sees; also QEMU's identity over QMP
	Template     Template
	State        State
	Reason       Reason
	ReasonDetail string // free text for a person: QEMU's last words, numbers; may be empty
	Desired      Desired
	Root         DiskFile // the disk it boots from: its own, made and deleted with it
	Machine      string   // versioned machine type, kept for the VM's life; empty before the first start
	Accel        Accel    // of the present or the last run; empty before the first start
	CreatedAt    time.Time
	UpdatedAt    time.Time
	StartedAt    time.Time // of the present or the last run; zero before the first start
	Revision     int64     // goes up with every change; set by the store

	Description string
	Labels      map[string]string // nil for none
	Restart     RestartPolicy
	Restarts    int       // automatic restarts in a row, see [RestartPolicy]
	RestartAt   time.Time // when the next automatic restart is due, zero for none
	Autostart   Autostart

	NICs     []NIC         // by slot; nil for none
	Forwards []PortForward // in the order they were made; nil for none
	CDROMs   []CDROM       // the seed first, then by number; nil for none
	// What was seen of the guest; recorded by [Change].Learned alone.
	Boot    Boot
	Learned []LearnedAddress
}

// Limits of an [Autostart].
const (
	MaxOrder = 1000
	MaxDelay = time.Hour
)

// An Autostart says whether a VM that was last asked to run is started when the
// host has booted, and when.
type Autostart struct {
	Enabled bool
	Order   int           // lower ones first; VMs of one order in the order of their creation
	Delay   time.Duration // to wait after it before the next one is started; whole seconds
}

// Accel names what executes the guest's instructions.
type Accel string

// The accelerators vmand knows.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// Desired is what the user last asked of a VM.
type Desired string

// The states a user can ask for.
const (
	DesiredRunning Desired = "running"
	DesiredStopped Desired = "stopped"
)

// Live reports whether v has a QEMU process whose devices can be changed.
func (v VM) Live() bool { return v.State == Running || v.State == Paused }

// Version returns the recorded version of the VM.
func (v VM) Version() Version { return Version{v.Seq, v.Revision} }

// A NewVM is what is asked of a VM to make.
type NewVM struct {
	ID          string // empty: one is made up
	Template    string
	Image       string // that its root disk is made of; empty: the daemon's boot image, or none
	FullClone   bool   // the root disk is a copy of the image, and no overlay of it
	RootSizeMiB int64  // 0: the size of the image, or [DefaultMiB] without one
	VMEdits     VMEdits
	NICs        *[]NewNIC // nil: one on the default network
	CDROMs      []NewCDROM
	CloudInit   *CloudInit // nil: the guest gets no seed
}

// VMEdits are what can be changed of a VM at any time; nil leaves a thing as it
// is.
type VMEdits struct {
	Description *string
	Labels      *map[string]string // in place of all there were
	Restart     *RestartPolicy
	Autostart   *Autostart
	// Desired says whether automatic restarts and the start at boot are wanted;
	// it starts and stops nothing.
	Desired *Desired
}

// Apply checks e and changes v.
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

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}
