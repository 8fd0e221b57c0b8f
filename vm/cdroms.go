package vm

import (
	"slices"
)

// A NewCDROM is what is asked of a CD-ROM drive.
type NewCDROM struct {
	Image     string // an ISO image
	BootIndex int    // 0: it is never booted from
}

const MaxBootIndex = 99

// CDROM returns one of v's drives, or a [Fault] of class [ErrNotFound].
func (v VM) CDROM(id string) (CDROM, error) {
	if i := slices.IndexFunc(v.CDROMs, func(c CDROM) bool { return c.ID == id }); i >= 0 {
		return v.CDROMs[i], nil
	}
	return CDROM{}, NotFound("CD-ROM drive of VM "+v.ID, id)
}

// HasSeed reports whether v has the drive for its seed.
func (v VM) HasSeed() bool {
	_, err := v.CDROM(SeedCDROM)
	return err == nil
}

// OrderCDROMs puts the seed first and the others in the order of their numbers.
func OrderCDROMs(a, b CDROM) int {
	switch {
	case a.ID == b.ID:
		return 0
	case a.ID == SeedCDROM || b.ID != SeedCDROM && a.ID < b.ID:
		return -1
	}
	return 1
}

// SameCDROMs reports whether QEMU has the drives that are recorded of v; what QEMU
// did not say counts as so.
func SameCDROMs(v VM, seen Observation) bool {
	if seen.CDROMs == nil {
		return true
	}
	if len(seen.CDROMs) != len(v.CDROMs) {
		return false
	}
	for _, c := range v.CDROMs {
		if !slices.Contains(seen.CDROMs, c.ID) {
			return false
		}
	}
	return true
}
