package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vmand/vm"
)

// restorable returns a database with the template "new" and a backup with the
// template "old" and an open operation.
func restorable(t *testing.T) (dir, path, file string) {
	t.Helper()
	dir, path, file = replaceable(t)
	must(t, os.Rename(path, path+".x"))
	must(t, os.Rename(file, path))
	must(t, os.Rename(path+".x", file))
	s, err := Open(t.Context(), Options{Path: file})
	must(t, err)
	apply(t, s, vm.Change{Operation: &vm.Operation{
		ID:        "1",
		Kind:      vm.VMCreate,
		Resource:  vm.VMResource("a"),
		State:     vm.OpRunning,
		CreatedAt: at,
		Log:       []vm.LogLine{},
	}})
	must(t, s.Close())
	return dir, path, file
}

func TestRestoreReplacesTheDatabaseAndKeepsIt(t *testing.T) {
	dir, path, file := restorable(t)
	kept, err := Restore(t.Context(), path, file)
	must(t, err)
	wantTemplate(t, path, "old")
	wantTemplate(t, kept, "new")
	wantTemplate(t, file, "old")
	if filepath.Dir(kept) != dir {
		t.Errorf("the previous database is kept as %s, want it in %s", kept, dir)
	}
}

func TestRestoreLeavesOperationsOpenAndSetsTheNote(t *testing.T) {
	_, path, file := restorable(t)
	_, err := Restore(t.Context(), path, file)
	must(t, err)
	s := openAt(t, path)
	op, err := s.Operation(t.Context(), "1")
	must(t, err)
	if op.State != vm.OpRunning {
		t.Errorf("operation %+v, want it unchanged", op)
	}
	note, err := s.Note(t.Context(), vm.RestoredNote)
	must(t, err)
	if restored, err := time.Parse(time.RFC3339, note); err != nil || time.Since(restored) > time.Hour {
		t.Errorf("note %q, %v; want the time of the restore", note, err)
	}
}

func TestEventNumbersContinueAfterARestore(t *testing.T) {
	_, path, file := restorable(t)
	s, err := Open(t.Context(), Options{Path: path})
	must(t, err)
	apply(t, s, vm.Change{Events: []vm.Event{vm.NewEvent("daemon.started", vm.Resource{Kind: vm.DaemonKind}, nil)}})
	last, err := s.LastEvent(t.Context())
	must(t, err)
	must(t, s.Close())

	_, err = Restore(t.Context(), path, file)
	must(t, err)
	s = openAt(t, path)
	apply(t, s, vm.Change{Events: []vm.Event{vm.NewEvent("daemon.started", vm.Resource{Kind: vm.DaemonKind}, nil)}})
	if next, err := s.LastEvent(t.Context()); err != nil || next <= last {
		t.Errorf("the first event has number %d, %v; want one after %d", next, err, last)
	}
}

func TestRestoreWithoutAPreviousDatabase(t *testing.T) {
	dir, path, file := restorable(t)
	must(t, os.Remove(path))
	kept, err := Restore(t.Context(), path, file)
	if err != nil || kept != "" {
		t.Errorf("kept %q, %v; want none", kept, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"vman.db", "with"}) {
		t.Errorf("files %q, want the database and the backup", got)
	}
	wantTemplate(t, path, "old")
}

func TestFailedRestoreChangesNothing(t *testing.T) {
	dir, path, file := restorable(t)
	text := filepath.Join(t.TempDir(), "text")
	must(t, os.WriteFile(text, []byte("hello"), 0o600))
	before, err := os.ReadFile(path)
	must(t, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()

	if _, err := Restore(t.Context(), path, text); err == nil {
		t.Error("restored a text file")
	}
	if _, err := Restore(t.Context(), path, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want that the backup does not exist", err)
	}
	if _, err := Restore(t.Context(), filepath.Join(text, "vman.db"), file); err == nil {
		t.Error("restored into a directory that does not exist")
	}
	if _, err := Restore(ended, path, file); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !slices.Equal(before, after) {
		t.Errorf("the database has changed (%v)", err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"vman.db", "with"}) {
		t.Errorf("files %q, want the database and the backup", got)
	}
}
