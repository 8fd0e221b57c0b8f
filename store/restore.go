package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"vmand/vm"
)

// Restore replaces the database at path, which must not be open, with the backup
// in file. It returns the name under which the previous database is kept, "" if
// there was none.
//
// The backup is checked, copied and migrated before the database changes, so the
// database is either the old one or the new one when Restore is interrupted. Event
// and version numbers continue after those of the previous database, because
// clients remember them.
//
// Operations that were in progress when the backup was taken stay open. Restore
// sets the note [vm.RestoredNote], which tells the next start to end them without
// touching the host.
func Restore(ctx context.Context, path, file string) (kept string, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".restore-*")
	if err != nil {
		return "", fileFault(err, "restore the database "+path)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	at := time.Now().UTC()
	ready := filepath.Join(dir, filepath.Base(path))
	if err := prepareRestore(ctx, path, file, ready, at); err != nil {
		return "", err
	}
	kept = path + ".before-restore-" + at.Format("20060102T150405.000Z")
	if err := Replace(ctx, path, ready, kept); err != nil {
		return "", err
	}
	if _, err := os.Lstat(kept); errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return kept, nil
}

// prepareRestore writes the database that is to replace the one at path to ready.
func prepareRestore(ctx context.Context, path, file, ready string, at time.Time) error {
	if err := Check(ctx, file); err != nil {
		return err
	}
	if err := Copy(ctx, file, ready); err != nil {
		return err
	}
	// The numbers of a damaged database cannot be read.
	if Check(ctx, path) == nil {
		if err := RaiseNumbers(ctx, ready, path); err != nil {
			return err
		}
	}
	s, err := Open(ctx, Options{Path: ready}) // migrates it
	if err != nil {
		return err
	}
	return errors.Join(s.SetNote(ctx, vm.RestoredNote, at.Format(time.RFC3339)), s.Close())
}
