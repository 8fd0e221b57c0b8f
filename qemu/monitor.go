package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"vmand/qemu/qmp"
	"vmand/vm"
)

// How long QEMU may take to answer. Commands that wait for a guest or a disk have
// more time.
const (
	queryTimeout  = 5 * time.Second
	deviceTimeout = 60 * time.Second
)

// execute runs a QMP command with a deadline of its own, within that of ctx. The
// error is a fault, which may wrap a [qmp.Error]. QEMU gets copies of files.
func (s *session) execute(
	ctx context.Context, limit time.Duration, command string, args, out any, files ...*os.File,
) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return monitorFault(s.id, command, s.ask(ctx, command, args, out, files...))
}

// ask runs a QMP command within ctx and records whether QEMU answers.
func (s *session) ask(ctx context.Context, command string, args, out any, files ...*os.File) error {
	conn, err := s.monitor(ctx)
	if err == nil {
		err = conn.Execute(ctx, command, args, out, files...)
	}
	var refused *qmp.Error
	switch {
	case err == nil, errors.As(err, &refused):
		s.setMute(false)
	case errors.Is(err, context.DeadlineExceeded):
		s.setMute(true)
	case errors.Is(err, qmp.ErrClosed):
		// The connection breaks a moment before the end of the process is seen.
		if s.proc.Wait(ctx.Done(), exitGrace) {
			err = fmt.Errorf("%w: %w", errGone, err)
		}
	}
	return err
}

// exitGrace is how long a process may take to end once its sockets are closed.
const exitGrace = 200 * time.Millisecond

// queryStatus returns the run state of the guest.
func (s *session) queryStatus(ctx context.Context) (vm.RunStatus, error) {
	var st struct {
		Status vm.RunStatus `json:"status"`
	}
	err := s.execute(ctx, queryTimeout, "query-status", nil, &st)
	return st.Status, err
}

// peripherals are the devices of a machine that can be plugged. No list is nil.
type peripherals struct {
	disks  []string // ids of the data disks
	nics   []int    // slots of the NICs, sorted
	cdroms []string // ids of the CD-ROM drives, sorted
	names  []string // of all devices
}

// peripherals returns the pluggable devices of the machine.
func (s *session) peripherals(ctx context.Context) (peripherals, error) {
	var children []struct {
		Name string `json:"name"`
	}
	args := map[string]string{"path": "/machine/peripheral"}
	if err := s.execute(ctx, queryTimeout, "qom-list", args, &children); err != nil {
		return peripherals{}, err
	}
	has := peripherals{disks: []string{}, nics: []int{}, cdroms: []string{}}
	for _, c := range children {
		has.names = append(has.names, c.Name)
		if id, ok := cdromOfAlias(c.Name); ok {
			has.cdroms = append(has.cdroms, id)
		}
		if id, ok := diskOfDevice(c.Name); ok {
			has.disks = append(has.disks, id)
		}
		if slot, ok := nicOfDevice(c.Name); ok {
			has.nics = append(has.nics, slot)
		}
	}
	slices.Sort(has.nics) // QEMU lists them in the order of a hash table
	slices.Sort(has.cdroms)
	return has, nil
}

// pluggedDisks returns the ids of the data disks of the machine.
func (s *session) pluggedDisks(ctx context.Context) ([]string, error) {
	has, err := s.peripherals(ctx)
	return has.disks, err
}

// cont lets the guest run. It is a no-op if the guest runs.
func (s *session) cont(ctx context.Context) error {
	return s.execute(ctx, deviceTimeout, "cont", nil, nil)
}

// resume lets the guest run again, and fails if it does not. A guest that was suspended
// is woken. A guest that runs into another I/O error did run: its events tell.
func (s *session) resume(ctx context.Context) error {
	if err := s.cont(ctx); err != nil {
		return s.explainCont(ctx, err)
	}
	status, err := s.queryStatus(ctx)
	if err == nil && status == statusSuspended {
		if err = s.wakeup(ctx); err == nil {
			status, err = s.queryStatus(ctx)
		}
	}
	if err == nil && (status == statusSuspended || status == vm.StatusPaused || status == vm.StatusPrelaunch) {
		return fault(vm.CodeOperationFailed, nil, "the guest of VM %s does not run: QEMU still reports it as %s", s.id, status)
	}
	return err
}

