package vm

import (
	"slices"
	"strconv"
)

// MaxCDROMs is how many CD-ROM drives a VM can have besides that of its seed.
const MaxCDROMs = 4

// SeedCDROM is the id of the drive with a VM's cloud-init seed.
const SeedCDROM = "seed"

// RootBootIndex is the boot index of a VM's root disk: a drive with a lower one is
// booted from first, one with a higher one when the root disk cannot be.
const RootBootIndex = 10

const MaxBootIndex = 99

// A CDROM is a CD-ROM drive of a VM with an ISO image in it, for the guest to read.
// A drive is there as long as there is something in it.
type CDROM struct {
	ID        string // "cd-1" to "cd-4", or [SeedCDROM]
	Image     string // the name of the image, as in [DiskFile]; empty for the seed
	SHA256    string // of its content; empty for the seed
	BootIndex int    // 1 to 99, unique on the VM; 0: it is never booted from
}

// CDROMID returns the id of the n-th drive, from 1 on.
func CDROMID(n int) string { return "cd-" + strconv.Itoa(n) }

// A NewCDROM is what is asked of a CD-ROM drive.
type NewCDROM struct {
	Image     string // an ISO image
	BootIndex int    // 0: it is never booted from
}

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

// SameCDROMs reports whether QEMU has the drives that are recorded of v; what QEMU
// did not say counts as so.
func (v VM) SameCDROMs(seen Observation) bool {
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

// CompareCDROMs puts the seed first and the others in the order of their numbers.
func CompareCDROMs(a, b CDROM) int {
	switch {
	case a.ID == b.ID:
		return 0
	case a.ID == SeedCDROM || b.ID != SeedCDROM && a.ID < b.ID:
		return -1
	}
	return 1
}
