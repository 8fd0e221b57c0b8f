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

// lockFile keeps a second vmand out of a directory.
const lockFile = "vmand.lock"

// lockDir takes a state or runtime directory for this process until the returned
// file is closed or the process ends, however it ends. It fails at once, with
// the pid of the vmand that has it, if there is one. The file stays: who removed
// it would let two in.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	pid, err := waitLock(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		return nil, fmt.Errorf("another vmand (pid %s) uses the directory %s: stop it, or give this one a state_dir and runtime_dir of its own",
			pid, dir)
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

// A vmand that is killed while it starts a program leaves a copy of itself, with
// its lock, until that copy has become the program.
const (
	lockPatience = 5 * time.Second
	lockInterval = 10 * time.Millisecond
)

// waitLock takes the lock on f, or returns the pid of the vmand that lives and
// has it. It waits a while for a lock that the one in the file has left behind.
func waitLock(f *os.File) (pid string, err error) {
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(lockPatience); ; <-tick.C {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			return "", err
		}
		text := make([]byte, 20)
		n, _ := f.ReadAt(text, 0) // without it the message is only less helpful
		pid = strings.TrimSpace(string(text[:n]))
		number, numberErr := strconv.Atoi(pid)
		gone := numberErr == nil && errors.Is(unix.Kill(number, 0), unix.ESRCH)
		if !gone || time.Now().After(deadline) {
			return pid, err
		}
	}
}
