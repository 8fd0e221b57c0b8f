package vm

import (
	"context"
	"io"
	"time"
)

// Driver runs VMs on the host and stores their files. Every method blocks at most until its
// context ends, is safe for concurrent use and takes no lock of the manager. The manager never
// calls two methods that change the same VM at once.
//
// Driver is the union of the interfaces of its consumers. A consumer should depend on the
// narrowest one.
type Driver interface {
	Machines
	Plugger
	Files
	Guests
	Consoles
	Images
	Host
}

// Machines starts and ends the QEMU processes of VMs.
type Machines interface {
	// Platform returns the platform for VMs. It asks QEMU once and caches the answer. After a
	// boot of the host it waits for the first answer about KVM, at most 15 s. It fails with
	// [CodeQEMUUnavailable] and a hint that names the package to install.
	Platform(ctx context.Context) (Platform, error)
	// Limits returns the limits of a VM on this host. It asks QEMU once and does not wait
	// for an answer about KVM. Limits that it cannot find out are zero.
	Limits(ctx context.Context) Limits
	// Admit returns nil if the host can start s now. It fails with [CodeState] if a process of
	// the VM is left, with [CodeInsufficientMemory] if the host has too little free memory, and
	// with another code if a file of the VM is missing.
	Admit(ctx context.Context, s Spec) error

	// Start launches QEMU for s and runs the guest. It returns the times at which QEMU was
	// spawned and its monitor answered. After an error a process may be left; the caller must
	// observe and settle the VM.
	Start(ctx context.Context, s Spec, report Report) (Boot, error)
	// Shutdown asks the guest to power off and ends the process with increasing force after
	// o.Timeout, or at once with o.Force. It returns nil when no process is left.
	Shutdown(ctx context.Context, id string, o StopOptions, report Report) error
	// Control pauses, resumes, resets or interrupts the guest of a VM: op is [OpPause],
	// [OpResume], which also wakes a guest that suspended itself, [OpReset], which also
	// resumes the guest, or [OpNMI].
	Control(ctx context.Context, id string, op Op) error
}

// Plugger changes the devices of running VMs.
type Plugger interface {
	// AttachDisk plugs d into the running VM d.VMID at the slot of its mount point. It is
	// idempotent.
	AttachDisk(ctx context.Context, d Disk) error
	// DetachDisk unplugs d from the running VM d.VMID. It is idempotent. An error of class
	// [ErrUnavailable] means that the guest or QEMU has not released the disk yet.
	DetachDisk(ctx context.Context, d Disk) error
	// AttachNIC plugs a NIC into the running VM. It is idempotent. QEMU gets duplicates of the
	// files of p, which the caller must close.
	AttachNIC(ctx context.Context, vmID string, p Port) error
	// DetachNIC unplugs the NIC in a slot of the running VM, for which the guest must cooperate.
	// It is idempotent. An error of class [ErrUnavailable] means that the guest or QEMU has not
	// released the NIC yet.
	DetachNIC(ctx context.Context, vmID string, slot int) error
	// SetLink sets the link of a NIC of the running VM up or down.
	SetLink(ctx context.Context, vmID string, slot int, up bool) error
	// SetForwards makes the user-mode NIC in a slot of the running VM listen for the forwards in
	// want, and ends those in had that are not in want. It fails with [CodeState] if the change
	// is possible only at the next start.
	SetForwards(ctx context.Context, vmID string, slot int, had, want []PortForward) error

	// SetCDROMs plugs and unplugs drives of the running VM until it has exactly those in want,
	// by id and content. A guest that reads from a removed drive gets errors.
	SetCDROMs(ctx context.Context, vmID string, want []CDROM) error
}

// Files stores the files of VMs and data disks.
type Files interface {
	// HasVM reports whether files of a VM with this id exist, recorded or not. A new VM must
	// never take over the files of a VM that lost its record.
	HasVM(ctx context.Context, id string) (bool, error)
	// CreateVM creates the directory and the root disk of a VM durably. The root disk is a copy
	// of from, or if from is nil an overlay of root.Base or empty. progress reports bytes; it
	// may be nil. It fails with [CodeInsufficientStorage] if there is too little free space.
	// After an error no file is left.
	CreateVM(ctx context.Context, id string, root DiskFile, from *CopySource, progress func(done, total int64)) error
	// DeleteVM deletes all files of a VM, also after an interrupted creation. It is idempotent.
	DeleteVM(ctx context.Context, id string) error
	// CreateDisk creates the file of a data disk in the same way as CreateVM creates a root
	// disk.
	CreateDisk(ctx context.Context, id string, file DiskFile, from *CopySource, progress func(done, total int64)) error
	// DeleteDisk deletes the file of a data disk. It is idempotent.
	DeleteDisk(ctx context.Context, id string) error
	// DiskSize returns the virtual size in MiB of the file of a data disk. It fails with a
	// [Fault] of class [ErrNotFound] if there is no file.
	DiskSize(ctx context.Context, id string) (int64, error)
	// ResizeDisk grows d, which may be plugged, to sizeMiB. It fails with [CodeInvalid] if that
	// is less than the current size.
	ResizeDisk(ctx context.Context, d Disk, sizeMiB int64) error

	// WriteSeed creates or replaces the seed of a VM, an ISO image of the given files by name,
	// durably. A running QEMU process keeps the seed that it has open. The file [SeedIgnition] is
	// not in the ISO image: a guest gets it in fw_cfg.
	WriteSeed(ctx context.Context, vmID string, files map[string][]byte) error

	// AdoptDisk describes the file of a data disk by its header. It fails with a [Fault] of
	// class [ErrNotFound] if there is no file.
	AdoptDisk(ctx context.Context, id string) (DiskFile, error)
	// AdoptVM describes the files and the process of a VM without a record: its root disk, and
	// its UUID if a process reports it, "" otherwise. It fails with a [Fault] of class
	// [ErrNotFound] if there are no files.
	AdoptVM(ctx context.Context, id string) (uuid string, root DiskFile, err error)
}

