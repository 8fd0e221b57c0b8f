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

// duplicate reports whether err says that a unique value is there already.
func duplicate(err error) bool {
	code := resultCode(err)
	return code == sqlite3.SQLITE_CONSTRAINT_UNIQUE || code == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// dangling reports whether err says that a reference has, or would lose, what
// it refers to.
func dangling(err error) bool {
	code := resultCode(err)
	return code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY || code == sqlite3.SQLITE_CONSTRAINT_TRIGGER
}

// fault gives an error of the database its class. The end of ctx stays what it
// is; a broken constraint that no caller foresaw is a defect and gets no class.
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

// faultOf returns what a client is told of a result code of SQLite's, nil if
// the code means a defect.
func faultOf(code int, path string) *vm.Fault {
	dir := filepath.Dir(path)
	switch code & 0xff { // the rest is detail
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL:
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf("the database %s is locked by another program", path),
			Hint: "end the program that has it open"}
	case sqlite3.SQLITE_FULL:
		return &vm.Fault{Code: vm.CodeInsufficientStorage, Detail: fmt.Sprintf("no space left to write the database %s", path),
			Hint: "free space on the file system of " + dir}
	case sqlite3.SQLITE_IOERR:
		if code == sqlite3.SQLITE_IOERR_SHMSIZE { // what a full file system says to the index of the write-ahead log
			return faultOf(sqlite3.SQLITE_FULL, path)
		}
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf("the database %s cannot be read or written", path),
			Hint: "look for errors of the file system of " + dir}
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf("the database %s cannot be written", path),
			Hint: "let vmand write to the file and to its directory"}
	case sqlite3.SQLITE_CANTOPEN:
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf("the database %s cannot be opened", path),
			Hint: "let vmand read and write the file and its directory"}
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		f := damaged(path, nil)
		// A read that fails with EIO has SQLITE_CORRUPT in the end, too.
		f.Hint = "look for errors of the file system of " + dir + " first: they look the same"
		return f
	}
	return nil
}

// damaged returns the fault of a database that is not to be trusted, with the
// way out.
func damaged(path string, err error) *vm.Fault {
	return &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf("database %s is damaged; it is left as it is: %s", path, wayBack(path)), Err: err}
}

// wayBack says how to get a usable database at path again.
func wayBack(path string) string {
	beside := "there is none beside it"
	if found, _ := filepath.Glob(path + ".before-v*"); len(found) > 0 {
		beside = fmt.Sprintf("beside it are %q", found)
	}
	return fmt.Sprintf("put a backup in its place (%s), or move it and its -wal file away to begin with an empty one", beside)
}

// fileFault gives an error of the file system its class, unless it has one.
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
