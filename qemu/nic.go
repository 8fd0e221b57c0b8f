package qemu

import (
	"context"
	"os"
	"slices"
	"strconv"

	"vmand/failpoint"
	"vmand/qemu/qmp"
	"vmand/vm"
)

// AttachNIC implements [vm.Plugger].
func (d *Driver) AttachNIC(ctx context.Context, vmID string, p vm.Port) error {
	host, card, err := nicPair(p, passedAs(p))
	if err != nil {
		return err
	}
	s, err := d.live(vmID)
	if err != nil {
		return err
	}
	if err := s.checkBegun(ctx, nicName(p.Slot), "plugged"); err != nil {
		return err
	}
	has, err := s.peripherals(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(has.nics, p.Slot) {
		return nil
	}
	// An interrupted attempt may have left a netdev or files without a device.
	if err := s.removeNICBackend(ctx, p.Slot); err != nil {
		return err
	}
	if err := s.plugNIC(ctx, p, host, card); err != nil {
		s.undoNIC(p.Slot, err)
		return err
	}
	failpoint.Hit("nic.device-added")
	return nil
}

// plugNIC adds both halves of a NIC. If its link is down, the host's half is cut off
// before the guest sees the card, so no frame ever passes.
func (s *session) plugNIC(ctx context.Context, p vm.Port, host netdev, card device) error {
	if err := s.passFiles(ctx, p); err != nil {
		return err
	}
	failpoint.Hit("nic.files-passed")
	if err := s.execute(ctx, deviceTimeout, "netdev_add", host, nil); err != nil {
		return err
	}
	failpoint.Hit("nic.netdev-added")
	if p.LinkDown {
		if err := s.setLink(ctx, p.Slot, false); err != nil {
			return err
		}
	}
	if err := s.deviceAdd(ctx, card); err != nil || !p.LinkDown {
		return err
	}
	return s.setLink(ctx, p.Slot, false) // now the card reports it too
}

// The names under which QEMU keeps the files of a port until netdev_add uses them.
func fileName(slot int) string  { return nicNetdev(slot) + "-file" }
func vhostName(slot int) string { return nicNetdev(slot) + "-vhost" }

// passedAs returns the names of the files that a port has.
func passedAs(p vm.Port) (fds portFDs) {
	if len(p.Files) > 0 {
		fds.file = fileName(p.Slot)
	}
	if p.VHost != nil && p.Model == vm.NICVirtio { // only this model can use it
		fds.vhost = vhostName(p.Slot)
	}
	return fds
}

// passFiles gives QEMU copies of a port's files. They replace those of an interrupted
// attempt.
func (s *session) passFiles(ctx context.Context, p vm.Port) error {
	pass := func(name string, f *os.File) error {
		return s.execute(ctx, queryTimeout, "getfd", map[string]string{"fdname": name}, nil, f)
	}
	fds := passedAs(p)
	if fds.file != "" {
		if err := pass(fds.file, p.Files[0]); err != nil {
			return err
		}
	}
	if fds.vhost != "" {
		return pass(fds.vhost, p.VHost)
	}
	return nil
}

// undoNIC removes the rest of a NIC that QEMU refused. If the outcome is unknown,
// everything stays for the next attempt.
func (s *session) undoNIC(slot int, cause error) {
	if !isRefused(cause) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	if err := s.removeNICBackend(ctx, slot); err != nil {
		s.log.Warn("cannot remove the rest of a NIC", "nic", slot, "err", err)
	}
}

// removeNICBackend removes the host's half of a NIC: the netdev and the files that wait
// for one. A file that stays keeps its tap on the host until QEMU ends. The card must be
// gone: QEMU would take the half away from it. It succeeds if there is nothing.
func (s *session) removeNICBackend(ctx context.Context, slot int) error {
	err := s.execute(ctx, queryTimeout, "netdev_del", map[string]string{"id": nicNetdev(slot)}, nil)
	if err != nil && !refusedWith(err, qmp.DeviceNotFound) {
		return err
	}
	for _, name := range []string{fileName(slot), vhostName(slot)} {
		// QEMU refuses a name that it does not know, with no class of its own.
		err := s.execute(ctx, queryTimeout, "closefd", map[string]string{"fdname": name}, nil)
		if err != nil && !isRefused(err) {
			return err
		}
	}
	return nil
}

// DetachNIC implements [vm.Plugger].
func (d *Driver) DetachNIC(ctx context.Context, vmID string, slot int) error {
	return d.unplug(ctx, vmID, unplugging{
		device:         nicDevice(slot),
		name:           nicName(slot),
		needsGuest:     true,
		removeBackend:  func(ctx context.Context, s *session) error { return s.removeNICBackend(ctx, slot) },
		deviceDeleted:  func() { failpoint.Hit("nic.device-deleted") },
		backendDeleted: func() { failpoint.Hit("nic.netdev-deleted") },
	})
}

// nicName names a NIC in messages.
func nicName(slot int) string { return "NIC " + strconv.Itoa(slot) }

// SetLink implements [vm.Plugger].
func (d *Driver) SetLink(ctx context.Context, vmID string, slot int, up bool) error {
	s, err := d.live(vmID)
	if err != nil {
		return err
	}
	return s.setLink(ctx, slot, up)
}

// setLink sets the link of both halves of a NIC: QEMU passes the change from the
// netdev to the card, if there is one.
func (s *session) setLink(ctx context.Context, slot int, up bool) error {
	args := struct {
		Name string `json:"name"`
		Up   bool   `json:"up"`
	}{nicNetdev(slot), up}
	err := s.execute(ctx, queryTimeout, "set_link", args, nil)
	if refusedWith(err, qmp.DeviceNotFound) {
		return fault(vm.CodeState, err, "VM %s has no NIC %d plugged", s.id, slot)
	}
	return err
}
