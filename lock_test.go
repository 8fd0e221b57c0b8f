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

// holdLock takes a directory's lock as a copy of the process pid would hold it.
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

func TestALockThatAKilledVmandLeftBehindIsWaitedFor(t *testing.T) {
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
		t.Errorf("the lock's file says %q, %v", text, err)
	}
}

func TestTheLockOfAVmandThatLivesIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	holdLock(t, dir, os.Getpid())
	begun := time.Now()
	lock, err := lockDir(dir)
	if err == nil {
		lock.Close()
		t.Fatal("two have the lock")
	}
	if took := time.Since(begun); took >= lockPatience || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("after %s: %v", took, err)
	}
}
