package store

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// blocksOf returns how many bytes a file occupies, -1 if it does not exist.
func blocksOf(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == unix.ENOENT {
		return -1
	}
	must(t, err)
	if fs.FileMode(st.Mode).Perm() != 0o600 {
		t.Errorf("%s has mode %o", path, st.Mode)
	}
	return st.Blocks * 512
}

// lookAgain makes the next change check the space for the reserve.
func lookAgain(s *Store) { s.reserve.next = time.Time{} }

func TestTheReserveIsFreedAndAllocatedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vman.db")
	file := path + reserveSuffix
	o := Options{Path: path, Reserve: 4 << 20}
	s, err := Open(t.Context(), o)
	must(t, err)
	if got := blocksOf(t, file); got < o.Reserve {
		t.Fatalf("the reserve has %d bytes; want %d", got, o.Reserve)
	}
	for _, want := range []int64{3 << 20, 2 << 20, 1 << 20, -1} {
		if !s.reserve.release() {
			t.Fatal("the reserve has nothing to release")
		}
		if got := blocksOf(t, file); got != want {
			t.Errorf("%d bytes are left; want %d", got, want)
		}
	}
	if s.reserve.release() {
		t.Error("an empty reserve is released")
	}
	makeTemplate(t, s, "early")
	if got := blocksOf(t, file); got != -1 {
		t.Errorf("the reserve is allocated again at once, with %d bytes", got)
	}
	lookAgain(s)
	makeTemplate(t, s, "late")
	if got := blocksOf(t, file); got < o.Reserve {
		t.Errorf("the reserve has %d bytes again; want %d", got, o.Reserve)
	}
	must(t, s.Close())

	// A copy may have the size and no blocks.
	must(t, os.Truncate(file, 0))
	must(t, os.Truncate(file, o.Reserve))
	s, err = Open(t.Context(), o)
	must(t, err)
	must(t, s.Close())
	if got := blocksOf(t, file); got < o.Reserve {
		t.Errorf("after a copy the reserve has %d bytes; want %d", got, o.Reserve)
	}
}

func TestNoReserveIsAllocatedWithoutPlentyOfSpace(t *testing.T) {
	for _, size := range []int64{0, 1 << 60} {
		path := filepath.Join(t.TempDir(), "vman.db")
		s, err := Open(t.Context(), Options{Path: path, Reserve: size})
		must(t, err)
		if got := blocksOf(t, path+reserveSuffix); got != -1 {
			t.Errorf("Reserve %d: the file has %d bytes; want none", size, got)
		}
		must(t, s.Close())
	}
}

func TestAFailedReserveDoesNotPreventOpening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vman.db")
	elsewhere := filepath.Join(t.TempDir(), "precious")
	must(t, os.Symlink(elsewhere, path+reserveSuffix))
	s, err := Open(t.Context(), Options{Path: path, Reserve: 1 << 20})
	must(t, err)
	must(t, s.Close())
	if _, err := os.Lstat(elsewhere); err == nil {
		t.Error("the reserve follows a symbolic link")
	}
}

// fullDisk returns a database with a VM, a disk and a reserve on a file system that the
// file ballast fills completely. It needs root; without, ok is false.
func fullDisk(t *testing.T, size int64) (s *Store, ballast string, ok bool) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Logf("skipped: cannot mount a file system: %v", err)
		return nil, "", false
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	s, err := Open(t.Context(), Options{Path: filepath.Join(dir, "vman.db"), Reserve: 2 << 20})
	must(t, err)
	makeTemplate(t, s, "small")
	v, d := makeVM(1), makeDisk("data")
	apply(t, s, vm.Change{NewVM: &v, NewDisk: &d})
	ballast = filepath.Join(dir, "ballast")
	fill(t, ballast)
	return s, ballast, true
}

// fill writes to a file until the file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}

func TestStoppingAndDeletingWorkOnAFullFileSystem(t *testing.T) {
	s, ballast, ok := fullDisk(t, 16<<20)
	if !ok {
		return
	}
	defer func() { must(t, s.Close()) }()
	file := s.path + reserveSuffix
	if got := blocksOf(t, file); got != 2<<20 {
		t.Fatalf("the reserve has %d bytes before it is needed; want 2 MiB", got)
	}
	// The write-ahead log first uses the blocks that it has. There are as many changes
	// as for stopping and deleting 100 VMs, and another program takes the space that the
	// reserve frees.
	for i := range 100 {
		op := &vm.Operation{ID: fmt.Sprintf("op-%d", i), Kind: vm.VMStop, Resource: "vms/" + makeVM(1).ID,
			State: vm.OpRunning}
		apply(t, s, vm.Change{Operation: op})
		if i == 50 {
			fill(t, ballast)
		}
	}
	if got := blocksOf(t, file); got >= 2<<20 {
		t.Fatalf("the reserve has %d bytes; want less, it was needed", got)
	}
	apply(t, s, vm.Change{DeleteVM: makeVM(1).ID})
	apply(t, s, vm.Change{DeleteDisk: "data"})
	lookAgain(s)
	makeTemplate(t, s, "in-between")
	if got := blocksOf(t, file); got >= 2<<20 {
		t.Errorf("the reserve is allocated again on a nearly full file system")
	}

	must(t, os.Remove(ballast))
	lookAgain(s)
	makeTemplate(t, s, "after")
	if got := blocksOf(t, file); got != 2<<20 {
		t.Errorf("with space again the reserve has %d bytes; want 2 MiB", got)
	}
	var finding string
	must(t, s.reader.Get(&finding, "PRAGMA integrity_check"))
	if finding != "ok" {
		t.Errorf("integrity check: %s", finding)
	}
}

func TestOpeningWorksOnAFullFileSystem(t *testing.T) {
	s, ballast, ok := fullDisk(t, 16<<20)
	if !ok {
		return
	}
	must(t, s.Close())
	fill(t, ballast) // the space of the closed logs
	if s, err := Open(t.Context(), Options{Path: s.path}); err == nil {
		t.Errorf("it is opened on a full file system: %v", s.Close())
	}
	s, err := Open(t.Context(), Options{Path: s.path, Reserve: 2 << 20})
	must(t, err)
	apply(t, s, vm.Change{DeleteDisk: "data"})
	must(t, s.Close())
}
