package vm

import "strconv"

// MaxCDROMs is how many CD-ROM drives a VM can have besides that of its seed.
const MaxCDROMs = 4

// SeedCDROM is the id of the drive with a VM's cloud-init seed.
const SeedCDROM = "seed"

// RootBootIndex is the boot index of a VM's root disk: a drive with a lower one is
// booted from first, one with a higher one when the root disk cannot be.
const RootBootIndex = 10

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
