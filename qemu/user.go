package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"vmand/host"
)

// defaultUser is the account that QEMU runs as if vmand runs as root and the host
// has a user of this name.
const defaultUser = "vman-qemu"

// fallbackID is the user and group id that QEMU runs as on a host without such an
// account. It lies between the ranges of systemd (60001 to 60577 and 61184 to
// 65519), above that of adduser (to 59999), below Debian's fixed ids (64000 to
// 64999), and under 65536, so that it exists in a user namespace of the usual
// size.
const fallbackID = 61074

const kvmDevice = "/dev/kvm"

// GuestUID returns the user that QEMU runs as.
func (d *Driver) GuestUID() int { return d.account.UID }

// newAccount returns the account that QEMU and qemu-img run as; name is the
// setting qemu.user. A vmand that is not root runs them as its own user.
func newAccount(name string) (host.Account, error) {
	if os.Geteuid() != 0 {
		a := host.Account{UID: os.Geteuid(), GID: os.Getegid()}
		if name == "" {
			return a, nil
		}
		u, err := user.Lookup(name)
		if err != nil || u.Uid != strconv.Itoa(a.UID) {
			return host.Account{}, fmt.Errorf("qemu.user is %s, but only root can run QEMU as another user", name)
		}
		return a, nil
	}
	a, err := lookUp(name)
	if err != nil {
		return host.Account{}, err
	}
	if a.UID == 0 {
		return host.Account{}, errors.New("qemu.user is root: QEMU never runs as root")
	}
	return a, nil
}

// lookUp returns the account of a user. Without a name it is defaultUser or, if
// the host has no such user, fallbackID.
func lookUp(name string) (host.Account, error) {
	u, err := user.Lookup(cmp.Or(name, defaultUser))
	if err != nil {
		if name == "" {
			return host.Account{UID: fallbackID, GID: fallbackID}, nil
		}
		return host.Account{}, fmt.Errorf("qemu.user: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return host.Account{}, fmt.Errorf("qemu.user %s: %w", u.Username, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return host.Account{}, fmt.Errorf("qemu.user %s: %w", u.Username, err)
	}
	return host.Account{UID: uid, GID: gid}, nil
}

// admit lets an account pass through a directory of vmand's under root, by its group,
// unless it can already. A directory of another user stays unchanged: checkPath reports
// it. It fails for a symbolic link, so that the directory behind it stays unchanged.
func admit(a host.Account, root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	path := filepath.Join(root.Name(), name)
	if !st.IsDir() {
		return fmt.Errorf("%s is not a directory: remove it, or move it to where it belongs", path)
	}
	if a.CanTraverse(path) == nil || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		return nil
	}
	dir, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer dir.Close()
	if err := dir.Chown(-1, a.GID); err != nil {
		return fmt.Errorf("let QEMU pass: %w", err)
	}
	if err := dir.Chmod(st.Mode().Perm()&0o707 | 0o010); err != nil {
		return fmt.Errorf("let QEMU pass: %w", err)
	}
	return nil
}

// checkPath reports the first directory on the way to dir that an account cannot
// pass through.
func checkPath(a host.Account, dir string) error {
	at := "/"
	for _, name := range strings.Split(dir, "/") {
		at = filepath.Join(at, name)
		if err := a.CanTraverse(at); err != nil {
			return fmt.Errorf("the user QEMU runs as (uid %d) cannot pass through the directory %s on the way to %s: "+
				"allow it with \"chmod o+x %s\", or set state_dir and runtime_dir to another place: %w",
				a.UID, at, dir, at, err)
		}
	}
	return nil
}
