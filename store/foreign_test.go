package store

import (
	"testing"

	"vmand/vm"
)

func TestForeignVersionChangesWithTheWritesOfOtherProcessesOnly(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	version := func() int64 {
		t.Helper()
		v, err := s.ForeignVersion(t.Context())
		must(t, err)
		return v
	}
	before := version()
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	if now := version(); now != before {
		t.Errorf("version %d after a write of this store, want %d still", now, before)
	}
	other, err := Open(t.Context(), Options{Path: s.path})
	must(t, err)
	defer other.Close()
	s.mustVM(t, v.ID) // is cached now
	v.State = vm.Paused
	apply(t, other, vm.Change{VM: &vm.VMUpdate{From: vm.Running, VM: v}})
	if now := version(); now == before {
		t.Errorf("version %d still after a write of another store", now)
	}
	if got := s.mustVM(t, v.ID); got.State != vm.Paused {
		t.Errorf("VM read as %s after the write was noticed, want paused", got.State)
	}
}
