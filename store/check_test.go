package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// names returns the names of the files in a directory.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	must(t, err)
	for _, f := range files {
		all = append(all, f.Name())
	}
	return all
}

func TestCheckAcceptsOnlyDatabasesThatVmandCanOpen(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, content, 0o600))
		return path
	}
	s := open(t)
	makeTemplate(t, s, "small")
	good := filepath.Join(dir, "good")
	must(t, Copy(t.Context(), s.path, good))
	content, err := os.ReadFile(good)
	must(t, err)
	newer := file("newer", content)
	run(t, newer, `PRAGMA user_version = 999`)
	other := file("other", nil)
	run(t, other, `CREATE TABLE t (x); PRAGMA user_version = 1`)
	short := file("short", content[:len(content)/2/4096*4096])
	fifo := filepath.Join(dir, "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))

	before, err := os.ReadFile(good)
	must(t, err)
	must(t, Check(t.Context(), good))
	if after, err := os.ReadFile(good); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed, %v", err)
	}
	for path, word := range map[string]string{
		newer:                       "999",
		other:                       "another program",
		short:                       "damaged",
		file("empty", nil):          "empty",
		file("text", []byte("hi!")): "damaged",
		filepath.Join(dir, "none"):  "no such file",
		dir:                         "not a file",
		fifo:                        "not a file",
	} {
		err := Check(t.Context(), path)
		if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v, want a refusal with %q", path, err, word)
		}
	}
}

func TestACopyIsANewFile(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	dir := t.TempDir()
	to := filepath.Join(dir, "copy")
	must(t, Copy(t.Context(), s.path, to))
	if info, err := os.Stat(to); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v, want mode 0600", info, err)
	}
	f := wantFault(t, Copy(t.Context(), s.path, to), vm.CodeExists)
	if !strings.Contains(f.Error(), to) {
		t.Errorf("%v does not name the file", f)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{
		"nothing to copy": Copy(t.Context(), filepath.Join(dir, "none"), filepath.Join(dir, "b")),
		"no directory":    Copy(t.Context(), s.path, filepath.Join(dir, "none", "b")),
		"canceled":        Copy(ended, s.path, filepath.Join(dir, "b")),
		"no database":     Copy(t.Context(), "/proc/self/exe", filepath.Join(dir, "b")),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"copy"}) {
		t.Errorf("there are %q, want only the copy", got)
	}
	if _, err := openAt(t, to).Template(t.Context(), "small"); err != nil {
		t.Error(err)
	}
}

// replaceable returns the directory of a database with the template "old" and of a
// database file "with" with the template "new".
func replaceable(t *testing.T) (dir, path, with string) {
	t.Helper()
	dir = t.TempDir()
	path, with = filepath.Join(dir, "vman.db"), filepath.Join(dir, "with")
	for name, template := range map[string]string{path: "old", with: "new"} {
		s, err := Open(t.Context(), Options{Path: name})
		must(t, err)
		makeTemplate(t, s, template)
		must(t, s.Close())
	}
	return dir, path, with
}

func wantTemplate(t *testing.T, path, name string) {
	t.Helper()
	if _, err := openAt(t, path).Template(t.Context(), name); err != nil {
		t.Error(err)
	}
}

func TestReplaceKeepsTheOldDatabaseWithItsLog(t *testing.T) {
	dir, path, with := replaceable(t)
	// As after a kill, the last change is only in the log.
	s, err := Open(t.Context(), Options{Path: path})
	must(t, err)
	makeTemplate(t, s, "last")
	killed := t.TempDir()
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(path + suffix)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(killed, "vman.db"+suffix), content, 0o600))
	}
	must(t, s.Close())
	must(t, os.Rename(filepath.Join(killed, "vman.db"), path))
	must(t, os.Rename(filepath.Join(killed, "vman.db-wal"), path+"-wal"))

	keep := filepath.Join(dir, "kept")
	must(t, Replace(t.Context(), path, with, keep))
	if got := names(t, dir); !slices.Equal(got, []string{"kept", "vman.db"}) {
		t.Errorf("there are %q, want the two databases", got)
	}
	wantTemplate(t, path, "new")
	wantTemplate(t, keep, "old")
	wantTemplate(t, keep, "last")
}

