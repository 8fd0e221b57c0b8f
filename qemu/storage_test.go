package qemu

import (
	"context"
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"vmand/vm"
)

// age sets the times of a file back by an hour.
func age(t *testing.T, path string) {
	t.Helper()
	then := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(path, then, then))
}

func TestASurveyReadsADiskOnlyWhenItHasChanged(t *testing.T) {
	dir := tempDir(t)
	d := newDryRun(t, dir)
	reads := map[string]int{}
	d.files = newFileSurvey(d.state, func(id string) (int64, error) {
		reads[id]++
		return d.DiskSize(context.Background(), id)
	})
	look := func(want map[string]int64, wantReads int) {
		t.Helper()
		clear(reads)
		seen, err := d.Survey(t.Context())
		must(t, err)
		if !maps.Equal(seen.DiskFiles, want) || len(reads) != wantReads {
			t.Errorf("the survey sees %v and read %v; want %v and %d reads", seen.DiskFiles, reads, want, wantReads)
		}
	}
	for i := range 3 {
		must(t, d.CreateDisk(t.Context(), fmt.Sprintf("d%d", i), vm.DiskFile{SizeMiB: 16}, nil, nil))
	}
	look(map[string]int64{"d0": 16, "d1": 16, "d2": 16}, 3)
	look(map[string]int64{"d0": 16, "d1": 16, "d2": 16}, 3) // so new that a change could have the same time
	for i := range 3 {
		age(t, d.layout.inState(dataDisk(fmt.Sprintf("d%d", i))))
	}
	look(map[string]int64{"d0": 16, "d1": 16, "d2": 16}, 3)
	look(map[string]int64{"d0": 16, "d1": 16, "d2": 16}, 0)
	must(t, d.ResizeDisk(t.Context(), vm.Disk{ID: "d1"}, 32))
	must(t, d.DeleteDisk(t.Context(), "d2"))
	look(map[string]int64{"d0": 16, "d1": 32}, 1)
	must(t, os.WriteFile(d.layout.inState(dataDisk("d0")), []byte("what is this"), 0o600))
	age(t, d.layout.inState(dataDisk("d0")))
	age(t, d.layout.inState(dataDisk("d1")))
	look(map[string]int64{"d0": 0, "d1": 32}, 2)
	look(map[string]int64{"d0": 0, "d1": 32}, 1) // the next survey reads it again
	if n := len(d.files.sizes); n != 1 {
		t.Errorf("the survey remembers %d files", n)
	}
}

func TestASurveySeesTheDisksGrow(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	disk := h.disk("data", "web", "/dev/sdb")
	s.Disks = []vm.Disk{disk}
	for _, step := range []struct {
		do   func()
		want int64
	}{
		{func() {}, 16},
		{func() { must(t, h.ResizeDisk(t.Context(), disk, 24)) }, 24},
		{func() { h.startSpec(s); must(t, h.ResizeDisk(t.Context(), disk, 32)) }, 32},
	} {
		step.do()
		seen, err := h.Survey(t.Context())
		must(t, err)
		if got := seen.DiskFiles["data"]; got != step.want {
			t.Errorf("the disk has %d MiB; want %d", got, step.want)
		}
		if st := seen.Storage; st.Path != h.layout.state || st.FreeMiB <= 0 || st.FreeMiB > st.SizeMiB {
			t.Errorf("the storage is %+v", st)
		}
	}
}
