package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vmand/vm"
)

// Replace moves the database at with to path. A database at path is kept as the new
// file keep. Both databases must be closed and the one at with whole. Whenever
// Replace is interrupted, there is a database at path: the old one (without its log,
// if it is too damaged to merge the log) or the new one.
func Replace(ctx context.Context, path, with, keep string) error {
	what := "replace the database " + path
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		if err := setAside(ctx, path, keep); err != nil {
			return fileFault(err, what)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fileFault(err, what)
	}
	// SQLite would apply a left-over write-ahead log to the new database.
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileFault(err, what)
		}
	}
	err = syncFile(with)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err == nil {
		err = os.Rename(with, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fileFault(err, what)
	}
	return nil
}

// setAside gives the database at path the second name keep, after its write-ahead
// log was merged into it.
func setAside(ctx context.Context, path, keep string) error {
	_, err := inspect(ctx, path)
	if err == nil {
		err = mergeLog(ctx, path)
	}
	if ctx.Err() != nil || errors.Is(err, errInUse) {
		return err
	}
	if err != nil {
		// It is damaged, or there is no space. Its log is kept beside it under the name
		// by which SQLite finds it.
		if err := os.Rename(path+"-wal", keep+"-wal"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Link(path, keep); err != nil {
		return err
	}
	return syncDir(filepath.Dir(keep))
}

var errInUse = errors.New("another program has the database open")

// mergeLog writes the write-ahead log into the database and removes it.
func mergeLog(ctx context.Context, path string) error {
	db, err := connect(ctx, path, 1, commonPragmas, "")
	if err != nil {
		return err
	}
	var busy, pages, done int
	err = db.QueryRowxContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &done)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	// The last connection to close a database removes the log.
	if _, err := os.Lstat(path + "-wal"); busy != 0 || err == nil {
		return &vm.Fault{
			Code:   vm.CodeUnavailable,
			Detail: fmt.Sprintf("%v: %s", errInUse, path),
			Hint:   "end it",
			Err:    errInUse,
		}
	}
	return nil
}

// RaiseNumbers raises the sequence numbers of the database at path to those of the
// one at older where these are higher. The number of an event or a row that a client
// has seen is then never used for another one, also in tables that a later migration
// adds.
func RaiseNumbers(ctx context.Context, path, older string) error {
	db, err := connect(ctx, path, 1, commonPragmas, "")
	if err != nil {
		return openError(ctx, path, err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, `ATTACH DATABASE ? AS older`, older); err != nil {
		return openError(ctx, older, err)
	}
	_, err = db.ExecContext(ctx, `
		BEGIN IMMEDIATE;
		UPDATE main.sqlite_sequence AS s SET seq = o.seq
			FROM older.sqlite_sequence AS o WHERE o.name = s.name AND o.seq > s.seq;
		INSERT INTO main.sqlite_sequence (name, seq)
			SELECT o.name, o.seq FROM older.sqlite_sequence AS o
			WHERE o.name NOT IN (SELECT name FROM main.sqlite_sequence);
		COMMIT`)
	return classify(ctx, path, err)
}
