package qemu

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vmand/failpoint"
	"vmand/qemu/qmp"
	"vmand/vm"
)

// How long to wait for each means of ending a process, and how often to press the
// power button: a guest that boots ignores it at first.
const (
	pressInterval = 3 * time.Second
	quitTimeout   = 3 * time.Second  // for the answer
	flushTimeout  = 15 * time.Second // for QEMU to flush its caches and end after that
	termTimeout   = 2 * time.Second
	killTimeout   = 10 * time.Second
)

// Shutdown implements [vm.Machines]. Each rung of the ladder is a step of its own:
// "acpi", "quit", "term", "kill". If ctx is cancelled while the guest shuts down,
// Shutdown returns and the guest keeps running.
func (d *Driver) Shutdown(ctx context.Context, id string, o vm.StopOptions, report vm.Report) error {
	s, err := d.session(id)
	if err != nil {
		return fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", id)
	}
	if s == nil { // a process may still exist that lost its pidfile
		if err := d.checkUnused(vmRootDisk(id)); err != nil {
			return err
		}
	} else {
		if !o.Force {
			if err := s.shutdownGuest(ctx, o.Timeout, report); err != nil {
				return err
			}
		}
		if err := s.destroy(ctx, report); err != nil {
			return err
		}
		<-s.ended // its last console output is in the log now
		failpoint.Hit("stop.exited")
	}
	d.layout.removeRun(id, runSuffixes...)
	failpoint.Hit("run.removed")
	return nil
}

