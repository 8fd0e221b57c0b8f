package host

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An Account is a user that programs run as: the one that vmand itself runs as,
// or, if vmand runs as root, any other.
type Account struct {
	UID, GID int
	Groups   []uint32 // supplementary groups
}

// other reports whether the account is another one than vmand's. Only root can
// run a program as another account.
func (a Account) other() bool { return a.UID != os.Geteuid() }

// credential returns what makes a process run as the account, nil if it does so
// anyway.
func (a Account) credential() *syscall.Credential {
	if !a.other() {
		return nil
	}
	return &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID), Groups: a.Groups}
}

// Own makes the account the owner of a file, and the only user that can read or
// write it.
func (a Account) Own(f *os.File) error {
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if !a.other() {
		return nil
	}
	return f.Chown(a.UID, a.GID)
}

// Lend makes a file readable for the account and writable for no user.
func (a Account) Lend(f *os.File) error {
	if !a.other() {
		return f.Chmod(0o400)
	}
	// The mode first: the account may own the file until the chown.
	if err := f.Chmod(0o440); err != nil {
		return err
	}
	return f.Chown(0, a.GID)
}

// CanRead returns the reason why the account cannot read a file, nil if it can.
func (a Account) CanRead(path string) error {
	return a.Do(func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// CanTraverse returns the reason why the account cannot reach files in a
// directory, nil if it can.
func (a Account) CanTraverse(dir string) error {
	return a.Do(func() error {
		var st unix.Stat_t
		return unix.Stat(dir+"/.", &st)
	})
}

// Do runs f with the account's rights over files, on a thread of its own that
// ends with f. So the kernel itself answers what the account may do, including
// access control lists. The rights of f's other threads do not change.
func (a Account) Do(f func() error) error {
	if !a.other() {
		return f()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := a.assume(); err != nil {
			result <- fmt.Errorf("act as uid %d: %w", a.UID, err)
			return
		}
		result <- f()
	}()
	return <-result
}

// assume gives the calling thread, and no other, the account's rights over files.
// The functions in package syscall would change all threads.
func (a Account) assume() error {
	var groups *uint32
	if len(a.Groups) > 0 {
		groups = &a.Groups[0]
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(a.Groups)), uintptr(unsafe.Pointer(groups)), 0)
	if errno != 0 {
		return errno
	}
	if err := unix.Setfsgid(a.GID); err != nil {
		return err
	}
	return unix.Setfsuid(a.UID)
}
