package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmand/host"
)

func TestARuntimeDirectoryTooLongForSocketsIsRefused(t *testing.T) {
	room := maxSockPath - len("/") - maxNameBytes - len(operatorSuffix)
	for _, c := range []struct {
		length int
		ok     bool
	}{{room, true}, {room + 1, false}} {
		dir := "/" + strings.Repeat("r", c.length-1)
		l, err := newLayout("/state", dir)
		if (err == nil) != c.ok {
			t.Errorf("%d bytes: %v", c.length, err)
		}
		if c.ok && len(l.inRun(strings.Repeat("x", maxNameBytes), operatorSuffix)) > maxSockPath {
			t.Errorf("a path of %d bytes was accepted for a socket", c.length)
		}
		if !c.ok && !strings.Contains(err.Error(), dir) {
			t.Errorf("the error does not name the directory: %v", err)
		}
	}
}

func TestDirectoriesMustBeSet(t *testing.T) {
	for _, dirs := range [][2]string{{"", "/run/vman"}, {"/var/lib/vman", ""}} {
		if l, err := newLayout(dirs[0], dirs[1]); err == nil {
			t.Errorf("got %+v for %q", l, dirs)
		}
	}
}

func TestDirectoriesArePrivate(t *testing.T) {
	dir := tempDir(t)
	l, err := newLayout(filepath.Join(dir, "state"), filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAccount("")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.create(a); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{l.state, l.run, l.inState(disksDir), l.inState(vmsDir)} {
		st, err := os.Stat(d)
		if err != nil {
			t.Fatal(err)
		}
		want := os.FileMode(0o700)
		if a.UID != os.Geteuid() {
			want = 0o710
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", d, st.Mode().Perm(), want)
		}
	}
}

func TestAnErrorNamesTheDirectoryThatQEMUCannotPass(t *testing.T) {
	a := host.Account{UID: fallbackID, GID: fallbackID}
	if os.Geteuid() != 0 {
		a = host.Account{UID: os.Geteuid()} // which can pass every directory
	}
	closed := filepath.Join(tempDir(t), "closed")
	inner := filepath.Join(closed, "state")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	err := checkPath(a, inner)
	if a.UID == os.Geteuid() {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "directory "+closed+" ") || !strings.Contains(err.Error(), "chmod o+x "+closed) {
		t.Errorf("got %v; want the directory %s and how to fix it", err, closed)
	}
	if _, err := New(t.Context(), Options{StateDir: inner, RuntimeDir: tempDir(t)}, testLog(t)); err == nil {
		t.Error("New returned a driver")
	}
}
