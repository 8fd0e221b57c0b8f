package qemu

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"vmand/failpoint"
	"vmand/qemu/qmp"
	"vmand/vm"
)

// nicTimeout is how long a guest may take to let go of a NIC. One that listens
// needs 50 to 200 ms; the others are asked again later.
const nicTimeout = 10 * time.Second

// AttachNIC implements [vm.Driver].
func (d *Driver) AttachNIC(ctx context.Context, vmID string, p vm.Port) error {
	host, card, err := nicPair(p, passedAs(p))
	if err != nil {
		return err
	}
	s, err := d.live(vmID)
	if err != nil {
		return err
	}
	if err := s.begun(ctx, p.Slot, "plugged"); err != nil {
		return err
	}
	has, err := s.peripherals(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(has.nics, p.Slot) {
		return nil
	}
	// A netdev without a device is left of an attempt that was cut short.
	if err := s.netdevDel(ctx, p.Slot); err != nil {
		return err
	}
	if err := s.plugNIC(ctx, p, host, card); err != nil {
		s.undoNIC(p.Slot, err)
		return err
	}
	failpoint.Hit("nic.device-added")
	return nil
}

// begun fails if the guest has not begun to run. QEMU would note the wish to
// unplug something then and forget it, so nothing is plugged either.
func (s *session) begun(ctx context.Context, slot int, verb string) error {
	status, err := s.queryStatus(ctx)
	if err == nil && status == vm.StatusPrelaunch {
		return fault(vm.CodeUnavailable, nil, "vm %s has not begun to run: NIC %d cannot be %s yet", s.id, slot, verb)
	}
	return err
}

// plugNIC makes both halves of a NIC. One whose cable is out gets no frame at
// any time: the host's half is cut off before the guest can see the other.
func (s *session) plugNIC(ctx context.Context, p vm.Port, host netdev, card device) error {
	if err := s.passFiles(ctx, p); err != nil {
		return err
	}
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
	return s.setLink(ctx, p.Slot, false) // now the card knows it too
}

// The words under which the files of a port are passed, until netdev_add takes
// them.
func fileWord(slot int) string  { return nicNetdev(slot) + "-file" }
func vhostWord(slot int) string { return nicNetdev(slot) + "-vhost" }

// passedAs returns the words for the files that a port has.
func passedAs(p vm.Port) (fds portFDs) {
	if len(p.Files) > 0 {
		fds.file = fileWord(p.Slot)
	}
	if p.VHost != nil && p.Model == vm.NICVirtio { // no other card can use it
		fds.vhost = vhostWord(p.Slot)
	}
	return fds
}

// passFiles gives QEMU copies of a port's files. Those left of an attempt that
// was cut short are replaced.
func (s *session) passFiles(ctx context.Context, p vm.Port) error {
	pass := func(word string, f *os.File) error {
		return s.execute(ctx, queryTimeout, "getfd", map[string]string{"fdname": word}, nil, f)
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

// undoNIC removes what is left of a NIC that QEMU refused: a netdev, files that
// none took. If it is not known what became of it, it is left for the next
// attempt to settle.
func (s *session) undoNIC(slot int, cause error) {
	if !isRefused(cause) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	err := s.netdevDel(ctx, slot)
	for _, name := range []string{fileWord(slot), vhostWord(slot)} {
		if e := s.execute(ctx, queryTimeout, "closefd", map[string]string{"fdname": name}, nil); e != nil && !isRefused(e) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		s.log.Warn("half a NIC stays", "nic", slot, "error", err)
	}
}

// netdevDel removes the host's half of a NIC, which must have no other half any
// more: QEMU would take it away from under the guest. What is not there is gone.
func (s *session) netdevDel(ctx context.Context, slot int) error {
	err := s.execute(ctx, queryTimeout, "netdev_del", map[string]string{"id": nicNetdev(slot)}, nil)
	if refusedWith(err, qmp.DeviceNotFound) {
		return nil
	}
	return err
}

// DetachNIC implements [vm.Driver].
func (d *Driver) DetachNIC(ctx context.Context, vmID string, slot int) error {
	s, err := d.session(vmID)
	if err != nil {
		return fault(vm.CodeOperationFailed, err, "look for the QEMU process of vm %s", vmID)
	}
	if s == nil {
		return nil // with the process, everything was unplugged
	}
	if err := s.detachNIC(ctx, slot); err != nil && !s.proc.Exited() {
		return err
	}
	return nil
}

func (s *session) detachNIC(ctx context.Context, slot int) error {
	if err := s.begun(ctx, slot, "unplugged"); err != nil {
		return err
	}
	if err := s.unplugNIC(ctx, slot); err != nil {
		return err
	}
	failpoint.Hit("nic.device-deleted")
	if err := s.netdevDel(ctx, slot); err != nil {
		return err
	}
	failpoint.Hit("nic.netdev-deleted")
	return nil
}

// unplugNIC asks the guest to let go of a NIC and waits until it has. It asks
// again and again: a guest that boots does not hear the first time. One that
// does not run is asked and not waited for.
func (s *session) unplugNIC(ctx context.Context, slot int) error {
	const command = "device_del"
	conn, err := s.monitor(ctx)
	if err != nil {
		return monitorFault(s.id, command, err)
	}
	device := nicDevice(slot)
	deleted := conn.Expect(func(e qmp.Event) bool { return e.Event == "DEVICE_DELETED" && e.Data["device"] == device })
	defer deleted.Cancel()
	patience, cancel := context.WithTimeout(ctx, nicTimeout)
	defer cancel()
	for {
		err := s.execute(ctx, queryTimeout, command, map[string]string{"id": device}, nil)
		switch {
		case refusedWith(err, qmp.DeviceNotFound):
			return nil
		case err != nil && !isRefused(err): // refused: it is on its way out already
			return err
		}
		status, err := s.queryStatus(ctx)
		if err != nil {
			return err
		}
		if status != vm.StatusRunning {
			return keptFault(s.id, slot, status)
		}
		round, cancel := context.WithTimeout(patience, lookInterval)
		_, err = deleted.Wait(round)
		cancel()
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, context.DeadlineExceeded):
			return monitorFault(s.id, command, err)
		case patience.Err() != nil:
			return keptFault(s.id, slot, status)
		}
	}
}

// keptFault says that a guest has not let go of a NIC, and who can help.
func keptFault(vmID string, slot int, status vm.RunStatus) error {
	f := fault(vm.CodeUnavailable, nil, "the guest of vm %s has not let go of NIC %d", vmID, slot)
	switch status {
	case vm.StatusRunning:
		f.Hint = "the guest has to help: it does once it has booted; a reset or a stop of the VM takes the NIC away without it"
	case vm.StatusPaused:
		f.Detail += ": it is paused"
		f.Hint = "resume the VM; a reset or a stop takes the NIC away without the guest"
	default:
		f.Detail += ": it is not running (" + string(status) + ")"
		f.Hint = "a reset or a stop of the VM takes the NIC away without the guest"
	}
	return f
}

// SetLink implements [vm.Driver].
func (d *Driver) SetLink(ctx context.Context, vmID string, slot int, up bool) error {
	s, err := d.live(vmID)
	if err != nil {
		return err
	}
	return s.setLink(ctx, slot, up)
}

// setLink changes both halves of a NIC: QEMU passes it on from the netdev to the
// card, if there is one.
func (s *session) setLink(ctx context.Context, slot int, up bool) error {
	args := struct {
		Name string `json:"name"`
		Up   bool   `json:"up"`
	}{nicNetdev(slot), up}
	err := s.execute(ctx, queryTimeout, "set_link", args, nil)
	if refusedWith(err, qmp.DeviceNotFound) {
		return fault(vm.CodeState, err, "vm %s has no NIC %d plugged", s.id, slot)
	}
	return err
}
