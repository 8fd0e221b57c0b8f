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

func mustDo(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestADirectoryThatOtherUsersCanChangeIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make directories of other users")
	}
	const other = 12345
	tests := map[string]struct {
		prepare func(t *testing.T, dir string)
		want    string // in the error, "" for none
	}{
		"a new directory":        {func(*testing.T, string) {}, ""},
		"a private directory":    {func(t *testing.T, dir string) { mustDo(t, os.Mkdir(dir, 0o700)) }, ""},
		"of another user":        {func(t *testing.T, dir string) { mustDo(t, os.Mkdir(dir, 0o700), os.Chown(dir, other, -1)) }, "chown"},
		"writable for everybody": {func(t *testing.T, dir string) { mustDo(t, os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) }, "chmod go-w"},
		"with the sticky bit": {func(t *testing.T, dir string) {
			mustDo(t, os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777|os.ModeSticky))
		}, "chmod go-w"},
		"writable for a group": {func(t *testing.T, dir string) {
			mustDo(t, os.Mkdir(dir, 0o700), os.Chown(dir, -1, other), os.Chmod(dir, 0o770))
		}, "chmod go-w"},
		"below a directory of another user": {func(t *testing.T, dir string) {
			mustDo(t, os.Chown(filepath.Dir(dir), other, -1))
		}, "chown"},
		"below a writable directory": {func(t *testing.T, dir string) {
			mustDo(t, os.Chmod(filepath.Dir(dir), 0o777))
		}, "chmod go-w"},
		"below a directory like /tmp": {func(t *testing.T, dir string) {
			mustDo(t, os.Chmod(filepath.Dir(dir), 0o777|os.ModeSticky))
		}, ""},
		"a link of root": {func(t *testing.T, dir string) {
			mustDo(t, os.Mkdir(dir+"-real", 0o700), os.Symlink(filepath.Base(dir)+"-real", dir))
		}, ""},
		"a link of another user": {func(t *testing.T, dir string) {
			mustDo(t, os.Mkdir(dir+"-real", 0o700), os.Symlink(dir+"-real", dir), os.Lchown(dir, other, -1))
		}, "chown"},
		"a loop": {func(t *testing.T, dir string) { mustDo(t, os.Symlink(dir, dir)) }, "too many levels"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			tt.prepare(t, dir)
			err := makeDir(dir, 0o711)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want %q", err, tt.want)
			}
		})
	}
}

func TestALinkInThePlaceOfALockFileIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	mustDo(t, os.WriteFile(file, []byte("precious"), 0o600), os.Symlink(file, filepath.Join(dir, lockFile)))
	if f, err := lockDir(dir); err == nil {
		f.Close()
		t.Error("the link is followed")
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "precious" {
		t.Errorf("%q, %v", content, err)
	}
}

func TestALinkInThePlaceOfTheTokenFileIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	mustDo(t, os.WriteFile(file, []byte(strings.Repeat("x", 40)), 0o644), os.Symlink(file, filepath.Join(dir, adminTokenFile)))
	if _, err := readSecret(filepath.Join(dir, adminTokenFile)); err == nil {
		t.Error("the link is followed")
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
}

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
