package vm

import (
	"fmt"
	"regexp"
	"slices"
	"time"
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

// GuestDevice returns the path under which a Linux guest always finds the disk,
// whatever order its kernel found its disks in: the link udev makes of the
// vendor, the model and the serial that scsi-hd reports.
func (d Disk) GuestDevice() string {
	if d.VMID == "" {
		return ""
	}
	return "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_" + d.ID
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
func PlaceDisk(vmID, wish string, taken []Disk) (string, error) {
	if len(taken) >= MaxDisks {
		return "", &Fault{Code: CodeLimitReached, Detail: fmt.Sprintf("vm %s already has %d data disks, the most there can be", vmID, len(taken)),
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
		return "", &Fault{Code: CodeInUse, Detail: fmt.Sprintf("mount point %s of vm %s is in use by disk %s", wish, vmID, owner[lun]),
			Hint: "leave mount_point out to get the next free one"}
	}
	return wish, nil
}

// SettleNICs returns the NICs that a VM really has, given what is recorded and
// what the host shows, and the slots that QEMU still has and should not. A NIC
// that was being attached and is not there never came to be.
func SettleNICs(recorded []NIC, seen Observation) (have []NIC, unplug []int) {
	unknown := seen.Alive() && seen.NICs == nil
	for _, n := range recorded {
		plugged := slices.Contains(seen.NICs, n.Slot)
		switch {
		case n.State == NICAttached || unknown:
		case n.State == NICAttaching && plugged:
			n.State = NICAttached
		case n.State == NICDetaching && plugged:
			unplug = append(unplug, n.Slot)
		default:
			continue
		}
		have = append(have, n)
	}
	return have, unplug
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
