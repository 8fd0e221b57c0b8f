package main

import (
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownNice is the nice value of vmand, before its guests: a few that spin take a
// host's processors, and none of them could be paused or stopped in time. vmand
// itself needs little.
const ownNice = -10

// raisePriority gives every thread of vmand the value ownNice, if it may and is
// not there yet. It returns the value from before, which is the guests'.
func raisePriority() (before int) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return 0
	}
	before = 20 - raw // the kernel's spelling, getpriority(2)
	if before <= ownNice {
		return before
	}
	// Without the right to it, vmand goes on as it is.
	nice := ownNice
	_, _, _ = syscall.AllThreadsSyscall(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, uintptr(nice))
	// Where the kernel gives each session one share of the processors (sched(7),
	// autogroup), nice values count within a session only, and each QEMU has one.
	// A session of somebody else's, a shell's for one, is left as it is.
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0)
	}
	return before
}
