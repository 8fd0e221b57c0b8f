package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

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
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		defer f.Close()
		pid, _ := io.ReadAll(io.LimitReader(f, 20)) // without it the message is only less helpful
		return nil, fmt.Errorf("another vmand (pid %s) uses the directory %s: stop it, or give this one a state_dir and runtime_dir of its own",
			strings.TrimSpace(string(pid)), dir)
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
