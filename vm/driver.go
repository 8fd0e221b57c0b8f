package vm

import (
	"context"
	"io"
	"time"
)

// Driver runs VMs on the host and keeps their files. Every method returns at the
// latest when ctx is done, and none takes a lock of the manager's. The manager
// never calls two methods that change the same VM at once.
//
// It is the sum of what its consumers need: take the narrowest part.
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
	// Platform says what VMs will run on. It asks QEMU once and remembers. It
	// fails with a [Fault] of code [CodeQEMUUnavailable] that names the package
	// to install.
	Platform(ctx context.Context) (Platform, error)
	// Admit reports whether the host could start s now: no process of the VM is
	// left over ([CodeState]), enough memory is available
	// ([CodeInsufficientMemory], with the numbers), its files exist.
	Admit(ctx context.Context, s Spec) error

	// Start launches QEMU for s and lets the guest run. It returns when QEMU was
	// spawned and when its monitor answered. On an error a process
	// may be left; the caller observes and settles.
	Start(ctx context.Context, s Spec, report Report) (Boot, error)
	// Shutdown asks the guest to power off and, after o.Timeout or at once with
	// o.Force, ends the process by harder and harder means. It returns nil when
	// no process is left.
	Shutdown(ctx context.Context, id string, o StopOptions, report Report) error
	// Pause, Resume and Reset change what the guest does. Reset also lets it run.
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Reset(ctx context.Context, id string) error
}

// Plugger changes the devices of running VMs.
type Plugger interface {
	// AttachDisk plugs d into the running VM d.VMID, at the slot of its mount
	// point. Plugging what is already plugged succeeds.
	AttachDisk(ctx context.Context, d Disk) error
	// DetachDisk unplugs d from the running VM d.VMID. Unplugging what is not
	// plugged succeeds. An error of class [ErrUnavailable] means that the guest
	// or QEMU has not let go yet.
	DetachDisk(ctx context.Context, d Disk) error
	// AttachNIC plugs a NIC into the running VM; its files may be closed
	// afterwards. Plugging what is already plugged succeeds.
	AttachNIC(ctx context.Context, vmID string, p Port) error
	// DetachNIC unplugs the NIC in a slot of the running VM, which needs the
	// guest's help. Unplugging what is not plugged succeeds. An error of class
	// [ErrUnavailable] means that the guest or QEMU has not let go yet.
	DetachNIC(ctx context.Context, vmID string, slot int) error
	// SetLink pulls or puts in the cable of a NIC of the running VM.
	SetLink(ctx context.Context, vmID string, slot int, up bool) error
	// SetForwards makes the user-mode NIC in a slot of the running VM listen for
	// the forwards in want, and no more for the others in had. It fails with
	// [CodeState] if that has to wait for the next start.
	SetForwards(ctx context.Context, vmID string, slot int, had, want []PortForward) error

	// SetCDROMs makes the drives of the running VM those in want, by id and content,
	// and no others. What a guest reads from a drive that goes is lost to it.
	SetCDROMs(ctx context.Context, vmID string, want []CDROM) error
}

// Files keeps the files of VMs and of data disks.
type Files interface {
	// HasVM reports whether files of a VM of this id exist, whoever made them: a
	// new VM must never take over those of one that the records have forgotten.
	HasVM(ctx context.Context, id string) (bool, error)
	// CreateVM makes the VM's directory and its root disk, durably; on an error
	// nothing of its own is left. DeleteVM removes all files of the VM, also
	// those of one that was never finished, and succeeds if there are none.
	// The root disk is empty or an overlay; with from it is a copy of that.
	CreateVM(ctx context.Context, id string, root DiskFile, from *CopySource, progress func(done, total int64)) error
	DeleteVM(ctx context.Context, id string) error
	// CreateDisk makes the file of a data disk, durably, as CreateVM makes a root
	// disk; on an error nothing is left. Both fail with [CodeInsufficientStorage]
	// when there is no room.
	CreateDisk(ctx context.Context, id string, file DiskFile, from *CopySource, progress func(done, total int64)) error
	// DeleteDisk removes a disk's file and succeeds if there is none.
	DeleteDisk(ctx context.Context, id string) error
	// DiskSize returns the size in MiB that a data disk's file really has. It
	// fails with a [Fault] of class [ErrNotFound] if there is no file.
	DiskSize(ctx context.Context, id string) (int64, error)
	// ResizeDisk grows d, plugged or not, to sizeMiB. It is [CodeInvalid] to
	// shrink it.
	ResizeDisk(ctx context.Context, d Disk, sizeMiB int64) error

	// WriteSeed makes the ISO image of a VM's seed, of files by name, durably. A QEMU
	// that runs keeps the one it has.
	WriteSeed(ctx context.Context, vmID string, files map[string][]byte) error

	// AdoptDisk returns what the header of a data disk's file says. It fails with a
	// [Fault] of class [ErrNotFound] if there is no file.
	AdoptDisk(ctx context.Context, id string) (DiskFile, error)
	// AdoptVM returns what can be known of files and a process of a VM that
	// nobody has recorded: its UUID, empty if no process says it, and its root
	// disk.
	AdoptVM(ctx context.Context, id string) (uuid string, root DiskFile, err error)
}

