package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jmoiron/sqlx"
	sqlite3 "modernc.org/sqlite/lib"

	"vmand/vm"
)

func TestDatabaseErrorsHaveAClass(t *testing.T) {
	for code, want := range map[int]vm.Code{
		sqlite3.SQLITE_BUSY: vm.CodeUnavailable, sqlite3.SQLITE_BUSY_SNAPSHOT: vm.CodeUnavailable,
		sqlite3.SQLITE_LOCKED: vm.CodeUnavailable,
		sqlite3.SQLITE_FULL:   vm.CodeInsufficientStorage, sqlite3.SQLITE_IOERR_SHMSIZE: vm.CodeInsufficientStorage,
		sqlite3.SQLITE_IOERR_WRITE: vm.CodeUnavailable, sqlite3.SQLITE_IOERR_FSYNC: vm.CodeUnavailable,
		sqlite3.SQLITE_READONLY: vm.CodeUnavailable, sqlite3.SQLITE_READONLY_DIRECTORY: vm.CodeUnavailable,
		sqlite3.SQLITE_CANTOPEN: vm.CodeUnavailable, sqlite3.SQLITE_CORRUPT: vm.CodeUnavailable,
		sqlite3.SQLITE_NOTADB: vm.CodeUnavailable,
	} {
		f := faultOf(code, "/srv/vman.db")
		if f == nil || f.Code != want || !strings.Contains(f.Detail, "/srv/vman.db") {
			t.Errorf("code %d is %+v; want %s and the path", code, f, want)
		}
	}
	if f := faultOf(sqlite3.SQLITE_CORRUPT, "/srv/vman.db"); !strings.Contains(f.Hint, "file system of /srv") {
		t.Errorf("damage has the hint %q; want it to name the file system", f.Hint)
	}
	for _, code := range []int{0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_CONSTRAINT_CHECK} {
		if f := faultOf(code, "/srv/vman.db"); f != nil {
			t.Errorf("code %d is %+v; want none: it is a defect", code, f)
		}
	}
}

func TestFileSystemErrorsHaveAClass(t *testing.T) {
	full := fileFault(&os.PathError{Op: "open", Path: "/x", Err: syscall.ENOSPC}, "back up")
	if wantFault(t, full, vm.CodeInsufficientStorage); !errors.Is(full, vm.ErrUnavailable) {
		t.Errorf("%v is not of class unavailable", full)
	}
	wantFault(t, fileFault(syscall.EACCES, "back up"), vm.CodeUnavailable)
	wantFault(t, fileFault(full, "again"), vm.CodeInsufficientStorage)
}

func TestALockOfAnotherProgramIsReported(t *testing.T) {
	s := open(t)
	_, err := s.writer.Exec("PRAGMA busy_timeout = 1")
	must(t, err)
	other, err := sqlx.Open("sqlite", dataSource(s.path, nil, "immediate", "rw"))
	must(t, err)
	defer other.Close()
	tx, err := other.Beginx()
	must(t, err)
	err = s.applyErr(t.Context(), vm.Change{NewTemplate: &vm.Template{Name: "small", CPUCount: 1, RAMMiB: 1}})
	if f := wantFault(t, err, vm.CodeUnavailable); !strings.Contains(f.Detail, s.path+" is locked") {
		t.Errorf("the detail is %q", f.Detail)
	}
	must(t, tx.Rollback())
	makeTemplate(t, s, "small")
}

// fillUp records operations until the disk is full. It returns how many were recorded
// and the error of the last one.
func fillUp(t *testing.T, s *Store) (n int, err error) {
	t.Helper()
	message := strings.Repeat("x", 3000)
	for ; err == nil; n++ {
		if n > 10_000 {
			t.Fatal("the disk does not fill up")
		}
		err = s.applyErr(t.Context(), vm.Change{Operation: &vm.Operation{ID: "fill" + message[:n%7] +
			strings.Repeat("i", n), Kind: vm.VMStart,
			Resource: "vms/a", State: vm.OpRunning, Log: []vm.LogLine{{At: at, Message: message}}}})
	}
	return n - 1, err
}

func TestAFullDiskIsReportedAndRecoveredFrom(t *testing.T) {
	// A mount needs root. A limit of the pages does not, and SQLite returns the same
	// error.
	dir, free := t.TempDir(), func(s *Store) {
		_, err := s.writer.Exec("PRAGMA max_page_count = 100000")
		must(t, err)
	}
	limit := func(s *Store) {
		_, err := s.writer.Exec("PRAGMA max_page_count = 100")
		must(t, err)
	}
	t.Run("by a limit", func(t *testing.T) { testFull(t, dir, limit, free) })

	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Logf("skipped the file system of 1 MiB: %v", err)
		return
	}
	defer func() { must(t, syscall.Unmount(small, 0)) }()
	ballast := filepath.Join(small, "ballast")
	t.Run("by a file system", func(t *testing.T) {
		testFull(t, small,
			func(*Store) { must(t, os.WriteFile(ballast, make([]byte, 600<<10), 0o600)) },
			func(*Store) { must(t, os.Remove(ballast)) })
	})
}

func testFull(t *testing.T, dir string, limit, free func(*Store)) {
	s, err := Open(t.Context(), Options{Path: filepath.Join(dir, "vman.db")})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	limit(s)
	n, err := fillUp(t, s)
	f := wantFault(t, err, vm.CodeInsufficientStorage)
	if n == 0 || !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(f.Detail, s.path) ||
		!strings.Contains(f.Hint, dir) {
		t.Errorf("after %d operations: %+v; want the path in it", n, f)
	}
	if _, err := fillUp(t, s); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("second time: %v; want the same class", err)
	}
	list, err := s.Operations(t.Context(), vm.OperationFilter{}, vm.Page{})
	if err != nil || len(list) < n {
		t.Errorf("on a full disk %d operations are read, %v; want the %d that were recorded", len(list), err, n)
	}
	must(t, s.Ping(t.Context()))

	free(s)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	if more, err := s.Operations(t.Context(), vm.OperationFilter{}, vm.Page{}); err != nil || len(more) != len(list) {
		t.Errorf("with space again %d operations are read, %v; want %d", len(more), err, len(list))
	}
	var finding string
	must(t, s.reader.Get(&finding, "PRAGMA integrity_check"))
	if finding != "ok" {
		t.Errorf("integrity check: %s", finding)
	}
}
