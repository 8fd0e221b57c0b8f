package host

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// vmandNice is the nice value of vmand itself. It is below that of the guests: a
// few guests that spin use every CPU of a host, and vmand must still be able to
// pause or stop them. vmand itself uses little CPU time.
const vmandNice = -10

// RaisePriority sets the nice value of every thread of vmand to -10, unless it is
// lower already, and returns the value from before, which is for the programs
// that vmand starts. Without the right to do so it changes nothing.
func RaisePriority() (before int) {
	before, err := niceOf(0)
	if err != nil {
		return 0
	}
	if before <= vmandNice {
		return before
	}
	nice := vmandNice
	_, _, _ = syscall.AllThreadsSyscall(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, uintptr(nice))
	// Where the kernel gives each session one share of the CPUs (sched(7),
	// autogroup), nice values count within a session only, and each QEMU has its
	// own. A session that vmand does not lead, such as a shell's, is left alone.
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0)
	}
	return before
}

// niceOf returns the nice value of a process, that of the calling thread for 0.
func niceOf(pid int) (int, error) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, pid)
	return 20 - raw, err // the kernel returns 20-nice (getpriority(2))
}

// Confine changes vmand itself: it leaves no core dump, which would hold secrets
// or the memory of guests, and the processes that it starts inherit none of the
// descriptors that vmand inherited (without effect before Linux 5.11).
func Confine() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("turn off core dumps: %w", err)
	}
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("turn off core dumps: %w", err)
	}
	err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("keep descriptors from child processes: %w", err)
	}
	return nil
}
