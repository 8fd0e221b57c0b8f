package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

//go:embed migrations
var embeddedFiles embed.FS

var embedded, _ = fs.Sub(embeddedFiles, "migrations")

// applicationID marks a database of vmand: "vman" in ASCII.
const applicationID = 0x766d616e

// ErrNewer is in the chain of the error for a database that a newer vmand has written.
var ErrNewer = errors.New("the database is of a newer version")

// A migration brings a database from the version below to its own.
type migration struct {
	version int
	name    string
	sql     string
}

// readMigrations returns the files of fsys named <version>_<name>.sql. Versions must
// count from 1 without a gap.
func readMigrations(fsys fs.FS) ([]migration, error) {
	names, err := fs.Glob(fsys, "*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []migration
	for i, name := range names {
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("migration %s: want number %d", name, i+1)
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		all = append(all, migration{version, name, string(text)})
	}
	return all, nil
}

// createFile creates an empty database file that only its owner may read, unless the
// file exists. SQLite gives its -wal and -shm files the same permissions.
func createFile(path string) error {
	// O_EXCL never opens an existing file, and so never closes it: that would drop
	// the locks SQLite may hold on it in this process.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		return errors.Join(f.Close(), syncDir(filepath.Dir(path)))
	}
	if !errors.Is(err, fs.ErrExist) {
		return fileFault(err, "create the database: its directory must exist and vmand must be allowed to write to it")
	}
	info, err := os.Stat(path)
	if err != nil {
		return fileFault(err, "open the database")
	}
	if !info.Mode().IsRegular() {
		return fileFault(fmt.Errorf("%s is not a file", path), "open the database")
	}
	if info.Mode().Perm()&0o077 != 0 {
		// It contains the hashes of the tokens. If the change is not permitted, SQLite
		// reports the problem.
		_ = os.Chmod(path, 0o600)
	}
	return nil
}

// migrate brings the database at o.Path to the newest version.
func migrate(ctx context.Context, o Options) error {
	all, err := readMigrations(o.migrations)
	if err != nil {
		return err
	}
	version, err := inspect(ctx, o.Path)
	if err != nil {
		return err
	}
	if version > len(all) {
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf(
			"database %s has version %d, this vmand supports only versions up to %d; it was not changed: "+
				"install the newer vmand that wrote it, or restore the backup from before (%s)",
			o.Path, version, len(all), recovery(o.Path)), Err: ErrNewer}
	}
	if version == len(all) {
		return nil
	}
	if version > 0 {
		name, err := backupBefore(ctx, o.Path, len(all))
		if err != nil {
			return fmt.Errorf("before migrating the database: %w", err)
		}
		o.Log.Info("database backed up before migrating it", "backup", name, "version", version)
	}
	// A migration may rebuild a table that others refer to, so references are
	// checked at its end and not while it runs. The pragma has no effect inside a
	// transaction.
	db, err := connect(ctx, o.Path, 1, migratorPragmas, "immediate")
	if err != nil {
		return openError(ctx, o.Path, err)
	}
	defer db.Close()
	for _, m := range all[version:] {
		if err := m.run(ctx, db); err != nil {
			return classify(ctx, o.Path, fmt.Errorf("migration %s: %w", m.name, err))
		}
		o.Log.Info("database migrated", "migration", m.name)
	}
	return nil
}

// run applies the migration to db in one transaction.
func (m migration) run(ctx context.Context, db *sqlx.DB) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	// A pragma does not take parameters.
	end := fmt.Sprintf(`PRAGMA user_version = %d; PRAGMA application_id = %d`, m.version, applicationID)
	for _, text := range []string{m.sql, end} {
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return err
		}
	}
	var broken int
	if err := tx.GetContext(ctx, &broken, `SELECT count(*) FROM pragma_foreign_key_check`); err != nil {
		return err
	}
	if broken > 0 {
		return fmt.Errorf("it breaks %d reference(s)", broken)
	}
	return tx.Commit()
}

// inspect checks the database at path and returns its version, 0 if it is empty. It
// opens it read-only, so that a database it refuses does not change, including its
// write-ahead log.
func inspect(ctx context.Context, path string) (version int, err error) {
	db, err := sqlx.Open("sqlite", dataSource(path, commonPragmas, "", "ro"))
	if err != nil {
		return 0, err
	}
	defer func() {
		if e := db.Close(); err == nil {
			err = e
		}
	}()
	db.SetMaxOpenConns(1)
	var finding string
	if err := db.GetContext(ctx, &finding, `PRAGMA quick_check(1)`); err != nil {
		return 0, openError(ctx, path, err)
	}
	if finding != "ok" {
		return 0, damaged(path, errors.New(finding))
	}
	var id, tables int
	err = db.QueryRowxContext(ctx, `
		SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_user_version, pragma_application_id`).Scan(&version, &id, &tables)
	if err != nil {
		return 0, openError(ctx, path, err)
	}
	if id != applicationID && (version != 0 || tables != 0) {
		return 0, &vm.Fault{Code: vm.CodeUnavailable, Detail: fmt.Sprintf(
			"%s is the database of another program and was not changed: choose another path for vmand", path)}
	}
	return version, nil
}

// openError is classify for an error while a database is opened.
func openError(ctx context.Context, path string, err error) error {
	return fmt.Errorf("open the database: %w", classify(ctx, path, err))
}
