package store

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"vmand/vm"
)

// version returns the version of a database with versions(t, n).
func version(t testing.TB, n int) int {
	t.Helper()
	all, err := readMigrations(embedded)
	must(t, err)
	return len(all) - 1 + n
}

// versions returns the first n migrations of these: the present schema, one that
// adds a table, one that adds a column and one that rebuilds a table that another
// one refers to.
func versions(t testing.TB, n int) fstest.MapFS {
	t.Helper()
	all, err := readMigrations(embedded)
	must(t, err)
	name := func(n int, what string) string { return fmt.Sprintf("%04d_%s.sql", version(t, n), what) }
	all = append(all,
		migration{name: name(2, "gadgets"), sql: `CREATE TABLE gadgets (seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT) STRICT;`},
		migration{name: name(3, "note"), sql: `ALTER TABLE templates ADD COLUMN note TEXT;`},
		migration{name: name(4, "rebuild"), sql: `
			CREATE TABLE rebuilt (seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, cpu_count INTEGER NOT NULL,
				ram_mib INTEGER NOT NULL, created_at INTEGER NOT NULL, note TEXT) STRICT;
			INSERT INTO rebuilt SELECT seq, name, cpu_count, ram_mib, created_at, note FROM templates;
			DROP TABLE templates;
			ALTER TABLE rebuilt RENAME TO templates;`})
	m := fstest.MapFS{}
	for _, v := range all[:version(t, n)] {
		m[v.name] = &fstest.MapFile{Data: []byte(v.sql)}
	}
	return m
}

// reopen opens and closes the database with some migrations.
func reopen(ctx context.Context, path string, m fs.FS) error {
	s, err := Open(ctx, Options{Path: path, migrations: m})
	if err != nil {
		return err
	}
	return s.Close()
}

func TestAnOlderDatabaseIsBackedUpAndMigrated(t *testing.T) {
	path := filled(t)
	must(t, reopen(t.Context(), path, versions(t, 4)))
	if v, err := inspect(t.Context(), path); v != version(t, 4) || err != nil {
		t.Errorf("the database is of version %d, %v; want the last", v, err)
	}
	s, err := Open(t.Context(), Options{Path: path, migrations: versions(t, 4)})
	must(t, err)
	defer s.Close()
	if list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{}); err != nil || len(list) != 2000 {
		t.Errorf("%d VMs are left, %v; want all", len(list), err)
	}
	wantFault(t, s.applyErr(t.Context(), vm.Change{DeleteTemplate: "small"}), vm.CodeInUse)
	v := makeVM(9999)
	v.Template.Name = "none"
	wantFault(t, s.applyErr(t.Context(), vm.Change{NewVM: &v}), vm.CodeNotFound) // references are enforced again

	if info, err := os.Stat(path + fmt.Sprintf(".before-v%d", version(t, 4))); err != nil || info.Mode() != 0o600 {
		t.Fatalf("the backup: %v, %v; want it there for its owner alone", info, err)
	}
	old := openAt(t, path+fmt.Sprintf(".before-v%d", version(t, 4)))
	if list, err := old.VMs(t.Context(), vm.VMFilter{}, vm.Page{}); err != nil || len(list) != 2000 {
		t.Errorf("%d VMs are in the backup, %v; want all", len(list), err)
	}
	must(t, reopen(t.Context(), path, versions(t, 4))) // nothing to do: no second backup
	if found, _ := filepath.Glob(path + ".before*"); len(found) > 3 {
		t.Errorf("there are %q; want one backup and the -wal and -shm files of its open store", found)
	}
	err = reopen(t.Context(), path, versions(t, 3))
	if f := wantFault(t, err, vm.CodeUnavailable); !strings.Contains(f.Detail, fmt.Sprint("version ", version(t, 4))) || !strings.Contains(f.Detail, fmt.Sprintf(".before-v%d", version(t, 4))) {
		t.Errorf("the error of the older vmand is %q; want the version and the backup", f)
	}
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	for name, sql := range map[string]string{
		"in its middle":             `CREATE TABLE extra (a TEXT) STRICT; CREATE TABLE vms (a TEXT) STRICT;`,
		"with references to no row": `DELETE FROM templates;`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t)
			m := versions(t, 3)
			bad := fmt.Sprintf("%04d_bad.sql", version(t, 4))
			m[bad] = &fstest.MapFile{Data: []byte(sql)}
			for range 2 {
				if err := reopen(t.Context(), path, m); err == nil || !strings.Contains(err.Error(), bad) {
					t.Fatalf("got %v; want the name of the migration", err)
				}
			}
			if v, err := inspect(t.Context(), path); v != version(t, 3) || err != nil {
				t.Errorf("the database is of version %d, %v; want that of the last that succeeded", v, err)
			}
			for name, want := range map[string]int{path + fmt.Sprintf(".before-v%d", version(t, 4)): 1, path + fmt.Sprintf(".before-v%d.2", version(t, 4)): 3} {
				if v, err := inspect(t.Context(), name); v != version(t, want) || err != nil {
					t.Errorf("%s is of version %d, %v; want %d", filepath.Base(name), v, err, version(t, want))
				}
			}
			must(t, reopen(t.Context(), path, versions(t, 4)))
		})
	}
}

func TestMigrationsAreNumberedWithoutAGap(t *testing.T) {
	for _, name := range []string{"0003_gap.sql", "0001_twice.sql", "x.sql"} {
		m := fstest.MapFS{"0001_initial.sql": &fstest.MapFile{}, name: &fstest.MapFile{}}
		if err := reopen(t.Context(), filepath.Join(t.TempDir(), "vman.db"), m); err == nil || !strings.Contains(err.Error(), "want number 2") {
			t.Errorf("with %s: %v; want an error that names number 2", name, err)
		}
	}
}

func TestNullsAreValidForOlderSQLite(t *testing.T) {
	// Before SQLite 3.41 json_valid(NULL) is 0 and fails an integrity_check.
	all, err := readMigrations(embedded)
	must(t, err)
	for _, m := range all {
		for line := range strings.Lines(m.sql) {
			before, _, found := strings.Cut(line, "json_valid(")
			if found && !strings.HasPrefix(line, "--") && !strings.Contains(before, "NOT NULL") && !strings.HasSuffix(before, " IS NULL OR ") {
				t.Errorf("%s refuses NULL: %s", m.name, line)
			}
		}
	}
}

func TestDisksOfAnOlderDatabaseKeepTheirSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vman.db")
	first, err := fs.ReadFile(embedded, "0001_initial.sql")
	must(t, err)
	must(t, reopen(t.Context(), path, fstest.MapFS{"0001_initial.sql": &fstest.MapFile{Data: first}}))
	run(t, path, `INSERT INTO disks (id, size_mib, state, created_at, updated_at, revision) VALUES ('old', 3, 'available', 1, 1, 1)`)
	s := openAt(t, path)
	d, err := s.Disk(t.Context(), "old")
	if err != nil || d.Bytes() != 3<<20 {
		t.Errorf("the disk has %d bytes, %v; want 3 MiB", d.Bytes(), err)
	}
	d.SetBytes(5<<20 + 512)
	apply(t, s, vm.Change{Disks: []vm.DiskUpdate{{From: d.State, Disk: d}}})
	if d, err = s.Disk(t.Context(), "old"); err != nil || d.Bytes() != 5<<20+512 {
		t.Errorf("the disk has %d bytes, %v; want 5 MiB and 512 bytes", d.Bytes(), err)
	}
}
