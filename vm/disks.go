package vm

import (
	"fmt"
)

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

func NotAvailable(d Disk) *Fault {
	return &Fault{Code: CodeState, Detail: fmt.Sprintf("disk %s is not available: it is in state %s", d.ID, d.State)}
}

// Live reports whether v has a QEMU to plug disks into.
func Live(v VM) bool { return v.State == Running || v.State == Paused }

// Release returns the update that gives a disk free.
func Release(d Disk) DiskUpdate {
	from := d.State
	d.State, d.VMID, d.MountPoint, d.Reason = DiskAvailable, "", "", ""
	return DiskUpdate{From: from, Disk: d}
}
