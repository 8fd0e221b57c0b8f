package vm

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Limits of disks.
const (
	MaxDiskMiB = 16 << 20              // 16 TiB in MiB
	MaxDisks   = 24                    // data disks on one VM
	DefaultMiB = int64(10) * MiBPerGiB // size of a root disk if the request gives none
	MiBPerGiB  = 1024
)

// DiskState is the state of a data disk.
type DiskState string

// The states of a disk. Creating, Attaching and Detaching are recorded intents.
const (
	DiskCreating  DiskState = "creating"
	DiskAvailable DiskState = "available"
	DiskAttaching DiskState = "attaching"
	DiskAttached  DiskState = "attached"
	DiskDetaching DiskState = "detaching"
	DiskError     DiskState = "error"
)

// DiskStates lists every state of a disk.
var DiskStates = []DiskState{
	DiskCreating,
	DiskAvailable,
	DiskAttaching,
	DiskAttached,
	DiskDetaching,
	DiskError,
}

// Transitional reports whether s is a recorded intent and not a settled state.
func (s DiskState) Transitional() bool {
	return s == DiskCreating || s == DiskAttaching || s == DiskDetaching
}

// A Disk is the record of a data disk. It outlives the VMs that it is attached to.
type Disk struct {
	Seq int64  // order of creation, unique; set by the store
	ID  string // a DNS label of at most 20 characters: it is the serial number that the guest reads
	DiskFile
	MountPoint string // the slot, such as /dev/sdb; while the disk is available, the requested one; may be empty
	State      DiskState
	// Reason is free text, set when State is error or detaching, and when it is available
	// and its content may not be complete; may be empty.
	Reason    string
	VMID      string // the VM that the disk is attached to; empty when available
	CreatedAt time.Time
	UpdatedAt time.Time
	Revision  int64 // increases with every change; set by the store
}

// Version returns the recorded version of d.
func (d Disk) Version() Version { return Version{d.Seq, d.Revision} }

// GuestDevice returns the path of the device of d in a Linux guest, or "" if d is not
// attached. The path does not depend on the order in which the kernel found the disks: it is
// the link that udev makes from the vendor, the model and the serial number that scsi-hd
// reports.
func (d Disk) GuestDevice() string {
	if d.VMID == "" {
		return ""
	}
	return "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_" + d.ID
}

// NotAvailable returns a [Fault] of code [CodeState] that says that d is not available.
func (d Disk) NotAvailable() *Fault {
	return &Fault{
		Code:   CodeState,
		Detail: fmt.Sprintf("disk %s is not available: its state is %s", d.ID, d.State),
	}
}

// DetachOptions are the options of a detach from a running VM.
type DetachOptions struct {
	Sync  bool // have the guest flush the file systems of the disk first
	Force bool // detach the disk although it is mounted or the guest cannot be asked
}

// Released returns the update that detaches d from its VM and makes it available. doubt says
// why the content of d may not be complete; empty if it is.
func (d Disk) Released(doubt string) DiskUpdate {
	from := d.State
	d.State, d.VMID, d.MountPoint, d.Reason = DiskAvailable, "", "", doubt
	return DiskUpdate{From: from, Disk: d}
}

// A DiskFile describes the file of a data disk or of the root disk of a VM.
type DiskFile struct {
	SizeMiB int64 // rounded up
	// ShortBytes is how many bytes the disk is smaller than SizeMiB, less than 1 MiB. A disk
	// has the exact size of its image, unless the request gives one: another size would move
	// the end of the disk away from the second copy of its partition table.
	ShortBytes int64
	// Image is the name of the image that the file was created from, empty for none. It is
	// informative: the image may have been deleted or replaced since.
	Image string
	// Base is the backing file of a copy-on-write overlay: image content (see
	// [ContentBase]) or the absolute path of the boot image of the daemon. It is empty if
	// the file is not an overlay.
	Base       string
	BaseFormat string // the format of Base, one of [ImageFormats] except iso; empty without a base
}

// Bytes returns the size of the disk in bytes.
func (f DiskFile) Bytes() int64 { return f.SizeMiB*bytesPerMiB - f.ShortBytes }

// SetBytes sets the size of the disk in bytes.
func (f *DiskFile) SetBytes(n int64) { f.SizeMiB, f.ShortBytes = splitMiB(n) }

// bytesPerMiB is the number of bytes in a MiB.
const bytesPerMiB = 1 << 20

// splitMiB returns n bytes in MiB, rounded up, and how many bytes less they are.
func splitMiB(n int64) (mib, short int64) {
	mib = (n + bytesPerMiB - 1) / bytesPerMiB
	return mib, mib*bytesPerMiB - n
}

// formatSize returns a size in bytes for an error: in GiB if it is a whole number of MiB.
func formatSize(bytes int64) string {
	if bytes%bytesPerMiB != 0 {
		return fmt.Sprintf("%d bytes", bytes)
	}
	return fmt.Sprintf("%g GiB", float64(bytes/bytesPerMiB)/MiBPerGiB)
}

const contentPrefix = "sha256:"

var contentPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ContentBase returns the value of [DiskFile].Base for the image content with the given
// SHA-256.
func ContentBase(sha256 string) string { return contentPrefix + sha256 }

// Content returns the SHA-256 of the image content that f is an overlay of. ok is false if
// the base of f is not image content.
func (f DiskFile) Content() (sha256 string, ok bool) {
	sha256, ok = strings.CutPrefix(f.Base, contentPrefix)
	return sha256, ok && ValidContent(sha256)
}

