package qemu

import (
	"io"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// checkUnused reports that a process has a disk image open, whoever started it.
// QEMU and its tools hold locks on an image for as long as they use it, also
// one that cannot be found any more because its pidfile is lost. Where the file
// system has no such locks, nothing is known and nothing reported.
func (d *Driver) checkUnused(name string) error {
	f, err := d.state.Open(name)
	if err != nil {
		return nil // what is not there is not used
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart} // the whole file
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return nil
	}
	used := fault(vm.CodeState, nil, "a process that vmand does not know has %s open", d.layout.inState(name))
	used.Hint = "find it with lsof or fuser, and end it first"
	return used
}
