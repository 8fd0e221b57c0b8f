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

import (
	"regexp"
	"time"
)

// A Template is a named size of virtual machine. It never changes once made.
type Template struct {
	Seq       int64 // order of creation, unique; set by the store
	Name      string
	CPUCount  int // vCPUs
	RAMMiB    int
	CreatedAt time.Time
}

// Limits of what may be asked for.
const (
	MaxCPUs    = 256
	MaxRAMMiB  = 4 << 20               // 4 TiB
	MaxDiskMiB = 16 << 20              // 16 TiB
	MaxDisks   = 24                    // data disks on one VM
	DefaultMiB = int64(10) * MiBPerGiB // of a root disk when nothing is said
	MiBPerGiB  = 1024
)

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

var (
	namePattern         = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	templateNamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
)

// ValidName reports whether s may name a VM or a disk: a DNS label in lower
// case (RFC 1123), so that a VM's id can be its guest's hostname.
func ValidName(s string) bool { return namePattern.MatchString(s) }

// ValidTemplateName reports whether s may name a template: as [ValidName], and
// dots and underscores inside.
func ValidTemplateName(s string) bool { return templateNamePattern.MatchString(s) }