// Consoles connects to the serial consoles of VMs.
type Consoles interface {
	// Console joins the serial console of a running VM. It fails with [CodeBusy] if
	// another connection types and o does not take over.
	Console(ctx context.Context, id string, o ConsoleOptions) (Console, error)
	// ConsoleLog returns what the guest of a VM, running or not, wrote to its console,
	// as far as it is kept, from offset on, and the offset of its end. A negative
	// offset counts from the end.
	ConsoleLog(ctx context.Context, id string, offset int64) (log io.ReadCloser, end int64, err error)
}

// Host shows what runs on the host and what is on its disks.
type Host interface {
	// Observe looks at one VM. It never fails: what cannot be seen is left
	// empty. With the process alive it also asks which data disks are plugged.
	Observe(ctx context.Context, id string) Observation
	// Survey looks at the whole host: cheap, no process spawned, one mute VM
	// delays no other.
	Survey(ctx context.Context) (Survey, error)
	// Flight returns the recorder's report on a VM: what was said on its
	// monitor, its console's end and QEMU's stderr, now and at its last crashes.
	Flight(ctx context.Context, id string) (Flight, error)
}

// A Spec is everything the driver needs to know to start a VM.
type Spec struct {
	ID       string
	UUID     string
	CPUCount int
	RAMMiB   int
	Machine  string
	Accel    Accel
	Root     DiskFile
	Disks    []Disk // in order of their slots
	CDROMs   []CDROM
	Ports    []Port // in order of their slots; QEMU gets copies of their files
}

// A Platform is what VMs run on.
type Platform struct {
	Version string // of QEMU, such as "7.2.22"
	Machine string // the newest versioned machine type, for new VMs
	Accel   Accel
	Warning string // why KVM is not used although it was wanted; empty if all is well
}

// A Survey is what the host shows at one moment.
type Survey struct {
	VMs       map[string]Observation // by id: every VM that has a process
	VMFiles   map[string]bool        // ids of the VMs that have files; true if the root disk is there
	DiskFiles map[string]int64       // ids of the data disks that have a file, and its size in MiB as the guest sees it; 0 if it cannot be read
	Images    map[string]int64       // SHA-256 of the content of images there is, and its size in bytes
	Storage   Storage
}

// Storage is how much room the file system of the VMs' disks has.
type Storage struct {
	Path             string
	FreeMiB, SizeMiB int64
}

// A Flight is what the black-box recorder of a VM has.
type Flight struct {
	Now     Recording
	Crashes []Recording // newest first, at most five
}

// A Recording is what was last said by and to a QEMU.
type Recording struct {
	At       time.Time // of the crash; of the newest message for a VM that runs
	PID      int
	Exit     string    // how the process ended, such as "signal: killed"; empty while it runs or if unknown
	Messages []Message // on the monitor, oldest first, at most 200
	Serial   string    // the end of what the guest wrote to its console
	Stderr   string    // the end of what QEMU wrote
}

// A Message is one line on a VM's monitor.
type Message struct {
	At   time.Time `json:"at"`
	Dir  string    `json:"dir"`  // "command", "reply" or "event"
	Text string    `json:"text"` // JSON as it was, cut off after 2 KiB
}

// Report tells the steps of an operation as they happen.
type Report func(step, message string)

// StopOptions say how patient a stop is.
type StopOptions struct {
	Force   bool          // do not ask the guest
	Timeout time.Duration // for the guest to power off, before it is forced
}

// DefaultStopTimeout is how long a guest may take to power off when the caller
// does not say.
const DefaultStopTimeout = 60 * time.Second
