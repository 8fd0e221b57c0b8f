package vm

import (
	"slices"
	"strconv"
)

// MaxCDROMs is the maximum number of CD-ROM drives of a VM, without the drive of its seed.
const MaxCDROMs = 4

// SeedCDROM is the id of the drive that holds the cloud-init seed of a VM.
const SeedCDROM = "seed"

// RootBootIndex is the boot index of the root disk of a VM. The firmware tries a drive with
// a lower index before the root disk, and one with a higher index after it.
const RootBootIndex = 10

// MaxBootIndex is the highest boot index of a CD-ROM drive.
const MaxBootIndex = 99

// A CDROM is a CD-ROM drive of a VM with an ISO image in it. The drive exists only while it
// holds an image: ejecting the image removes the drive.
type CDROM struct {
	ID        string // "cd-1" to "cd-4", or [SeedCDROM]
	Image     string // the name of the image, as in [DiskFile]; empty for the seed
	SHA256    string // of the content; empty for the seed
	BootIndex int    // 1 to [MaxBootIndex], unique on the VM; 0: not a boot device
}

// CDROMID returns the id of drive n, counted from 1.
func CDROMID(n int) string { return "cd-" + strconv.Itoa(n) }

// A NewCDROM is a request to attach a CD-ROM drive.
type NewCDROM struct {
	Image     string // the name of an ISO image
	BootIndex int    // 0: not a boot device
}

// CDROM returns the drive of v with the given id, or a [Fault] of class [ErrNotFound].
func (v VM) CDROM(id string) (CDROM, error) {
	for _, c := range v.CDROMs {
		if c.ID == id {
			return c, nil
		}
	}
	return CDROM{}, NotFound("CD-ROM drive", id+" of VM "+v.ID)
}

// HasSeed reports whether v has the drive of its seed.
func (v VM) HasSeed() bool {
	_, err := v.CDROM(SeedCDROM)
	return err == nil
}

// SameCDROMs reports whether QEMU has exactly the drives that are recorded for v. It
// returns true if QEMU did not report its drives.
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

// CompareCDROMs orders drives for [slices.SortFunc]: the seed first, then by number.
func CompareCDROMs(a, b CDROM) int {
	switch {
	case a.ID == b.ID:
		return 0
	case a.ID == SeedCDROM || b.ID != SeedCDROM && a.ID < b.ID:
		return -1
	}
	return 1
}
