package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"vmand/vm"
)

// Check makes sure that the file at path is a database of vmand's that is whole
// and that this vmand can work with, and changes nothing of it.
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
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: path + " is an empty database, not one of vmand's"}
	case version > len(all):
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf("database %s has version %d and this vmand knows only versions up to %d", path, version, len(all)),
			Hint: "use the newer vmand that wrote it"}
	}
	return nil
}

// Copy writes a copy of the database at from, as it is at one moment, to the new
// file to: whole, checked and durable, or not at all. It refuses a file that is
// there. A vmand may have the database open, and goes on meanwhile.
func Copy(ctx context.Context, from, to string) error {
	if _, err := os.Stat(from); err != nil {
		return fileFault(err, "copy the database")
	}
	// The name is taken by an empty file, which then is replaced: whoever takes
	// it at the same time is told so.
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return &vm.Fault{Code: vm.CodeExists, Detail: to + " already exists; it is left as it is", Hint: "name another file"}
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
