package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// makeDir creates a directory and its parents, and checks it with checkDir. An existing
// directory is not changed.
func makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	err := os.Mkdir(dir, mode)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	made := err == nil
	if err := checkDir(dir); err != nil {
		return err
	}
	if !made {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.Chmod(".", mode) // independent of the umask
}

// maxLinks is the maximum number of symbolic links on the way to a directory, as in the
// kernel (path_resolution(7)).
const maxLinks = 40

// checkDir fails if dir is no directory, or if another user than root and vmand's own can
// replace it or files in it: a planted link would make vmand change other files. It looks
// at every directory and every symbolic link on the way to dir.
func checkDir(dir string) error {
	rest := split(dir)
	at := "/"
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		info, err := os.Lstat(next)
		if err != nil {
			return err
		}
		if err := checkOwner(next, info, dir); err != nil {
			return err
		}
		switch {
		case info.Mode().Type() == os.ModeSymlink:
			if links++; links > maxLinks {
				return fmt.Errorf("%s: %w", dir, unix.ELOOP)
			}
			target, err := os.Readlink(next)
			if err != nil {
				return err
			}
			if filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(split(target), rest...)
			continue
		case !info.IsDir():
			return fmt.Errorf("%s is not a directory", next)
		}
		if err := checkMode(next, info, len(rest) == 0, dir); err != nil {
			return err
		}
		at = next
	}
	return nil
}

// split returns the elements of a path.
func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// checkOwner fails if a file belongs to another user than root and vmand's own.
func checkOwner(path string, info os.FileInfo, dir string) error {
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	if uid == 0 || uid == os.Geteuid() || uid == unmappedUID() {
		return nil
	}
	return fmt.Errorf("uid %d owns %s and can replace files of vmand in %s: run chown %d %s, or set another directory",
		uid, path, dir, os.Geteuid(), path)
}

// checkMode fails if other users can write to a directory. A parent may have the sticky
// bit: then they cannot replace the files of others.
func checkMode(path string, info os.FileInfo, last bool, dir string) error {
	gid := int(info.Sys().(*syscall.Stat_t).Gid)
	others := info.Mode().Perm()&0o002 != 0 && (last || info.Mode()&os.ModeSticky == 0)
	group := last && info.Mode().Perm()&0o020 != 0 && gid != 0 && gid != os.Getegid()
	if !others && !group {
		return nil
	}
	return fmt.Errorf("other users can write to %s (mode %#o) and replace files of vmand in %s: run chmod go-w %s, "+
		"or set another directory", path, info.Mode().Perm(), dir, path)
}

// unmappedUID returns the owner that the kernel shows for the files of users that do not
// exist in vmand's user namespace, which cannot act in it. It returns -1 in the initial
// namespace.
func unmappedUID() int {
	users, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || strings.Join(strings.Fields(string(users)), " ") == "0 0 4294967295" {
		return -1
	}
	const overflowUID = 65534 // kernel.overflowuid (sysctl(7))
	return overflowUID
}

// lockFile is locked by the vmand that uses the directory.
const lockFile = "vmand.lock"

// lockDir locks a state or runtime directory until the returned file is closed or
// the process ends. If another vmand holds the lock, it fails at once and names the
// pid. The lock file is never removed: after a removal two processes could lock two
// different files.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	pid, err := waitLock(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return nil, fmt.Errorf("another vmand (pid %s) uses the directory %s: "+
			"stop it, or set another state_dir and runtime_dir", pid, dir)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// How long, and how often, to try for the lock of a dead vmand. A vmand that is
// killed between fork and exec of a program leaves a child that holds the lock until
// its exec.
const (
	lockPatience = 5 * time.Second
	lockInterval = 10 * time.Millisecond
)

// waitLock locks f. If the vmand whose pid is in the file is alive, it returns that
// pid and EWOULDBLOCK. If that vmand is dead, it retries for lockPatience.
func waitLock(f *os.File) (pid string, err error) {
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(lockPatience); ; <-tick.C {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			return "", err
		}
		text := make([]byte, 20)
		n, _ := f.ReadAt(text, 0) // best effort: the pid is for the error message
		pid = strings.TrimSpace(string(text[:n]))
		number, numberErr := strconv.Atoi(pid)
		gone := numberErr == nil && errors.Is(unix.Kill(number, 0), unix.ESRCH)
		if !gone || time.Now().After(deadline) {
			return pid, err
		}
	}
}
