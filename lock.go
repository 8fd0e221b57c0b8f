package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

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
