package store

import (
	"reflect"
	"testing"

	"vmand/vm"
)

func TestEveryFieldOfADriveAndOfAVMsImageComesBack(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	full, bare := makeVM(0), makeVM(1)
	full.Root = madeOf("debian-12", someSum)
	full.CDROMs = []vm.CDROM{{ID: vm.SeedCDROM}, {ID: "cd-4", Image: "a.b_c", SHA256: otherSum, BootIndex: 99},
		{ID: "cd-1", Image: "x", SHA256: someSum}}
	apply(t, s, vm.Change{NewVM: &full})
	apply(t, s, vm.Change{NewVM: &bare})
	list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{})
	must(t, err)
	for i, want := range []vm.VM{full, bare} { // VMs of a list do not share drives
		for _, got := range []vm.VM{list[i], s.mustVM(t, want.ID)} {
			if got.Root != want.Root || !reflect.DeepEqual(got.CDROMs, want.CDROMs) {
				t.Errorf("read %+v and %+v; want %+v and %+v", got.Root, got.CDROMs, want.Root, want.CDROMs)
			}
		}
	}
	for range 2 { // first from the database, then from the cache
		v := s.mustVM(t, full.ID)
		v.CDROMs[1].Image = "changed"
		if again := s.mustVM(t, full.ID); again.CDROMs[1].Image != "a.b_c" {
			t.Fatalf("a change by one reader is visible to another: %+v", again.CDROMs)
		}
	}
	full.Root.Image, full.CDROMs = "", full.CDROMs[:1]
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: full.State, VM: full}})
	if got := s.mustVM(t, full.ID); got.Root != full.Root || !reflect.DeepEqual(got.CDROMs, full.CDROMs) {
		t.Errorf("read %+v, %+v; want %+v, %+v", got.Root, got.CDROMs, full.Root, full.CDROMs)
	}
	full.CDROMs = []vm.CDROM{}
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: full.State, VM: full}})
	var plain int
	must(t, s.reader.Get(&plain, `SELECT count(*) FROM vms WHERE root_image IS NULL AND cdroms IS NULL`))
	if got := s.mustVM(t, full.ID); got.CDROMs != nil || plain != 2 {
		t.Errorf("read %+v, and %d of 2 VMs have NULL columns; want none and 2", got.CDROMs, plain)
	}
}

func TestInvalidDrivesAreNotRecorded(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(0)
	apply(t, s, vm.Change{NewVM: &v})
	for name, d := range map[string]vm.CDROM{
		"no id":               {Image: "a", SHA256: someSum},
		"an invalid checksum": {ID: "cd-1", SHA256: ","},
		"an index below 0":    {ID: "cd-1", BootIndex: -1},
	} {
		bad := v
		bad.CDROMs = []vm.CDROM{d}
		if err := s.applyErr(t.Context(), vm.Change{VM: &vm.VMUpdate{From: bad.State, VM: bad}}); err == nil ||
			vm.ProblemOf(err).Code != vm.CodeInternal {
			t.Errorf("%s: %v; want an error of no class", name, err)
		}
		bad.ID, bad.UUID = "new", "new"
		if err := s.applyErr(t.Context(), vm.Change{NewVM: &bad}); err == nil {
			t.Errorf("%s: a new VM with it is recorded", name)
		}
	}
}
