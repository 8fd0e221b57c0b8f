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

// The patience with each means of ending a process, and how often a guest is
// asked again: a guest that is booting does not hear the first time.
const (
	pressInterval = 3 * time.Second
	quitTimeout   = 3 * time.Second  // for QEMU to answer
	flushTimeout  = 15 * time.Second // for QEMU to end once it has: it writes out its caches
	termTimeout   = 2 * time.Second
	killTimeout   = 10 * time.Second
)

// Shutdown implements [vm.Machines]. Each rung of the ladder is reported as a step
// of its own: "acpi", "quit", "term", "kill". If ctx is cancelled while the
// guest is being asked, Shutdown returns and the guest runs on.
func (d *Driver) Shutdown(ctx context.Context, id string, o vm.StopOptions, report vm.Report) error {
	s, err := d.session(id)
	if err != nil {
		return fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", id)
	}
	if s == nil { // or one that cannot be found any more
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
		<-s.ended // what it still wrote to its console is in the log
		failpoint.Hit("stop.exited")
	}
	d.layout.removeRun(id, runSuffixes...)
	failpoint.Hit("run.removed")
	return nil
}

// shutdownGuest asks the guest to power off until it has, or cannot, or time is
// up. The error is nil unless ctx was cancelled: what remains is to end the
// process.
func (s *session) shutdownGuest(ctx context.Context, timeout time.Duration, report vm.Report) error {
	if timeout <= 0 {
		return nil // no time to answer is no question
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
			say(report, "acpi", "the guest cannot be asked: %v", err)
			return nil
		}
	}
}

// errNotListening is why a guest that does not run is not asked.
var errNotListening = errors.New("it does not run")

// press presses the power button once, waits a while for what the guest makes
// of it, and reports whether it has powered off.
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
	case status != vm.StatusRunning && status != statusSuspended:
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
	shutdown.Wait(ctx) // whatever it says, the next look at the status decides
	return false, nil
}

// statusSuspended is the run state of a guest that sleeps (ACPI S3). The power
// button wakes it.
const statusSuspended = vm.RunStatus("suspended")

// destroy ends the process by harder and harder means, and returns nil once it
// is gone.
func (s *session) destroy(ctx context.Context, report vm.Report) error {
	if s.proc.Exited() {
		return nil
	}
	if !s.isMute() {
		s.markAsked()
		say(report, "quit", "ending QEMU (pid %d)", s.proc.PID)
		err := s.execute(ctx, quitTimeout, "quit", nil, nil)
		switch {
		case err == nil, errors.Is(err, qmp.ErrClosed), errors.Is(err, errGone): // it may end before its answer is read
			failpoint.Hit("stop.quit")
			s.proc.Wait(ctx.Done(), flushTimeout)
		case errors.Is(err, errImpostor):
			s.asked.Store(false)
			s.layout.removeRun(s.id, quitSuffix)
			return err
		}
	}
	for _, rung := range []struct {
		step  string
		sig   unix.Signal
		limit time.Duration
	}{{"term", unix.SIGTERM, termTimeout}, {"kill", unix.SIGKILL, killTimeout}} {
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
		return fault(vm.CodeQEMUUnresponsive, ctx.Err(), "QEMU of VM %s (pid %d) does not end, even though killed", s.id, s.proc.PID)
	}
	return nil
}

// markAsked notes that the process is told to end, for this vmand and for the
// next one, which may see it end. Without the note that looks like a crash.
func (s *session) markAsked() {
	if s.asked.Swap(true) {
		return
	}
	if err := os.WriteFile(s.layout.inRun(s.id, quitSuffix), nil, 0o600); err != nil {
		s.log.Warn("cannot note that QEMU is told to end", "err", err)
	}
}

// Pause implements [vm.Machines].
func (d *Driver) Pause(ctx context.Context, id string) error {
	s, err := d.live(id)
	if err != nil {
		return err
	}
	return s.stop(ctx)
}

// Resume implements [vm.Machines].
func (d *Driver) Resume(ctx context.Context, id string) error {
	s, err := d.live(id)
	if err != nil {
		return err
	}
	return s.cont(ctx)
}

// Reset implements [vm.Machines].
func (d *Driver) Reset(ctx context.Context, id string) error {
	s, err := d.live(id)
	if err != nil {
		return err
	}
	if err := s.systemReset(ctx); err != nil {
		return err
	}
	failpoint.Hit("guest.reset")
	return s.cont(ctx) // does nothing if the guest runs
}
