package store

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"vmand/vm"
)

// at is a time as the store keeps it.
var at = time.Date(2025, 3, 4, 5, 6, 7, 89_000_000, time.UTC)

// open returns a new store that is closed at the end of the test.
func open(t testing.TB) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "vman.db"))
}

func openAt(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func makeVM(i int) vm.VM {
	return vm.VM{ID: fmt.Sprintf("vm-%06d", i), UUID: fmt.Sprintf("0190a5b2-7d1e-7cc3-98a4-%012d", i),
		Template: vm.Template{Name: "small", CPUCount: 2, RAMMiB: 2048}, State: vm.Running, Reason: vm.ReasonRequested,
		Desired: vm.DesiredRunning, LocalIP: "10.0.0.17", Root: vm.RootDisk{SizeMiB: 10240, Base: "/var/lib/vman/images/debian-12.qcow2", BaseFormat: "qcow2"},
		Machine: "pc-q35-7.2", Accel: vm.KVM, CreatedAt: at, StartedAt: at.Add(time.Minute)}
}

func makeTemplate(t testing.TB, s *Store, name string) vm.Template {
	t.Helper()
	tmpl, err := s.CreateTemplate(context.Background(), vm.Template{Name: name, CPUCount: 2, RAMMiB: 2048, CreatedAt: at})
	must(t, err)
	return tmpl
}

func TestFirst(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	must(t, s.Apply(t.Context(), vm.Change{NewVM: &v}))
	got, err := s.VM(t.Context(), v.ID)
	must(t, err)
	t.Logf("%+v", got)
	list, err := s.VMs(t.Context(), vm.VMFilter{State: vm.Running}, vm.Page{Limit: 1})
	must(t, err)
	t.Logf("%+v", list)
	must(t, s.Apply(t.Context(), vm.Change{DeleteVM: v.ID}))
	must(t, s.DeleteTemplate(t.Context(), "small"))
}
