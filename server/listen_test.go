package server

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestAUnixSocketIsForItsOwnerAndGroup(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, strconv.Itoa(os.Getgid()))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o660 {
		t.Errorf("mode %o", got)
	}
	l.Close()
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket file still exists")
	}
}

func TestAStaleSocketIsReplacedAndALiveOneIsNot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(path, ""); err == nil || !strings.Contains(err.Error(), "another process is listening") {
		t.Errorf("a second listener: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after a kill
	l.Close()
	if l, err = ListenUnix(path, ""); err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestListenErrorsNameTheProblem(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ path, group, want string }{
		"too long":      {filepath.Join(dir, strings.Repeat("x", 108)), "", "the maximum for a unix socket is 107"},
		"a file":        {file, "", "not a socket"},
		"no directory":  {filepath.Join(dir, "no", "s"), "", "no such file"},
		"not a path":    {filepath.Join(file, "s"), "", "not a directory"},
		"unknown group": {filepath.Join(dir, "s"), "no-such-group", "no-such-group"},
	}
	for name, test := range tests {
		if _, err := ListenUnix(test.path, test.group); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file was changed: %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "s")); err == nil {
		t.Error("the socket file still exists")
	}
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := ListenTCP(l.Addr().String()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("listening on a port in use: %v", err)
	}
}
