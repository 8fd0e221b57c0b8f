package qemu

import (
	"context"
	"slices"
	"strings"

	"vmand/qemu/qga"
	"vmand/vm"
)

// filesystem converts a file system that an agent reports.
func filesystem(f qga.Filesystem) vm.GuestFilesystem {
	g := vm.GuestFilesystem{
		MountPoint: f.MountPoint,
		Type:       f.Type,
		UsedBytes:  f.UsedBytes,
		TotalBytes: f.TotalBytes,
	}
	for _, d := range f.Disks {
		if d.Serial != "" {
			g.Disks = append(g.Disks, d.Serial)
		}
	}
	return g
}

// Mounts implements [vm.Guests].
func (d *Driver) Mounts(ctx context.Context, disk vm.Disk) ([]vm.GuestMount, error) {
	a, err := d.reachable(ctx, disk.VMID)
	if err != nil {
		return nil, err
	}
	all, err := a.client.Filesystems(ctx)
	if err != nil {
		return nil, a.done(err)
	}
	var mounts []vm.GuestMount
	for _, f := range all {
		for _, on := range f.Disks {
			if isDisk(on, disk) {
				mounts = append(mounts, vm.GuestMount{MountPoint: f.MountPoint, Device: f.Device})
				break
			}
		}
	}
	slices.SortFunc(mounts, func(a, b vm.GuestMount) int { return strings.Compare(a.MountPoint, b.MountPoint) })
	return mounts, nil
}

// isDisk reports whether a disk that an agent reports is a data disk, which diskSCSI
// describes. An agent knows the serial number only with udev, which puts the vendor and
// the model before it, and always knows the address.
func isDisk(on qga.Disk, disk vm.Disk) bool {
	if on.Serial == disk.ID || strings.HasSuffix(on.Serial, "_"+disk.ID) {
		return true
	}
	lun, ok := vm.Slot(disk.MountPoint)
	return ok && on.BusType == "scsi" && on.PCI == qga.Address{Slot: scsiSlot} &&
		on.Bus == 0 && on.Target == 0 && on.Unit == lun
}