func TestReplaceKeepsADamagedDatabaseUnchanged(t *testing.T) {
	dir, path, with := replaceable(t)
	rubbish := bytes.Repeat([]byte("rubbish "), 1000)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		must(t, os.WriteFile(path+suffix, rubbish, 0o600))
	}
	keep := filepath.Join(dir, "kept")
	must(t, Replace(t.Context(), path, with, keep))
	for _, suffix := range []string{"", "-wal"} {
		if got, err := os.ReadFile(keep + suffix); err != nil || !bytes.Equal(got, rubbish) {
			t.Errorf("kept%s has %d bytes, %v; want the old content", suffix, len(got), err)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"kept", "kept-wal", "vman.db"}) {
		t.Errorf("there are %q", got)
	}
	wantTemplate(t, path, "new")
}

func TestReplaceWithoutADatabaseToReplace(t *testing.T) {
	dir, path, with := replaceable(t)
	must(t, os.Remove(path))
	must(t, os.WriteFile(path+"-wal", []byte("of an ended process"), 0o600))
	must(t, Replace(t.Context(), path, with, filepath.Join(dir, "kept")))
	if got := names(t, dir); !slices.Equal(got, []string{"vman.db"}) {
		t.Errorf("there are %q, want only the database", got)
	}
	wantTemplate(t, path, "new")
}

func TestReplaceRefusesAnOpenOrUnmovableDatabase(t *testing.T) {
	dir, path, with := replaceable(t)
	keep := filepath.Join(dir, "kept")
	s, err := Open(t.Context(), Options{Path: path})
	must(t, err)
	if err := Replace(t.Context(), path, with, keep); !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), path) {
		t.Errorf("while it is open: %v", err)
	}
	makeTemplate(t, s, "still-there")
	must(t, s.Close())
	must(t, os.WriteFile(keep, []byte("another file"), 0o600))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{
		"the name is taken": Replace(t.Context(), path, with, keep),
		"canceled":          Replace(ended, path, with, keep+"2"),
		"nothing to put":    Replace(t.Context(), path, with+"2", keep+"3"),
		"nowhere to put it": Replace(t.Context(), with+"/x", with, keep+"4"),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	wantTemplate(t, path, "still-there")
}

func TestNumbersAreNeverUsedTwice(t *testing.T) {
	_, path, older := replaceable(t)
	s, err := Open(t.Context(), Options{Path: older})
	must(t, err)
	apply(t, s, vm.Change{Events: []vm.Event{vm.NewEvent("daemon.started", vm.Resource{Kind: vm.DaemonKind}, nil), vm.NewEvent("daemon.stopping", vm.Resource{Kind: vm.DaemonKind}, nil)}})
	makeTemplate(t, s, "two")
	must(t, s.Close())
	for range 2 { // the second call is a no-op
		must(t, RaiseNumbers(t.Context(), path, older))
	}
	s = openAt(t, path)
	if last, err := s.LastEvent(t.Context()); err != nil || last != 2 {
		t.Errorf("the last event is %d, %v; want 2", last, err)
	}
	makeTemplate(t, s, "three")
	if got, err := s.Template(t.Context(), "three"); err != nil || got.Seq != 3 {
		t.Errorf("%+v, %v; want number 3", got, err)
	}
	for _, older := range []string{older + "2", "/proc/self/exe"} {
		if err := RaiseNumbers(t.Context(), path, older); err == nil {
			t.Errorf("%s: no error", older)
		}
	}
	if err := RaiseNumbers(t.Context(), older+"2", path); err == nil {
		t.Error("no error without a database")
	}
}

func TestRaiseNumbersCoversTablesOfLaterMigrations(t *testing.T) {
	path, older := filepath.Join(t.TempDir(), "vman.db"), filepath.Join(t.TempDir(), "older.db")
	must(t, reopen(t.Context(), path, versions(t, 1))) // without the table of gadgets
	must(t, reopen(t.Context(), older, versions(t, 2)))
	run(t, older, `INSERT INTO gadgets (name) VALUES ('one'), ('two')`)
	must(t, RaiseNumbers(t.Context(), path, older))
	must(t, reopen(t.Context(), path, versions(t, 2)))
	run(t, path, `INSERT INTO gadgets (name) VALUES ('three')`)
	db, err := sqlx.Open("sqlite", dataSource(path, nil, "", "ro"))
	must(t, err)
	defer db.Close()
	var seq int
	if err := db.Get(&seq, `SELECT seq FROM gadgets WHERE name = 'three'`); err != nil || seq != 3 {
		t.Errorf("the new row has number %d, %v; want 3", seq, err)
	}
}
