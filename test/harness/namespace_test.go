package harness

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/test/need"
)

func TestNamespaceReleasesTheFileSystemsOfADaemon(t *testing.T) {
	need.Namespaces(t)
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	err = unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m")
	need.Privilege(t, err)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	const name = "file"
	if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := NewNamespace(t, "host")
	if err := n.Try(func() error { _, err := os.Stat(filepath.Join(dir, name)); return err }); !os.IsNotExist(err) {
		t.Errorf("in the namespace, the file is there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		t.Errorf("outside of the namespace: %v", err)
	}
}
