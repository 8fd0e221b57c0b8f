package qemu

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// lockFile locks one of the bytes that QEMU locks, as QEMU does.
func lockFile(t testing.TB, f *os.File) {
	t.Helper()
	lock := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: 201, Len: 1}
	must(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock))
}

// A process with a lost pidfile is not found, but its files are not removed.
func TestFilesThatAProcessUsesAreNotRemoved(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{})
	if err := d.CreateVM(t.Context(), "a", vm.DiskFile{SizeMiB: 16}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: 16}, nil, nil); err != nil {
		t.Fatal(err)
	}
	var held []*os.File
	for _, name := range []string{vmRootDisk("a"), dataDisk("data")} {
		f, err := d.state.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lockFile(t, f)
		held = append(held, f)
	}
	remove := map[string]func() error{
		"stop":        func() error { return d.Shutdown(t.Context(), "a", vm.StopOptions{Force: true}, nil) },
		"delete":      func() error { return d.DeleteVM(t.Context(), "a") },
		"delete disk": func() error { return d.DeleteDisk(t.Context(), "data") },
	}
	for name, do := range remove {
		if err := do(); codeOf(err) != vm.CodeState {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, f := range held {
		f.Close()
	}
	for _, name := range []string{"stop", "delete", "delete disk"} {
		if err := remove[name](); err != nil {
			t.Errorf("%s, unused: %v", name, err)
		}
	}
}
