package qemu

import (
	"context"
	"errors"
	"slices"
	"time"

	"vmand/failpoint"
	"vmand/qemu/qmp"
	"vmand/vm"
)

// AttachDisk implements [vm.Driver].
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
	// A node without a device is left of an attempt that was cut short. QEMU
	// says GenericError both when there is none and when it is in use; in that
	// case adding it fails too.
	if err := s.blockdevDel(ctx, diskNode(disk.ID)); err != nil && !isRefused(err) {
		return err
	}
	if err := s.blockdevAdd(ctx, diskNodes(disk, d.layout)); err != nil {
		return err
	}
	failpoint.Hit("plug.node-added")
	if err := s.deviceAdd(ctx, scsi); err != nil {
		undo(s, diskNode(disk.ID), err)
		return err
	}
	failpoint.Hit("plug.device-added")
	return nil
}

// undo removes the node of a device that QEMU refused. If it is not known what
// became of the device, the node is left for the next look to settle.
func undo(s *session, node string, cause error) {
	if !isRefused(cause) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	if err := s.blockdevDel(ctx, node); err != nil {
		s.log.Warn("a block node without a device stays", "node", node, "error", err)
	}
}

// DetachDisk implements [vm.Driver].
func (d *Driver) DetachDisk(ctx context.Context, disk vm.Disk) error {
	s, err := d.session(disk.VMID)
	if err != nil {
		return fault(vm.CodeOperationFailed, err, "look for the QEMU process of vm %s", disk.VMID)
	}
	if s == nil {
		return nil // with the process, everything was unplugged
	}
	if err := s.detach(ctx, disk); err != nil && !s.proc.Exited() {
		return err
	}
	return nil
}

func (s *session) detach(ctx context.Context, disk vm.Disk) error {
	status, err := s.queryStatus(ctx)
	if err != nil {
		return err
	}
	if status == vm.StatusPrelaunch {
		// QEMU would note the wish and forget it: the device could then only
		// be removed by a reset.
		return fault(vm.CodeUnavailable, nil, "vm %s has not begun to run: disk %s cannot be unplugged yet", s.id, disk.ID)
	}
	name := "disk " + disk.ID
	if err := s.unplug(ctx, diskDevice(disk.ID), name); err != nil {
		return err
	}
	failpoint.Hit("unplug.device-deleted")
	if err := s.removeNode(ctx, diskNode(disk.ID), name); err != nil {
		return err
	}
	failpoint.Hit("unplug.node-deleted")
	s.forgetDamage(diskNode(disk.ID))
	return nil
}

// removeNode removes the node of a device that is gone, with those below it. What
// is not there is gone.
func (s *session) removeNode(ctx context.Context, node, name string) error {
	err := s.blockdevDel(ctx, node)
	if err == nil {
		return nil
	}
	switch has, lookErr := s.hasNode(ctx, node); {
	case lookErr == nil && has && isRefused(err):
		return heldFault(s.id, name, err)
	case lookErr != nil || has:
		return err
	}
	return nil
}

// heldFault says that a disk or a drive, called name, is no more the guest's and not yet ours. QEMU 7.2
// forgets to let go of a SCSI disk that was busy when the guest was reset.
func heldFault(vmID, name string, err error) error {
	f := fault(vm.CodeQEMUUnresponsive, err, "QEMU of vm %s has taken %s from the guest and does not let go of its file", vmID, name)
	f.Hint = "stop or restart the VM: the file is free then"
	return f
}

// unplug removes a device on the SCSI bus, called name, and waits until it is gone.
// What is not there is gone.
func (s *session) unplug(ctx context.Context, device, name string) error {
	const command = "device_del"
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	conn, err := s.monitor(ctx)
	if err != nil {
		return monitorFault(s.id, command, err)
	}
	// Devices inside a device report their end too, under a path and no id.
	deleted := conn.Expect(func(e qmp.Event) bool { return e.Event == "DEVICE_DELETED" && e.Data["device"] == device })
	defer deleted.Cancel()
	err = s.execute(ctx, queryTimeout, command, map[string]string{"id": device}, nil)
	switch {
	case refusedWith(err, qmp.DeviceNotFound):
		return nil
	case err != nil && !isRefused(err):
		return err
	case err != nil:
		// It may be refused because it is on its way out already: only the
		// event or the lack of the device tells.
		ctx, cancel = context.WithTimeout(ctx, queryTimeout)
		defer cancel()
		if _, waitErr := deleted.Wait(ctx); waitErr == nil {
			return nil
		}
		return err
	}
	return s.awaitUnplugged(ctx, deleted, device, name)
}

// lookInterval is how long to wait for the event that says that a device is gone
// before looking for the device.
const lookInterval = time.Second

// awaitUnplugged waits for the event that ends an unplugging. A device that is
// not there any more, without it, is one that QEMU has lost and will not free.
func (s *session) awaitUnplugged(ctx context.Context, deleted *qmp.Expectation, device, name string) error {
	for lost := false; ; {
		round, cancel := context.WithTimeout(ctx, lookInterval)
		_, err := deleted.Wait(round)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return monitorFault(s.id, "that "+name+" is unplugged", err)
		case lost:
			return heldFault(s.id, name, err)
		}
		has, err := s.peripherals(ctx)
		lost = err == nil && !slices.Contains(has.names, device)
	}
}

func isRefused(err error) bool {
	var refused *qmp.Error
	return errors.As(err, &refused)
}
