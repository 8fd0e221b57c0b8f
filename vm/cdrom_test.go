package vm

import (
	"errors"
	"reflect"
	"slices"
	"testing"
)

func TestCDROMsOfAVM(t *testing.T) {
	v := VM{ID: "web-1", CDROMs: []CDROM{{ID: CDROMID(2)}, {ID: SeedCDROM}, {ID: CDROMID(1)}}}
	slices.SortFunc(v.CDROMs, CompareCDROMs)
	if want := []CDROM{{ID: "seed"}, {ID: "cd-1"}, {ID: "cd-2"}}; !reflect.DeepEqual(v.CDROMs, want) {
		t.Errorf("sorted to %v; want %v", v.CDROMs, want)
	}
	if c, err := v.CDROM("cd-2"); err != nil || c.ID != "cd-2" || !v.HasSeed() {
		t.Errorf("CDROM = %v, %v; HasSeed = %t", c, err, v.HasSeed())
	}
	_, err := v.CDROM("cd-3")
	if !errors.Is(err, ErrNotFound) || err.Error() != "CD-ROM drive cd-3 of VM web-1 not found" {
		t.Errorf("a missing drive: %v", err)
	}
	for _, c := range []struct {
		seen []string
		want bool
	}{
		{nil, true}, // QEMU did not report its drives
		{[]string{"cd-2", "cd-1", "seed"}, true},
		{[]string{"cd-1", "seed"}, false},
		{[]string{"cd-1", "cd-3", "seed"}, false},
		{[]string{"cd-1", "cd-2", "cd-3", "seed"}, false},
		{[]string{}, false},
	} {
		if got := v.SameCDROMs(Observation{CDROMs: c.seen}); got != c.want {
			t.Errorf("SameCDROMs(%v) = %t; want %t", c.seen, got, c.want)
		}
	}
}
