package qemu

import (
	"context"
	"errors"
	"slices"
	"time"

	"vmand/qemu/qmp"
	"vmand/vm"
)

const (
	// nicTimeout is how long an operation waits for a guest to release a device. A
	// guest that listens needs 50 to 200 ms (measured with NICs); the others are
	// asked again later.
	nicTimeout = 10 * time.Second
	// lookInterval is how long to wait for the event that says that a device is
	// gone before looking for the device or asking again.
	lookInterval = time.Second
)

// An unplugging says how to remove a device from a running machine, with its
// backend: the half of the device that the host has, such as a block node.
type unplugging struct {
	device     string // its id in QEMU
	name       string // for messages, such as "disk data"
	needsGuest bool   // QEMU removes it only when the guest releases it

	// removeBackend removes the backend once the device is gone. It succeeds if
	// there is none.
	removeBackend func(context.Context, *session) error

	// Fail points.
	deviceDeleted, backendDeleted func()
}

// unplug removes a device and its backend from a VM. It succeeds if the VM has no
// process, or no process: the end of the process unplugs every device. An
// error of class [vm.ErrUnavailable] means that the guest or QEMU still has the
// device.
func (d *Driver) unplug(ctx context.Context, vmID string, u unplugging) error {
	s, err := d.session(vmID)
	if err != nil {
		return fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", vmID)
	}
	if s == nil {
		return nil
	}
	if err := s.unplug(ctx, u); err != nil && !s.proc.Exited() {
		return err
	}
	return nil
}

// unplug is the one protocol by which a device is unplugged: device_del, wait for
// the DEVICE_DELETED with its id, remove the backend. Every step succeeds if it
// was done before, so an interrupted attempt is finished by the next.
func (s *session) unplug(ctx context.Context, u unplugging) error {
	if err := s.checkBegun(ctx, u.name, "unplugged"); err != nil {
		return err
	}
	if err := s.removeDevice(ctx, u); err != nil {
		return err
	}
	u.deviceDeleted()
	return s.removeBackend(ctx, u)
}

func (s *session) removeBackend(ctx context.Context, u unplugging) error {
	if err := u.removeBackend(ctx, s); err != nil {
		return err
	}
	u.backendDeleted()
	return nil
}

// checkBegun fails if the guest has not begun to run. QEMU would accept a
// device_del then and forget it, and only a reset could remove the device; so
// nothing that a guest has to release is plugged either.
func (s *session) checkBegun(ctx context.Context, name, verb string) error {
	status, err := s.queryStatus(ctx)
	if err == nil && status == vm.StatusPrelaunch {
		return fault(vm.CodeUnavailable, nil, "VM %s has not begun to run: %s cannot be %s yet", s.id, name, verb)
	}
	return err
}

// removeDevice removes a device and waits until it is gone.
func (s *session) removeDevice(ctx context.Context, u unplugging) error {
	conn, err := s.monitor(ctx)
	if err != nil {
		return monitorFault(s.id, "device_del", err)
	}
	// Devices inside the device report their end too, under a path and no id.
	deleted := conn.Expect(func(e qmp.Event) bool {
		return e.Event == "DEVICE_DELETED" && e.Data["device"] == u.device
	})
	defer deleted.Cancel()
	if u.needsGuest {
		return s.removeFromGuest(ctx, u, deleted)
	}
	return s.removeFromQEMU(ctx, u, deleted)
}

// removeFromQEMU removes a device that needs no help of the guest's.
func (s *session) removeFromQEMU(ctx context.Context, u unplugging, deleted *qmp.Expectation) error {
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	err := s.deviceDel(ctx, u.device)
	switch {
	case refusedWith(err, qmp.DeviceNotFound):
		return nil
	case isRefused(err):
		// QEMU also refuses a device that it is removing: only the event shows the end.
		if s.awaitDeleted(ctx, deleted, queryTimeout) == nil {
			return nil
		}
		return err
	case err != nil:
		return err
	}
	for lost := false; ; {
		err := s.awaitDeleted(ctx, deleted, lookInterval)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return monitorFault(s.id, "that "+u.name+" is unplugged", err)
		case lost:
			return heldFault(s.id, u.name, err)
		}
		// A device that is gone without the event is one that QEMU will not free.
		has, err := s.peripherals(ctx)
		lost = err == nil && !slices.Contains(has.names, u.device)
	}
}

// removeFromGuest asks the guest to release a device, again and again, because a
// guest that boots ignores the first requests. A guest that does not run is asked
// but not waited for.
func (s *session) removeFromGuest(ctx context.Context, u unplugging, deleted *qmp.Expectation) error {
	patience, cancel := context.WithTimeout(ctx, nicTimeout)
	defer cancel()
	for {
		err := s.deviceDel(ctx, u.device)
		switch {
		case refusedWith(err, qmp.DeviceNotFound):
			return nil
		case err != nil && !isRefused(err): // refused: the guest is releasing it already
			return err
		}
		status, err := s.queryStatus(ctx)
		if err != nil {
			return err
		}
		if status != vm.StatusRunning {
			return keptFault(s.id, u.name, status)
		}
		err = s.awaitDeleted(patience, deleted, lookInterval)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, context.DeadlineExceeded):
			return monitorFault(s.id, "device_del", err)
		case patience.Err() != nil:
			return keptFault(s.id, u.name, status)
		}
	}
}

func (s *session) deviceDel(ctx context.Context, device string) error {
	return s.execute(ctx, queryTimeout, "device_del", map[string]string{"id": device}, nil)
}

// awaitDeleted waits for an event, at most for limit.
func (s *session) awaitDeleted(ctx context.Context, deleted *qmp.Expectation, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := deleted.Wait(ctx)
	return err
}

// removeNode removes a block node after its device, with the nodes below it. It
// succeeds if there is none. name is that of the disk or drive, for messages.
func (s *session) removeNode(ctx context.Context, node, name string) error {
	err := s.blockdevDel(ctx, node)
	if err == nil {
		return nil
	}
	has, lookErr := s.hasNode(ctx, node)
	switch {
	case lookErr == nil && !has:
		return nil
	case lookErr == nil && isRefused(err):
		return heldFault(s.id, name, err)
	}
	return err
}

// heldFault says that QEMU took a disk or a drive from the guest but still has its
// file open. QEMU 7.2 never frees a SCSI disk that was busy when the guest was
// reset.
func heldFault(vmID, name string, err error) error {
	f := fault(vm.CodeQEMUUnresponsive, err, "QEMU of VM %s took %s from the guest and does not close its file",
		vmID, name)
	f.Hint = "stop or restart the VM, which closes the file"
	return f
}

// keptFault says that the guest did not release a device, and what helps.
func keptFault(vmID, name string, status vm.RunStatus) error {
	f := fault(vm.CodeUnavailable, nil, "the guest of VM %s has not released %s", vmID, name)
	switch status {
	case vm.StatusRunning:
		f.Hint = "a guest that is booting releases it later; a reset or a stop of the VM removes it without the guest"
	case vm.StatusPaused:
		f.Detail += ": it is paused"
		f.Hint = "resume the VM; a reset or a stop removes it without the guest"
	default:
		f.Detail += ": it is not running (" + string(status) + ")"
		f.Hint = "a reset or a stop of the VM removes it without the guest"
	}
	return f
}
