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

// Replace puts the database at with, a file that is whole and that nobody has
// open, in the place of the one at path, if there is one, which becomes the new
// file keep. Whenever it is interrupted, there is a database at path that is
// either the old one (without its log, if it is too damaged to take that in) or
// the new one. Nobody may have the old one open either.
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
	// What is left of an old write-ahead log would be taken for the new
	// database's.
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

// setAside gives the database at path the second name keep, with all that is in
// its write-ahead log.
func setAside(ctx context.Context, path, keep string) error {
	_, err := inspect(ctx, path)
	if err == nil {
		err = foldLog(ctx, path)
	}
	if ctx.Err() != nil || errors.Is(err, errInUse) {
		return err
	}
	if err != nil {
		// It is damaged, or there is no room. It is kept as it is, and SQLite
		// finds the log of a database by its name.
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

// foldLog writes the write-ahead log into the database and removes it.
func foldLog(ctx context.Context, path string) error {
	db, err := connect(ctx, path, 1, commonPragmas, "")
	if err != nil {
		return err
	}
	var busy, pages, done int
	err = db.QueryRowxContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &done)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	// Who closes a database last removes the log.
	if _, err := os.Lstat(path + "-wal"); busy != 0 || err == nil {
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf("%v: %s", errInUse, path), Hint: "end it", Err: errInUse}
	}
	return nil
}

// RaiseNumbers makes the database at path go on counting where the one at older
// is, if that has come further. A number that a client knows an event or a
// version of something by is then never given to another one, nor is that of a
// table that the database gets only when it is migrated.
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
		UPDATE main.sqlite_sequence AS s SET seq = o.seq FROM older.sqlite_sequence AS o WHERE o.name = s.name AND o.seq > s.seq;
		INSERT INTO main.sqlite_sequence (name, seq)
			SELECT o.name, o.seq FROM older.sqlite_sequence AS o
			WHERE o.name NOT IN (SELECT name FROM main.sqlite_sequence);
		COMMIT`)
	return classify(ctx, path, err)
}
