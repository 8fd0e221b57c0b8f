package qemu

import (
	"os"
	"os/user"
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
