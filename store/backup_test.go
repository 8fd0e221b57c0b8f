package store

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vmand/vm"
)

func TestBackupOfABusyDatabaseIsConsistent(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	ctx, stop := context.WithCancel(t.Context())
	first := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			v := makeVM(i)
			op := vm.Operation{ID: v.ID, Kind: vm.VMCreate, Resource: vm.VMResource(v.ID), State: vm.OpSucceeded}
			if err := s.applyErr(t.Context(), vm.Change{NewVM: &v, Operation: &op}); err != nil {
				t.Error(err)
				break
			}
			if i == 100 {
				close(first)
			}
		}
	})
	<-first
	path := filepath.Join(t.TempDir(), "copy.db")
	must(t, os.WriteFile(path, []byte("what was there"), 0o644))
	for range 3 {
		must(t, s.Backup(t.Context(), path))
	}
	stop()
	writer.Wait()

	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the backup: %v, %v; want mode 0600", info.Mode(), err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("there are %v, %v; want only the backup", files, err)
	}
	b := openAt(t, path)
	vms, err := b.VMs(t.Context(), vm.VMFilter{}, vm.Page{})
	must(t, err)
	ops, err := b.Operations(t.Context(), vm.OperationFilter{}, vm.Page{})
	must(t, err)
	if len(vms) <= 100 || len(vms) != len(ops) {
		t.Errorf("the backup has %d VMs and %d operations; want the same number, and more than 100", len(vms), len(ops))
	}
}

func TestFailedBackupLeavesNoFile(t *testing.T) {
	s := open(t)
	dir := t.TempDir()
	occupied := filepath.Join(dir, "occupied")
	must(t, os.MkdirAll(filepath.Join(occupied, "x"), 0o700))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx  context.Context
		path string
	}{
		"no directory":         {t.Context(), filepath.Join(dir, "none", "b")},
		"a directory in place": {t.Context(), occupied},
		"canceled":             {ended, filepath.Join(dir, "b")},
	} {
		err := s.Backup(tt.ctx, tt.path)
		if err == nil || !strings.Contains(err.Error(), "back up the database to "+tt.path) {
			t.Errorf("%s: %v; want the path", name, err)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v, %v are left; want only the earlier files", files, err)
	}
}
