package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vmand/vm"
)

// Check reports whether the file at path is an undamaged vmand database of a version
// that this vmand supports. It does not modify the file.
func Check(ctx context.Context, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fileFault(err, "check the database")
	}
	if !info.Mode().IsRegular() {
		return fileFault(fmt.Errorf("%s is not a file", path), "check the database")
	}
	all, err := readMigrations(embedded)
	if err != nil {
		return err
	}
	version, err := inspect(ctx, path)
	switch {
	case err != nil:
		return err
	case version == 0:
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: path + " is an empty database, not a vmand database"}
	case version > len(all):
		return &vm.Fault{
			Code: vm.CodeUnavailable,
			Detail: fmt.Sprintf("database %s has version %d, this vmand supports only versions up to %d",
				path, version, len(all)),
			Hint: "use the newer vmand that wrote it",
		}
	}
	return nil
}

// Copy writes a consistent, checked and durable copy of the database at from to the new
// file to. After an error to does not exist. It fails if to exists. A running vmand may
// have the database open; it is not blocked.
func Copy(ctx context.Context, from, to string) error {
	if _, err := os.Stat(from); err != nil {
		return fileFault(err, "copy the database")
	}
	// An empty file reserves the name until the copy replaces it, so one of two
	// concurrent calls fails.
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return &vm.Fault{
			Code:   vm.CodeExists,
			Detail: to + " already exists and was not changed",
			Hint:   "choose another file name",
		}
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fileFault(err, "copy the database to "+to)
	}
	if err := backup(ctx, from, to); err != nil {
		return errors.Join(err, os.Remove(to), syncDir(filepath.Dir(to)))
	}
	return nil
}
