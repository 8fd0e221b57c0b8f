package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// defaultUser is the account QEMU runs as, if the host has one of this name and
// vmand runs as root.
const defaultUser = "vman-qemu"

// fallbackID is the user and group id QEMU runs as on a host without such an
// account. It lies between the ranges that systemd hands out (60001 to 60577
// and 61184 to 65519), above those of adduser (to 59999), below Debian's fixed
// ones (64000 to 64999), and under 65536, so that it exists in a user namespace
// of the usual size.
const fallbackID = 61074

const kvmDevice = "/dev/kvm"

// account is who QEMU and qemu-img run as.
type account struct {
	uid, gid int
	groups   []uint32
	drop     bool // vmand runs as root and gives up its rights for them
	nice     int  // their nice value, if that is higher than vmand's
}

func newAccount(name string) (account, error) {
	if os.Geteuid() != 0 {
		a := account{uid: os.Geteuid(), gid: os.Getegid()}
		if name == "" {
			return a, nil
		}
		u, err := user.Lookup(name)
		if err != nil || u.Uid != strconv.Itoa(a.uid) {
			return account{}, fmt.Errorf("qemu.user is %s, but only root can run QEMU as somebody else", name)
		}
		return a, nil
	}
	a, err := lookUp(name)
	if err != nil {
		return account{}, err
	}
	if a.uid == 0 {
		return account{}, errors.New("qemu.user is root: QEMU never runs as root")
	}
	a.drop = true
	var st unix.Stat_t
	if err := unix.Stat(kvmDevice, &st); err == nil && st.Mode&0o060 == 0o060 && st.Gid != 0 {
		a.groups = []uint32{st.Gid}
	}
	return a, nil
}

func lookUp(name string) (account, error) {
	u, err := user.Lookup(cmp.Or(name, defaultUser))
	if err != nil {
		if name == "" {
			return account{uid: fallbackID, gid: fallbackID}, nil
		}
		return account{}, fmt.Errorf("qemu.user: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return account{}, fmt.Errorf("qemu.user %s: %w", u.Username, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return account{}, fmt.Errorf("qemu.user %s: %w", u.Username, err)
	}
	return account{uid: uid, gid: gid}, nil
}

// sysProcAttr returns how a process of the account is started: in a session of
// its own, so that no signal to vmand's reaches it.
func (a account) sysProcAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if a.drop {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid), Groups: a.groups}
	}
	return attr
}

// own makes f the account's, for nobody else to read.
func (a account) own(f *os.File) error {
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if !a.drop {
		return nil
	}
	return f.Chown(a.uid, a.gid)
}

// lend makes f readable for the account, and for nobody to write.
func (a account) lend(f *os.File) error {
	if !a.drop {
		return f.Chmod(0o400)
	}
	// First the mode: the file may be the account's until then, and its to write.
	if err := f.Chmod(0o440); err != nil {
		return err
	}
	return f.Chown(0, a.gid)
}

// admit lets the account pass through a directory of vmand's, if it cannot yet.
func (a account) admit(dir string) error {
	if !a.drop || a.as(func() error { return canTraverse(dir) }) == nil {
		return nil
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		return nil // not ours to change: checkPath says what to do
	}
	if err := os.Chown(dir, -1, a.gid); err != nil {
		return fmt.Errorf("let QEMU pass: %w", err)
	}
	if err := os.Chmod(dir, st.Mode().Perm()&0o707|0o010); err != nil {
		return fmt.Errorf("let QEMU pass: %w", err)
	}
	return nil
}

// checkPath reports the first directory on the way to dir that the account
// cannot pass through.
func (a account) checkPath(dir string) error {
	at := "/"
	for _, name := range strings.Split(dir, "/") {
		at = filepath.Join(at, name)
		if err := a.as(func() error { return canTraverse(at) }); err != nil {
			return fmt.Errorf("the user QEMU runs as (uid %d) cannot pass through the directory %s on the way to %s: "+
				"allow it with \"chmod o+x %s\", or set state_dir and runtime_dir to another place: %w", a.uid, at, dir, at, err)
		}
	}
	return nil
}

func canTraverse(dir string) error {
	var st unix.Stat_t
	return unix.Stat(dir+"/.", &st)
}

// canRead reports why the account cannot read a file.
func (a account) canRead(path string) error {
	return a.as(func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// as runs f with the account's rights over files. Only the thread f runs on
// gets them, and that ends with f: the kernel itself is asked what the account
// may do, access control lists and all.
func (a account) as(f func() error) error {
	if !a.drop {
		return f()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := a.assume(); err != nil {
			result <- fmt.Errorf("act as uid %d: %w", a.uid, err)
			return
		}
		result <- f()
	}()
	return <-result
}

// assume makes the calling thread, and it alone, act as the account towards
// files. The wrappers in package syscall change all threads.
func (a account) assume() error {
	var groups *uint32
	if len(a.groups) > 0 {
		groups = &a.groups[0]
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(a.groups)), uintptr(unsafe.Pointer(groups)), 0); errno != 0 {
		return errno
	}
	if err := unix.Setfsgid(a.gid); err != nil {
		return err
	}
	return unix.Setfsuid(a.uid)
}
