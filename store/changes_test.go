package store

import (
	"reflect"
	"slices"
	"testing"

	"vmand/vm"
)

// changedSince returns the changes since a mark, with sorted names.
func changedSince(t *testing.T, s *Store, mark vm.Mark) vm.Changes {
	t.Helper()
	c, err := s.Changes(t.Context(), mark)
	must(t, err)
	for _, names := range [][]string{c.VMs, c.Disks, c.Images, c.Networks} {
		slices.Sort(names)
	}
	return c
}

func TestChangesNameTheRowsWrittenSinceAMark(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	start := changedSince(t, s, 0)
	if !start.All {
		t.Errorf("since the zero mark there is %+v; want all", start)
	}
	v, w, d, e, i, n := makeVM(0), makeVM(1), makeDisk("d"), makeDisk("e"), makeImage("i", someSum), fullNetwork()
	steps := []struct {
		name   string
		change vm.Change
		want   vm.Changes
	}{
		{"an event", vm.Change{Events: []vm.Event{{Type: "a.b"}}}, vm.Changes{}},
		{"a new VM and a new disk", vm.Change{NewVM: &v, NewDisk: &d}, vm.Changes{VMs: []string{v.ID}, Disks: []string{"d"}}},
		{"a new network and image", vm.Change{NewNetwork: &n, NewImage: &i}, vm.Changes{Images: []string{"i"}, Networks: []string{"full"}}},
		{"another VM", vm.Change{NewVM: &w, NewDisk: &e}, vm.Changes{VMs: []string{w.ID}, Disks: []string{"e"}}},
		{"updates", vm.Change{
			VM:      &vm.VMUpdate{From: v.State, VM: v},
			Disks:   []vm.DiskUpdate{{From: d.State, Disk: d}, {From: e.State, Disk: e}, {From: d.State, Disk: d}},
			Image:   &vm.ImageUpdate{From: i.State, Image: i},
			Network: &n,
		}, vm.Changes{VMs: []string{v.ID}, Disks: []string{"d", "e"}, Images: []string{"i"}, Networks: []string{"full"}}},
		{"learned facts of one VM", vm.Change{Learned: []vm.Learned{{VMID: v.ID}, {VMID: w.ID, Boot: vm.Boot{DHCP: at}}}},
			vm.Changes{VMs: []string{w.ID}}},
		{"deletions", vm.Change{DeleteVM: v.ID, DeleteDisk: "d", DeleteImage: "i", DeleteNetwork: "full"},
			vm.Changes{VMs: []string{v.ID}, Disks: []string{"d"}, Images: []string{"i"}, Networks: []string{"full"}}},
	}
	mark := start.Mark
	for _, tt := range steps {
		apply(t, s, tt.change)
		got := changedSince(t, s, mark)
		mark = got.Mark
		got.Mark = 0
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v; want %+v", tt.name, got, tt.want)
		}
	}
	want := vm.Changes{Mark: mark, VMs: []string{v.ID, w.ID}, Disks: []string{"d", "e"}, Images: []string{"i"}, Networks: []string{"full"}}
	if got := changedSince(t, s, start.Mark); !reflect.DeepEqual(got, want) {
		t.Errorf("since the start: %+v; want each name once: %+v", got, want)
	}
	if got := changedSince(t, s, mark); !reflect.DeepEqual(got, vm.Changes{Mark: mark}) {
		t.Errorf("since the last mark: %+v; want nothing", got)
	}
}

func TestTooManyChangesAreAll(t *testing.T) {
	s := open(t)
	mark := changedSince(t, s, 0).Mark
	row := func(name string) []changedRow { return []changedRow{{diskRow, name}} }
	s.changes.add(row("first"))
	for range changeLogSize - 1 {
		s.changes.add(row("other"))
	}
	if got := changedSince(t, s, mark); got.All || !slices.Equal(got.Disks, []string{"first", "other"}) {
		t.Errorf("%d changes: %+v; want both names", changeLogSize, got)
	}
	s.changes.add(row("last"))
	if got := changedSince(t, s, mark); !got.All || got.Disks != nil {
		t.Errorf("one change more: %+v; want all", got)
	}
	if got := changedSince(t, s, mark+1); got.All || !slices.Equal(got.Disks, []string{"last", "other"}) {
		t.Errorf("one mark later: %+v; want both names", got)
	}
}

func TestAForeignWriteChangesAll(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	mark := changedSince(t, s, 0).Mark
	for i := range 50 { // own writes, also refused ones, are not foreign
		v := makeVM(i)
		apply(t, s, vm.Change{NewVM: &v})
		if err := s.applyErr(t.Context(), vm.Change{NewVM: &v}); err == nil {
			t.Fatal("a VM is created twice")
		}
		must(t, s.SetNote(t.Context(), "n", v.ID))
		if got := changedSince(t, s, mark); got.All || len(got.VMs) != i+1 {
			t.Fatalf("after %d own writes: %+v", i, got)
		}
	}
	run(t, s.path, `UPDATE vms SET reason_detail = 'by hand'`)
	got := changedSince(t, s, mark)
	if !got.All || got.VMs != nil {
		t.Errorf("after a foreign write: %+v; want all", got)
	}
	if got := changedSince(t, s, got.Mark); got.All {
		t.Errorf("since that mark: %+v; want nothing", got)
	}
	if got := s.mustVM(t, makeVM(0).ID); got.ReasonDetail != "by hand" {
		t.Errorf("read %q; want the written value", got.ReasonDetail)
	}
}

func TestAWriterNoticesAForeignWrite(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(0)
	apply(t, s, vm.Change{NewVM: &v})
	s.mustVM(t, v.ID)
	run(t, s.path, `UPDATE vms SET reason_detail = 'by hand'`)
	s.foreign.looked.Add(-int64(foreignCheck))
	must(t, s.SetNote(t.Context(), "n", "x"))
	if _, _, kept := s.cache.get(v.ID); kept {
		t.Error("the VM is still cached")
	}
}