// ValidContent reports whether s has the form of a SHA-256: 64 hexadecimal digits in lower
// case.
func ValidContent(s string) bool { return contentPattern.MatchString(s) }

// A CopySource is the source of a full copy, including the data in its backing files.
type CopySource struct {
	// Resource is a data disk, or a VM that does not run, the root disk of which is copied. If
	// it is zero, the source is the image content that File is an overlay of.
	Resource Resource
	File     DiskFile
}

// A NewDisk is a request to create a data disk.
type NewDisk struct {
	SizeMiB    int64  // 0: the size of the image or the copied disk
	MountPoint string // the slot for a later attach; may be empty
	Image      string // the image that the disk is an overlay of; empty for none
	FromDisk   string // the disk to copy: the id of a detached data disk or of a stopped VM; empty for none
}

// Check returns a [Fault] of code [CodeInvalid] if n is invalid regardless of the records.
func (n NewDisk) Check() error {
	if n.Image != "" && n.FromDisk != "" {
		return InvalidField("/from_disk", "image and from_disk exclude each other")
	}
	if n.SizeMiB != 0 || n.Image == "" && n.FromDisk == "" {
		if err := CheckDiskSize(n.SizeMiB, "/size"); err != nil {
			return err
		}
	}
	if _, ok := Slot(n.MountPoint); n.MountPoint != "" && !ok {
		return InvalidField("/mount_point", "must be /dev/sdb to /dev/sdz, or the same with vd or xvd")
	}
	return nil
}

// CheckDiskSize returns a [Fault] of code [CodeInvalid] for the given field of the request
// if a disk cannot have a size of mib MiB.
func CheckDiskSize(mib int64, field string) error {
	if mib < 1 || mib > MaxDiskMiB {
		return InvalidField(field, "must be 1 MiB to %d GiB", MaxDiskMiB/MiBPerGiB)
	}
	return nil
}

var mountPointPattern = regexp.MustCompile(`^/dev/(?:xvd|vd|sd)([b-z])$`)

// Slot returns the LUN on the virtio-scsi bus that a mount point names: 1 for b to 25 for z.
// ok is false if mountPoint is not a mount point.
func Slot(mountPoint string) (lun int, ok bool) {
	m := mountPointPattern.FindStringSubmatch(mountPoint)
	if m == nil {
		return 0, false
	}
	return int(m[1][0] - 'a'), true
}

// PlaceDisk returns the mount point for a further disk of v: mountPoint if that slot is
// free, or the lowest free slot if mountPoint is empty. attached are the disks that v has.
// It fails with [CodeLimitReached], [CodeInvalid] or [CodeInUse].
func (v VM) PlaceDisk(mountPoint string, attached []Disk) (string, error) {
	if len(attached) >= MaxDisks {
		return "", &Fault{
			Code:   CodeLimitReached,
			Detail: fmt.Sprintf("VM %s already has %d data disks, the maximum", v.ID, len(attached)),
			Hint:   "detach a disk first",
		}
	}
	owner := make(map[int]string, len(attached))
	for _, d := range attached {
		if lun, ok := Slot(d.MountPoint); ok {
			owner[lun] = d.ID
		}
	}
	if mountPoint == "" {
		for lun := 1; ; lun++ {
			if owner[lun] == "" {
				return fmt.Sprintf("/dev/sd%c", 'a'+lun), nil
			}
		}
	}
	lun, ok := Slot(mountPoint)
	if !ok {
		return "", InvalidField("/mount_point",
			"%q is not a mount point: use /dev/sdb to /dev/sdz, or the same with vd or xvd", mountPoint)
	}
	if owner[lun] != "" {
		return "", &Fault{
			Code:   CodeInUse,
			Detail: fmt.Sprintf("mount point %s of VM %s is in use by disk %s", mountPoint, v.ID, owner[lun]),
			Hint:   "omit mount_point to get the lowest free one",
		}
	}
	return mountPoint, nil
}

// A DiskVerdict is the true state of a disk and the actions that it needs.
type DiskVerdict struct {
	State  DiskState
	Detach bool // clear VMID and MountPoint: the disk does not belong to its VM any longer
	Remove bool // delete the file and the record: the creation never finished
	Unplug bool // repeat the unplug: QEMU still has the disk
}

// SettleDisk returns the true state of a disk, given its record and an observation of the VM
// that it is recorded on. A VM without a process has no plugged disks; its attached disks
// stay attached and are plugged at its next start.
func SettleDisk(recorded Disk, seen Observation) DiskVerdict {
	plugged := slices.Contains(seen.Plugged, recorded.ID)
	unknown := seen.Alive() && seen.Plugged == nil
	switch recorded.State {
	case DiskCreating:
		return DiskVerdict{State: DiskCreating, Remove: true}
	case DiskAttaching:
		switch {
		case plugged:
			return DiskVerdict{State: DiskAttached}
		case unknown:
			return DiskVerdict{State: DiskAttaching}
		}
		return DiskVerdict{State: DiskAvailable, Detach: true}
	case DiskDetaching:
		if plugged || unknown {
			return DiskVerdict{State: DiskDetaching, Unplug: plugged}
		}
		return DiskVerdict{State: DiskAvailable, Detach: true}
	}
	return DiskVerdict{State: recorded.State}
}
