package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holdLock locks a directory as a child of the process pid would.
func holdLock(t *testing.T, dir string, pid int) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(strconv.Itoa(pid) + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLockDirWaitsForTheLockOfADeadVmand(t *testing.T) {
	child := exec.Command("true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	left := holdLock(t, dir, child.Process.Pid)
	time.AfterFunc(100*time.Millisecond, func() { left.Close() })
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if text, err := os.ReadFile(lock.Name()); err != nil || string(text) != strconv.Itoa(os.Getpid())+"\n" {
		t.Errorf("the lock file contains %q, %v", text, err)
	}
}

func TestLockDirFailsAtOnceWhileTheHolderIsAlive(t *testing.T) {
	dir := t.TempDir()
	holdLock(t, dir, os.Getpid())
	begun := time.Now()
	lock, err := lockDir(dir)
	if err == nil {
		lock.Close()
		t.Fatal("the lock was taken twice")
	}
	if took := time.Since(begun); took >= lockPatience || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("failed after %s: %v; want at once, with the pid", took, err)
	}
}
