package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jmoiron/sqlx"
	sqlite3 "modernc.org/sqlite/lib"
)

// Backup writes a consistent, durable copy of the database to path and replaces any file
// there. After an error path is unchanged. It does not block readers or writers.
func (s *Store) Backup(ctx context.Context, path string) error {
	return backup(ctx, s.path, path)
}

// backupBefore copies the database to a file beside it before a migration to
// version, and returns the name, which was free.
func backupBefore(ctx context.Context, path string, version int) (string, error) {
	target := fmt.Sprintf("%s.before-v%d", path, version)
	name := target
	for i := 2; ; i++ {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return "", err
		}
		name = fmt.Sprintf("%s.%d", target, i)
	}
	return name, backup(ctx, path, name)
}

func backup(ctx context.Context, from, to string) error {
	temp, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".*") // mode 0600
	if err != nil {
		return fileFault(err, "back up the database to "+to)
	}
	if err := errors.Join(temp.Close(), copyInto(ctx, from, temp.Name(), to)); err != nil {
		return fileFault(errors.Join(err, os.Remove(temp.Name())), "back up the database to "+to)
	}
	return nil
}

// copyInto copies the database to the empty file temp and renames that to to.
func copyInto(ctx context.Context, from, temp, to string) error {
	if err := vacuumInto(ctx, from, temp); err != nil {
		return err
	}
	if _, err := inspect(ctx, temp); err != nil {
		return fmt.Errorf("check the copy: %w", err)
	}
	if err := syncFile(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// vacuumInto copies the database to the empty file at to. It opens a connection of
// its own: those of the readers are read-only, and the writer's would block writes.
func vacuumInto(ctx context.Context, from, to string) (err error) {
	db, err := sqlx.Open("sqlite", dataSource(from, commonPragmas, "", "rw"))
	if err != nil {
		return err
	}
	defer func() {
		if e := db.Close(); err == nil {
			err = e
		}
	}()
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, to); err != nil {
		if resultCode(err)&0xff == sqlite3.SQLITE_CORRUPT {
			return classify(ctx, from, err)
		}
		return classify(ctx, to, err)
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncDir makes the entries of a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
