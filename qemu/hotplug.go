package qemu

import (
	"context"
	"slices"

	"vmand/failpoint"
	"vmand/vm"
)

// AttachDisk implements [vm.Plugger].
func (d *Driver) AttachDisk(ctx context.Context, disk vm.Disk) error {
	scsi, err := diskSCSI(disk)
	if err != nil {
		return err
	}
	s, err := d.live(disk.VMID)
	if err != nil {
		return err
	}
	plugged, err := s.pluggedDisks(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(plugged, disk.ID) {
		return nil
	}
	// An interrupted attempt may have left a node without a device. QEMU
	// answers GenericError both when there is none and when it is in use; if it is
	// in use, adding it fails too.
	if err := s.blockdevDel(ctx, diskNode(disk.ID)); err != nil && !isRefused(err) {
		return err
	}
	if err := s.blockdevAdd(ctx, diskNodes(disk, d.layout)); err != nil {
		return err
	}
	failpoint.Hit("plug.node-added")
	if err := s.addDrive(ctx, scsi); err != nil {
		return err
	}
	failpoint.Hit("plug.device-added")
	return nil
}

// addDrive adds the device of a disk or CD-ROM drive after its block node. If QEMU
// refuses the device, the node is removed. If the outcome is unknown, the node
// stays, for the next attempt or Settle.
func (s *session) addDrive(ctx context.Context, scsi device) error {
	err := s.deviceAdd(ctx, scsi)
	if !isRefused(err) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()
	if err := s.blockdevDel(ctx, scsi.Drive); err != nil {
		s.log.Warn("cannot remove a block node without a device", "node", scsi.Drive, "err", err)
	}
	return err
}

// DetachDisk implements [vm.Plugger].
func (d *Driver) DetachDisk(ctx context.Context, disk vm.Disk) error {
	node, name := diskNode(disk.ID), "disk "+disk.ID
	return d.unplug(ctx, disk.VMID, unplugging{
		device: diskDevice(disk.ID),
		name:   name,
		removeBackend: func(ctx context.Context, s *session) error {
			if err := s.removeNode(ctx, node, name); err != nil {
				return err
			}
			s.forgetDamage(node)
			return nil
		},
		deviceDeleted:  func() { failpoint.Hit("unplug.device-deleted") },
		backendDeleted: func() { failpoint.Hit("unplug.node-deleted") },
	})
}
