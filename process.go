package main

import (
	"os"
	"runtime/debug"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// collectPercent is the growth of the heap that triggers a garbage collection. The
// live heap is some ten MiB, so Go's default of 100 would collect many times a
// second under load. 300 costs some ten MiB more memory.
const collectPercent = 300

// tuneMemory sets the garbage collector's percentage, unless GOGC sets it.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectPercent)
	}
}

// ownNice is the nice value of vmand. It is higher in priority than the guests, so
// that VMs can be paused and stopped while guests use all processors of the host.
// vmand itself needs little processor time.
const ownNice = -10

// raisePriority sets the nice value of all threads to ownNice, best effort. It
// returns the value that vmand was started with, which the guests get.
func raisePriority() (before int) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return 0
	}
	before = 20 - raw // the raw system call returns 20 - nice (getpriority(2))
	if before <= ownNice {
		return before
	}
	nice := ownNice
	_, _, _ = syscall.AllThreadsSyscall(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, uintptr(nice))
	// With autogroup (sched(7)) each session has one share of the processors and
	// nice values count only within a session; each QEMU has its own session. Only
	// the leader of a session changes its share: vmand may run in a user's shell.
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0)
	}
	return before
}
