package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"vmand/host"
)

func openRoot(t *testing.T) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// names returns the names of the files in a directory under root.
func names(t *testing.T, root *os.Root, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root.Name(), dir))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func text(s string) func(*os.File) error {
	return func(f *os.File) error {
		_, err := f.WriteString(s)
		return err
	}
}

func TestWriteFileReplacesAtomically(t *testing.T) {
	root := openRoot(t)
	if err := root.Mkdir("dir", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"a long first content", "second"} {
		if err := host.WriteFile(root, "dir/name", 0o640, text(content)); err != nil {
			t.Fatal(err)
		}
		got, err := root.ReadFile("dir/name")
		if err != nil || string(got) != content {
			t.Errorf("the file holds %q, %v; want %q", got, err, content)
		}
		if st, err := root.Stat("dir/name"); err != nil || st.Mode() != 0o640 {
			t.Errorf("the file has mode %v, %v; want 0640", st.Mode(), err)
		}
	}
	if got := names(t, root, "dir"); len(got) != 1 {
		t.Errorf("the directory holds %q; want the file alone", got)
	}
}

func TestFailedWriteKeepsTheOldFile(t *testing.T) {
	root := openRoot(t)
	if err := host.WriteFile(root, "name", 0o600, text("old")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err := host.WriteFile(root, "name", 0o600, func(f *os.File) error {
		return errors.Join(text("half of the ne")(f), broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("WriteFile returns %v; want the error of the callback", err)
	}
	if got, _ := root.ReadFile("name"); string(got) != "old" {
		t.Errorf("the file holds %q; want the old content", got)
	}
	if got := names(t, root, "."); len(got) != 1 {
		t.Errorf("the directory holds %q; want the old file alone", got)
	}
}

func TestFailedRenameRemovesTheTemporaryFile(t *testing.T) {
	root := openRoot(t)
	if err := root.MkdirAll("name/child", 0o700); err != nil { // no file can replace that
		t.Fatal(err)
	}
	if err := host.WriteFile(root, "name", 0o600, text("new")); err == nil {
		t.Error("WriteFile has replaced a directory")
	}
	if got := names(t, root, "."); len(got) != 1 {
		t.Errorf("the directory holds %q; want only the old file", got)
	}
}

func TestLeftoverTemporaryFileIsReplaced(t *testing.T) {
	root := openRoot(t)
	if err := root.WriteFile(host.TempName("name"), []byte("a long rest of a killed vmand"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := host.WriteFile(root, "name", 0o600, text("new")); err != nil {
		t.Fatal(err)
	}
	if got, err := root.ReadFile("name"); err != nil || string(got) != "new" {
		t.Errorf("the file holds %q, %v; want the new content alone", got, err)
	}
}

func TestTemporaryFileIsInTheSameDirectory(t *testing.T) {
	for name, want := range map[string]string{"disks/a.qcow2": "disks/.a.qcow2.tmp", "qemu.json": ".qemu.json.tmp"} {
		if got := host.TempName(name); got != want {
			t.Errorf("TempName(%q) = %q; want %q", name, got, want)
		}
		if host.IsTempName(name) || !host.IsTempName(want) {
			t.Errorf("IsTempName(%q) = %v, IsTempName(%q) = %v", name, host.IsTempName(name), want, host.IsTempName(want))
		}
	}
}
