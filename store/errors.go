package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"vmand/vm"
)

// resultCode returns SQLite's extended result code of err, 0 if it has none.
func resultCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// duplicate reports whether err is a violation of a UNIQUE or PRIMARY KEY constraint.
func duplicate(err error) bool {
	code := resultCode(err)
	return code == sqlite3.SQLITE_CONSTRAINT_UNIQUE || code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// dangling reports whether err is a violation of a reference: to a row that does not
// exist, or from a row to one that is deleted.
func dangling(err error) bool {
	code := resultCode(err)
	return code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY || code == sqlite3.SQLITE_CONSTRAINT_TRIGGER
}

// fault gives an error of the database its class. The end of ctx stays an error of
// the context. A constraint violation that no caller handled is a defect and gets no
// class.
func (s *Store) fault(ctx context.Context, err error) error {
	return classify(ctx, s.path, err)
}

func classify(ctx context.Context, path string, err error) error {
	var f *vm.Fault
	if err == nil || errors.As(err, &f) {
		return err
	}
	if cause := ctx.Err(); cause != nil {
		if errors.Is(err, cause) {
			return fmt.Errorf("database: %w", err)
		}
		return fmt.Errorf("database: %w: %w", cause, err)
	}
	if f := faultOf(resultCode(err), path); f != nil {
		f.Err = err
		return f
	}
	return fmt.Errorf("database %s: %w", path, err)
}

// faultOf returns the fault for a result code of SQLite, nil if the code means a
// defect.
func faultOf(code int, path string) *vm.Fault {
	dir := filepath.Dir(path)
	switch code & 0xff { // the upper bits are details
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL:
		return &vm.Fault{
			Code:   vm.CodeUnavailable,
			Detail: fmt.Sprintf("the database %s is locked by another program", path),
			Hint:   "end the program that has it open",
		}
	case sqlite3.SQLITE_FULL:
		return &vm.Fault{
			Code:   vm.CodeInsufficientStorage,
			Detail: fmt.Sprintf("no space left to write the database %s", path),
			Hint:   "free space on the file system of " + dir,
		}
	case sqlite3.SQLITE_IOERR:
		// The index of the write-ahead log fails so on a full file system.
		if code == sqlite3.SQLITE_IOERR_SHMSIZE {
			return faultOf(sqlite3.SQLITE_FULL, path)
		}
		return &vm.Fault{
			Code:   vm.CodeUnavailable,
			Detail: fmt.Sprintf("the database %s cannot be read or written", path),
			Hint:   "check the file system of " + dir + " for errors",
		}
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return &vm.Fault{
			Code:   vm.CodeUnavailable,
			Detail: fmt.Sprintf("the database %s cannot be written", path),
			Hint:   "allow vmand to write to the file and to its directory",
		}
	case sqlite3.SQLITE_CANTOPEN:
		return &vm.Fault{
			Code:   vm.CodeUnavailable,
			Detail: fmt.Sprintf("the database %s cannot be opened", path),
			Hint:   "allow vmand to read and write the file and its directory",
		}
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		f := damaged(path, nil)
		// A read that fails with EIO ends as SQLITE_CORRUPT, too.
		f.Hint = "first check the file system of " + dir + " for errors: they look the same"
		return f
	}
	return nil
}

// damaged returns the fault of a damaged database. Its detail says how to recover.
func damaged(path string, err error) *vm.Fault {
	return &vm.Fault{
		Code:   vm.CodeUnavailable,
		Detail: fmt.Sprintf("database %s is damaged and was not changed: %s", path, recovery(path)),
		Err:    err,
	}
}

// recovery says how to get a usable database at path again.
func recovery(path string) string {
	beside := "none found beside it"
	if found, _ := filepath.Glob(path + ".before-v*"); len(found) > 0 {
		beside = fmt.Sprintf("found beside it: %q", found)
	}
	return fmt.Sprintf("replace it by a backup (%s), or move it and its -wal file away to start with an empty one", beside)
}

// fileFault gives an error of the file system its class, unless it is a fault already.
func fileFault(err error, what string) error {
	var f *vm.Fault
	if errors.As(err, &f) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", what, err)
	}
	code := vm.CodeUnavailable
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = vm.CodeInsufficientStorage
	}
	return &vm.Fault{Code: code, Detail: what, Err: err}
}