// statusInternalError is the run state of a guest that QEMU or KVM cannot continue, for
// example after an instruction that KVM cannot emulate. QEMU refuses cont until a reset.
const statusInternalError = vm.RunStatus("internal-error")

// explainCont returns the error of a cont that QEMU refuses because of the guest's state.
func (s *session) explainCont(ctx context.Context, err error) error {
	if !isRefused(err) {
		return err
	}
	if status, serr := s.queryStatus(ctx); serr != nil || status != statusInternalError {
		return err
	}
	f := fault(vm.CodeState, err, "VM %s cannot be resumed: QEMU had an internal error", s.id)
	f.Hint = "reset or restart it"
	return f
}

// wakeup wakes a suspended guest and waits until QEMU has done so, which resets the
// machine: the firmware then continues the guest. It is a no-op if the guest is awake.
func (s *session) wakeup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	const command = "system_wakeup"
	conn, err := s.monitor(ctx)
	if err != nil {
		return monitorFault(s.id, command, err)
	}
	pm, err := s.savePM(ctx)
	if err != nil {
		return err
	}
	awake := conn.Expect(func(e qmp.Event) bool { return e.Event == "WAKEUP" })
	defer awake.Cancel()
	if err := s.execute(ctx, queryTimeout, command, nil, nil); err != nil {
		if status, serr := s.queryStatus(ctx); serr == nil && status == vm.StatusRunning {
			return nil // it woke by itself
		}
		return err
	}
	if _, err := awake.Wait(ctx); err != nil {
		return monitorFault(s.id, command, err)
	}
	return s.restorePM(ctx, pm)
}

// clearWakeFlag makes the next reset of the machine a boot. A guest that suspends itself
// leaves a flag in the CMOS (register 0xf, the shutdown status of the PC), and as long as
// it is set, the firmware wakes the guest after a reset instead of booting it.
func (s *session) clearWakeFlag(ctx context.Context) error {
	return s.writePorts(ctx, portWrite{0x70, 1, 0xf}, portWrite{0x71, 1, 0})
}

// stop pauses the guest.
func (s *session) stop(ctx context.Context) error {
	return s.execute(ctx, deviceTimeout, "stop", nil, nil)
}

// systemPowerdown presses the ACPI power button.
func (s *session) systemPowerdown(ctx context.Context) error {
	return s.execute(ctx, queryTimeout, "system_powerdown", nil, nil)
}

// systemReset resets the machine and waits until that is done: QEMU answers before.
func (s *session) systemReset(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	const command = "system_reset"
	conn, err := s.monitor(ctx)
	if err != nil {
		return monitorFault(s.id, command, err)
	}
	reset := conn.Expect(func(e qmp.Event) bool { return e.Event == "RESET" })
	defer reset.Cancel()
	if err := s.execute(ctx, queryTimeout, command, nil, nil); err != nil {
		return err
	}
	_, err = reset.Wait(ctx)
	return monitorFault(s.id, command, err)
}

func (s *session) blockdevAdd(ctx context.Context, n blockNode) error {
	return s.execute(ctx, deviceTimeout, "blockdev-add", n, nil)
}

func (s *session) blockdevDel(ctx context.Context, node string) error {
	return s.execute(ctx, deviceTimeout, "blockdev-del", map[string]string{"node-name": node}, nil)
}

func (s *session) deviceAdd(ctx context.Context, dev device) error {
	return s.execute(ctx, deviceTimeout, "device_add", dev, nil)
}

func (s *session) blockResize(ctx context.Context, node string, bytes int64) error {
	args := struct {
		Node string `json:"node-name"`
		Size int64  `json:"size"`
	}{node, bytes}
	return s.execute(ctx, deviceTimeout, "block_resize", args, nil)
}

// isRefused reports whether QEMU refused a command, so that it had no effect.
func isRefused(err error) bool {
	var refused *qmp.Error
	return errors.As(err, &refused)
}

// refusedWith reports whether QEMU refused a command with an error of a class.
func refusedWith(err error, class string) bool {
	var refused *qmp.Error
	return errors.As(err, &refused) && refused.Class == class
}