// Consoles connects to the serial consoles of VMs.
type Consoles interface {
	// Console connects to the serial console of a running VM. It fails with [CodeState] if the
	// VM is not running, and with [CodeBusy] if o.Write is set, another connection has the write
	// side and o.TakeOver is not set.
	Console(ctx context.Context, id string, o ConsoleOptions) (Console, error)
	// ConsoleLog returns the kept output of the guest to its serial console from offset on, and
	// the offset of its end. The VM need not be running. A negative offset counts from the end.
	// The caller must close log.
	ConsoleLog(ctx context.Context, id string, offset int64) (log io.ReadCloser, end int64, err error)
}

// Host observes the processes and files of the host.
type Host interface {
	// Observe observes one VM and asks its process, if alive, for the plugged devices. Values
	// that cannot be observed are left empty.
	Observe(ctx context.Context, id string) Observation
	// Survey observes the whole host. It spawns no process, and a VM that does not answer does
	// not delay the others.
	Survey(ctx context.Context) (Survey, error)
	// SurveyProcesses is Survey without lists of files: VMFiles holds only the VMs that have a
	// process; DiskFiles and Images are nil. Its cost does not depend on how many files exist.
	SurveyProcesses(ctx context.Context) (Survey, error)
	// FilesVersion returns a text that changes when a VM, data disk or image content gets or
	// loses its files.
	FilesVersion(ctx context.Context) (string, error)
	// Flight returns the flight recordings of a VM, of the current or last run and of its last
	// crashes.
	Flight(ctx context.Context, id string) (Flight, error)
	// Watch delivers the driver's observations of VMs to sink until ctx is done, beginning
	// with those from before the call. It must not be called concurrently.
	Watch(ctx context.Context, sink Sink)
}

// A Spec holds everything that the driver needs to start a VM.
type Spec struct {
	ID       string
	UUID     string
	CPUCount int
	RAMMiB   int
	Machine  string
	Accel    Accel
	Boot     BootDevice
	Root     DiskFile
	Disks    []Disk // in order of their slots
	CDROMs   []CDROM
	Ignition bool   // the seed has the file SeedIgnition, which the guest gets in fw_cfg
	Ports    []Port // in order of their slots; QEMU gets duplicates of their files
}

// A Platform is the version and the kind of emulation with which VMs run.
type Platform struct {
	Version string // of QEMU, such as "7.2.22"
	Machine string // the newest versioned machine type, for new VMs
	Accel   Accel
	Warning string // why KVM is not used although the setting allows it; empty otherwise
}

// A Survey is the state of all VMs, disks and images on the host at one moment.
type Survey struct {
	VMs       map[string]Observation // by id: the VMs that have a process
	VMFiles   map[string]bool        // by id: the VMs that have files; true if the root disk exists
	DiskFiles map[string]int64       // by id: the virtual size in MiB of the files of data disks; 0 if unreadable
	Images    map[string]int64       // by SHA-256: the size in bytes of stored image content
	Storage   Storage
	// Accel is the accelerator with which a VM would start now, empty if that is unknown
	// or if the setting does not leave it to the host.
	Accel Accel
}

// Storage is the capacity of the file system that holds the disks.
type Storage struct {
	Path             string
	FreeMiB, SizeMiB int64
}

// A Flight holds the flight recordings of a VM, for the analysis of a crash.
type Flight struct {
	Now     Recording
	Crashes []Recording // newest first, at most five
}

// A Recording holds the last communication with one QEMU process.
type Recording struct {
	At       time.Time // time of the crash; of the newest message if the VM is running
	PID      int
	Exit     string    // how the process ended, such as "signal: killed"; empty if it runs or if unknown
	Messages []Message // on the monitor, oldest first, at most 200
	Serial   string    // the end of the output of the guest to its console
	Stderr   string    // the end of the stderr of QEMU
}

// A Message is one line on the monitor of a VM.
type Message struct {
	At   time.Time `json:"at"`
	Dir  string    `json:"dir"`  // "command", "reply" or "event"
	Text string    `json:"text"` // the JSON text, truncated after 2 KiB
}

// Report records a step of a running operation. It does not block on I/O.
type Report func(step, message string)

// StopOptions are the options of a stop.
type StopOptions struct {
	Force   bool          // end the process without asking the guest
	Timeout time.Duration // time for the guest to power off before the process is ended

	// OwnTimeout replaces Timeout by that of the VM. HostShutdown follows the VM's
	// [Shutdown].Action and keeps its desired state. [VM.Resolve] does both.
	OwnTimeout   bool
	HostShutdown bool
}
