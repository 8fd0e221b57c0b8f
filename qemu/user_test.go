package qemu

import (
	"os"
	"os/user"
	"path/filepath"
	"testing"
)

func TestQEMUNeverRunsAsRoot(t *testing.T) {
	a, err := newAccount("")
	if err != nil {
		t.Fatal(err)
	}
	if a.UID == 0 || a.GID == 0 || (a.UID != os.Geteuid()) != (os.Geteuid() == 0) {
		t.Errorf("QEMU would run as %+v", a)
	}
	if _, err := newAccount("root"); err == nil {
		t.Error("root was accepted")
	}
}

func TestAnUnknownUserIsRefused(t *testing.T) {
	if a, err := newAccount("no-such-user-here"); err == nil {
		t.Errorf("got %+v", a)
	}
}

func TestAUserByNameIsFound(t *testing.T) {
	name := "nobody"
	if os.Geteuid() != 0 {
		me, err := user.Current()
		if err != nil {
			t.Fatal(err)
		}
		name = me.Username
	}
	a, err := newAccount(name)
	if err != nil || a.UID == 0 {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestALinkInThePlaceOfADirectoryIsNotFollowed(t *testing.T) {
	for _, name := range []string{imagesDir, disksDir, vmsDir} {
		dir := tempDir(t)
		state, elsewhere := filepath.Join(dir, "state"), filepath.Join(dir, "elsewhere")
		must(t, os.Mkdir(state, 0o700))
		must(t, os.Mkdir(elsewhere, 0o700))
		must(t, os.Symlink(elsewhere, filepath.Join(state, name)))
		d, err := New(t.Context(), Options{StateDir: state, RuntimeDir: filepath.Join(dir, "run")}, testLog(t))
		if err == nil {
			d.Close()
			t.Errorf("%s: the link is followed", name)
		}
		if info, err := os.Stat(elsewhere); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: the directory behind the link: %v, %v", name, info, err)
		}
	}
}
