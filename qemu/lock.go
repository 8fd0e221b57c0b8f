package qemu

import (
	"io"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// checkUnused fails if any process has a disk image open. QEMU and its tools hold
// locks on an image while they use it, so a QEMU is found even if its pidfile is
// lost. On a file system without such locks it returns nil.
func (d *Driver) checkUnused(name string) error {
	f, err := d.state.Open(name)
	if err != nil {
		return nil // a file that does not exist is unused
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart} // the whole file
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return nil
	}
	used := fault(vm.CodeState, nil, "a process that vmand does not know has %s open", d.layout.inState(name))
	used.Hint = "find the process with lsof or fuser, and end it first"
	return used
}
