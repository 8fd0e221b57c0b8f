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
	MaxDiskMiB = 16 << 20              // 16 TiB
	MaxDisks   = 24                    // data disks on one VM
	DefaultMiB = int64(10) * MiBPerGiB // of a root disk when nothing is said
	MiBPerGiB  = 1024
)

// DiskState is where a data disk is in its life.
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
var DiskStates = []DiskState{DiskCreating, DiskAvailable, DiskAttaching, DiskAttached, DiskDetaching, DiskError}

// Transitional reports whether s is a recorded intent and not a settled state.
func (s DiskState) Transitional() bool {
	return s == DiskCreating || s == DiskAttaching || s == DiskDetaching
}

// A Disk is a data disk: it outlives the VMs it is attached to.
type Disk struct {
	Seq int64  // order of creation, unique; set by the store
	ID  string // a DNS label of at most 20 characters: it is the serial the guest reads
	DiskFile
	MountPoint string // the wished or the present slot, such as /dev/sdb; may be empty
	State      DiskState
	Reason     string // why, in words, when State is error or detaching; may be empty
	VMID       string // of the VM it is attached to, empty when available
	CreatedAt  time.Time
	UpdatedAt  time.Time
	Revision   int64 // goes up with every change; set by the store
}

// Version returns the recorded version of the disk.
func (d Disk) Version() Version { return Version{d.Seq, d.Revision} }

// GuestDevice returns the path under which a Linux guest always finds the disk,
// whatever order its kernel found its disks in: the link udev makes of the
// vendor, the model and the serial that scsi-hd reports.
func (d Disk) GuestDevice() string {
	if d.VMID == "" {
		return ""
	}
	return "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_" + d.ID
}

// NotAvailable returns the [Fault] that says that d is not available.
func (d Disk) NotAvailable() *Fault {
	return &Fault{Code: CodeState, Detail: fmt.Sprintf("disk %s is not available: it is in state %s", d.ID, d.State)}
}

// Released returns the update that detaches d from its VM and makes it available.
func (d Disk) Released() DiskUpdate {
	from := d.State
	d.State, d.VMID, d.MountPoint, d.Reason = DiskAvailable, "", "", ""
	return DiskUpdate{From: from, Disk: d}
}

// A DiskFile is the file behind a data disk or a VM's root disk, as it is made.
type DiskFile struct {
	SizeMiB int64
	// Image is the name of the image it was made of, empty for none. It is only
	// said: by now there may be none of that name, or another one.
	Image string
	// Base is what it is a copy-on-write overlay of: content of images (see
	// [ContentBase]) or the absolute path of the operator's boot image; empty for
	// nothing.
	Base       string
	BaseFormat string // what Base is laid out as, one of [ImageFormats] but iso; empty without a base
}

const contentPrefix = "sha256:"

var contentPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ContentBase returns what [DiskFile].Base has for the content of images that has
// this SHA-256.
func ContentBase(sha256 string) string { return contentPrefix + sha256 }

// Content returns the SHA-256 of the content of images that f is an overlay of, and
// false if it is none.
func (f DiskFile) Content() (sha256 string, ok bool) {
	sha256, ok = strings.CutPrefix(f.Base, contentPrefix)
	return sha256, ok && ValidContent(sha256)
}

// ValidContent reports whether s can be the SHA-256 of content: 64 hexadecimal
// digits in lower case.
func ValidContent(s string) bool { return contentPattern.MatchString(s) }

// A CopySource is what the file of a new disk gets a copy of, with all that it is
// based on.
type CopySource struct {
	// Resource is a data disk, a VM that does not run (its root disk is meant), or zero:
	// then the source is the image content that File is an overlay of.
	Resource Resource
	File     DiskFile
}

// A NewDisk is what is asked of a data disk to make.
type NewDisk struct {
	SizeMiB    int64  // 0: that of what it is made of
	MountPoint string // where it is to be attached, later; may be empty
	Image      string // that it is an overlay of; empty for none
	FromDisk   string // the id of a data disk that is not attached, or of a stopped VM, to copy; empty for none
}

func (n NewDisk) Check() error {
	if n.Image != "" && n.FromDisk != "" {
		return InvalidField("/from_disk", "give either image or from_disk")
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

func CheckDiskSize(mib int64, field string) error {
	if mib < 1 || mib > MaxDiskMiB {
		return InvalidField(field, "must be 1 MiB to %d GiB", MaxDiskMiB/MiBPerGiB)
	}
	return nil
}

var mountPointPattern = regexp.MustCompile(`^/dev/(?:xvd|vd|sd)([b-z])$`)

// Slot returns the place on the virtio-scsi bus that a mount point stands for,
// its LUN: 1 for b to 25 for z. It reports false for what is not a mount point.
func Slot(mountPoint string) (lun int, ok bool) {
	m := mountPointPattern.FindStringSubmatch(mountPoint)
	if m == nil {
		return 0, false
	}
	return int(m[1][0] - 'a'), true
}

// PlaceDisk returns the mount point for a disk on a VM that already has the
// disks taken: wish if it is free, and the lowest free one if wish is empty.
func (v VM) PlaceDisk(wish string, taken []Disk) (string, error) {
	if len(taken) >= MaxDisks {
		return "", &Fault{Code: CodeLimitReached, Detail: fmt.Sprintf("vm %s already has %d data disks, the most there can be", v.ID, len(taken)),
			Hint: "detach a disk first"}
	}
	owner := make(map[int]string, len(taken))
	for _, d := range taken {
		if lun, ok := Slot(d.MountPoint); ok {
			owner[lun] = d.ID
		}
	}
	if wish == "" {
		for lun := 1; ; lun++ {
			if owner[lun] == "" {
				return fmt.Sprintf("/dev/sd%c", 'a'+lun), nil
			}
		}
	}
	lun, ok := Slot(wish)
	if !ok {
		return "", InvalidField("/mount_point", "%q is not a mount point: use /dev/sdb to /dev/sdz, or the same with vd or xvd", wish)
	}
	if owner[lun] != "" {
		return "", &Fault{Code: CodeInUse, Detail: fmt.Sprintf("mount point %s of vm %s is in use by disk %s", wish, v.ID, owner[lun]),
			Hint: "leave mount_point out to get the next free one"}
	}
	return wish, nil
}

// A DiskVerdict is what is really true of a disk.
type DiskVerdict struct {
	State  DiskState
	Detach bool // the disk is no longer its VM's: forget vm_id and mount_point
	Remove bool // it was never finished: remove its file and its row
	Unplug bool // QEMU still has it and should not: ask again
}

// SettleDisk returns the state a disk is really in, given what is recorded and
// what the host shows of the VM it is recorded on. A VM that does not run has
// nothing plugged, and its attached disks are there at its next start.
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
