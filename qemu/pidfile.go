package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
)

// Two locks on a VM's pidfile show that its QEMU lives. QEMU takes a POSIX lock
// (-pidfile) once it runs, and the kernel names the owner of that. vmand takes the
// other lock (flock) before it starts QEMU, on a descriptor that QEMU inherits. That
// lock is held from before the fork until the process ends. So at no moment can a
// killed vmand leave a QEMU that the next vmand does not see and starts again.

// errLocked means that the VM has a process.
var errLocked = errors.New("its pidfile is locked")

// lockPidfile creates the pidfile of a VM, because QEMU cannot create files in the
// directory, and returns it with the lock that QEMU inherits. It fails with
// errLocked if a process holds the lock.
func lockPidfile(path string, a host.Account) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := a.Own(f); err != nil {
		f.Close()
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// flock takes a lock. It fails with errLocked if another process holds it.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return errLocked
		case err != nil:
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		default:
			return nil
		}
	}
}

// adopt returns the process that holds a lock on a pidfile, nil if there is none.
// QEMU, which runs as uid, holds it as long as it lives.
func adopt(pidfile string, uid int) (*host.Process, error) {
	pid, err := holder(pidfile, uid)
	if pid == 0 || err != nil {
		return nil, err
	}
	p, err := host.OpenProcess(pid)
	if errors.Is(err, host.ErrNoProcess) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// The holder may have ended before its pidfd was opened, and another process
	// have its pid. A process that still holds the lock is the right one.
	again, err := holder(pidfile, uid)
	if err != nil || again != pid {
		p.Release()
		return nil, err
	}
	return p, nil
}

// How long and how often to look for a process that was just forked and does not
// have the command line of QEMU yet.
const (
	forkPatience = 500 * time.Millisecond
	forkInterval = 5 * time.Millisecond
)

// holder returns the pid of the process that holds a lock on a pidfile, 0 if there
// is no such process or file.
func holder(pidfile string, uid int) (int, error) {
	tick := time.NewTicker(forkInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(forkPatience); ; <-tick.C {
		pid, locked, err := lockOwner(pidfile)
		if !locked || err != nil {
			return 0, err
		}
		// QEMU's user can write the pidfile, so any process of it can hold the lock.
		if pid != 0 && isQEMU(pid, pidfile, uid) {
			return pid, nil
		}
		if found := processOf(pidfile, uid); found != 0 {
			return found, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%s is locked by a process that is not the QEMU of the VM (pid %d; 0: unknown): "+
				"find it with lsof and end it", pidfile, pid)
		}
	}
}

// lockOwner returns the pid of the process that holds a POSIX lock on a file, 0 if
// there is no such process or file. locked reports whether any process holds a lock
// of either kind.
func lockOwner(path string) (pid int, locked bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
		return 0, false, fmt.Errorf("ask for the lock on %s: %w", path, err)
	}
	if lock.Type != unix.F_UNLCK {
		return int(lock.Pid), true, nil
	}
	err = flock(f, unix.LOCK_SH) // Close releases it
	if errors.Is(err, errLocked) {
		return 0, true, nil
	}
	return 0, false, err
}

// processOf returns the pid of the process that runs as uid and was started with a
// pidfile, 0 if there is none. It ignores processes of other users, because their
// command lines could claim anything.
func processOf(pidfile string, uid int) int {
	for _, pid := range host.ProcessesOf(uid) {
		if host.ArgumentAfter(host.Arguments(pid), "-pidfile") == pidfile {
			return pid
		}
	}
	return 0
}

// isQEMU reports whether a process runs as uid and was started with a pidfile.
func isQEMU(pid int, pidfile string, uid int) bool {
	return host.OwnerOf(pid) == uid && host.ArgumentAfter(host.Arguments(pid), "-pidfile") == pidfile
}