// shutdownGuest presses the power button until the guest has powered off, cannot do
// so, or the timeout ends. It returns nil unless ctx was cancelled: the caller then
// ends the process.
func (s *session) shutdownGuest(ctx context.Context, timeout time.Duration, report vm.Report) error {
	if timeout <= 0 {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for press := 1; ; press++ {
		off, err := s.press(wait, press, report)
		switch {
		case off || s.proc.Exited():
			return nil
		case ctx.Err() != nil:
			return monitorFault(s.id, "shutdown", ctx.Err())
		case wait.Err() != nil:
			say(report, "acpi", "the guest has not powered off within %v", timeout)
			return nil
		case err != nil:
			say(report, "acpi", "cannot ask the guest: %v", err)
			return nil
		}
	}
}

// errNotListening means that the guest does not run and so ignores the power button.
var errNotListening = errors.New("it does not run")

// press presses the power button once and waits up to pressInterval for a reaction. It
// reports whether the guest had powered off before. n counts the presses from 1.
func (s *session) press(ctx context.Context, n int, report vm.Report) (off bool, err error) {
	conn, err := s.monitor(ctx)
	if err != nil {
		return false, err
	}
	shutdown := conn.Expect(func(e qmp.Event) bool { return e.Event == "SHUTDOWN" || e.Event == "STOP" })
	defer shutdown.Cancel()
	status, err := s.queryStatus(ctx)
	switch {
	case err != nil:
		return false, err
	case status == vm.StatusShutdown:
		say(report, "acpi", "the guest has powered off")
		return true, nil
	case status == statusSuspended: // it does not see the power button
		say(report, "acpi", "waking the guest, which is suspended")
		if err := s.wakeup(ctx); err != nil {
			return false, err
		}
	case status != vm.StatusRunning:
		say(report, "acpi", "the guest is %s and cannot answer", status)
		return false, errNotListening
	}
	if n == 1 {
		say(report, "acpi", "asking the guest to power off")
	}
	if err := s.systemPowerdown(ctx); err != nil {
		return false, err
	}
	failpoint.Hit("stop.pressed")
	ctx, cancel := context.WithTimeout(ctx, pressInterval)
	defer cancel()
	shutdown.Wait(ctx) // the next look at the run state decides
	return false, nil
}

// statusSuspended is the run state of a guest that suspended itself (ACPI S3). Its vCPUs
// are halted. Only a wake-up ends it: QEMU 7.2 accepts cont and does nothing, and the power
// button is only noted.
const statusSuspended = vm.RunStatus("suspended")

// destroy ends the process by harder and harder means: quit, SIGTERM, SIGKILL. It
// returns nil when the process has ended.
func (s *session) destroy(ctx context.Context, report vm.Report) error {
	if s.proc.Exited() {
		return nil
	}
	if !s.isMute() {
		if err := s.quit(ctx, report); err != nil {
			return err
		}
	}
	for _, rung := range []struct {
		step  string
		sig   unix.Signal
		limit time.Duration
	}{
		{"term", unix.SIGTERM, termTimeout},
		{"kill", unix.SIGKILL, killTimeout},
	} {
		switch {
		case s.proc.Exited():
			return nil
		case ctx.Err() != nil:
			return monitorFault(s.id, "quit", ctx.Err())
		}
		s.markAsked()
		say(report, rung.step, "QEMU has not ended, sending it %s", unix.SignalName(rung.sig))
		if err := s.proc.Signal(rung.sig); err != nil && !s.proc.Exited() {
			return fault(vm.CodeOperationFailed, err, "signal QEMU of VM %s (pid %d)", s.id, s.proc.PID)
		}
		s.proc.Wait(ctx.Done(), rung.limit)
	}
	if !s.proc.Exited() {
		return fault(vm.CodeQEMUUnresponsive, ctx.Err(), "QEMU of VM %s (pid %d) does not end, even after SIGKILL",
			s.id, s.proc.PID)
	}
	return nil
}

// quit asks QEMU to end and waits for that. It fails only if the monitor is another
// VM's; the caller checks whether the process has ended.
func (s *session) quit(ctx context.Context, report vm.Report) error {
	s.markAsked()
	say(report, "quit", "ending QEMU (pid %d)", s.proc.PID)
	err := s.execute(ctx, quitTimeout, "quit", nil, nil)
	switch {
	case err == nil, errors.Is(err, qmp.ErrClosed), errors.Is(err, errGone): // QEMU may end before its answer is read
		failpoint.Hit("stop.quit")
		s.proc.Wait(ctx.Done(), flushTimeout)
	case errors.Is(err, errImpostor):
		s.asked.Store(false)
		s.layout.removeRun(s.id, quitSuffix)
		return err
	}
	return nil
}

// markAsked records that vmand ends the process, for this vmand and for the next
// one: without the record, the end would look like a crash.
func (s *session) markAsked() {
	if s.asked.Swap(true) {
		return
	}
	if err := os.WriteFile(s.layout.inRun(s.id, quitSuffix), nil, 0o600); err != nil {
		s.log.Warn("cannot record that vmand ends QEMU", "err", err)
	}
}

// Control implements [vm.Machines].
func (d *Driver) Control(ctx context.Context, id string, op vm.Op) error {
	switch op {
	case vm.OpPause:
		return d.Pause(ctx, id)
	case vm.OpResume:
		return d.Resume(ctx, id)
	case vm.OpReset:
		return d.Reset(ctx, id)
	case vm.OpNMI:
		return d.NMI(ctx, id)
	}
	return fault(vm.CodeInvalid, nil, "a guest cannot be told to %s", op)
}

// NMI sends a non-maskable interrupt to the vCPUs of a running VM.
func (d *Driver) NMI(ctx context.Context, id string) error {
	s, err := d.live(id)
	if err != nil {
		return err
	}
	return s.execute(ctx, queryTimeout, "inject-nmi", nil, nil)
}

// Pause stops the vCPUs of a VM.
func (d *Driver) Pause(ctx context.Context, id string) error {
	s, err := d.live(id)
	if err != nil {
		return err
	}
	if err := s.stop(ctx); err != nil {
		return err
	}
	status, err := s.queryStatus(ctx)
	if err == nil && status == statusSuspended {
		f := fault(vm.CodeState, nil, "VM %s is not running: its guest suspended itself", id)
		f.Hint = "resume it first"
		return f
	}
	return err
}

// Resume lets the vCPUs of a VM run, and wakes a guest that suspended itself.
func (d *Driver) Resume(ctx context.Context, id string) error {
	s, err := d.live(id)
	if err != nil {
		return err
	}
	return s.resume(ctx)
}

// Reset resets a VM and lets its vCPUs run. The guest boots, also if it was suspended.
func (d *Driver) Reset(ctx context.Context, id string) error {
	s, err := d.live(id)
	if err != nil {
		return err
	}
	if err := s.clearWakeFlag(ctx); err != nil {
		return err
	}
	if err := s.systemReset(ctx); err != nil {
		return err
	}
	failpoint.Hit("guest.reset")
	return s.resume(ctx)
}
