package vm

import (
	"context"
	"fmt"
	"slices"
)

// A NewCDROM is what is asked of a CD-ROM drive.
type NewCDROM struct {
	Image     string // an ISO image
	BootIndex int    // 0: it is never booted from
}

const maxBootIndex = 99

// CDROM returns one of v's drives, or a [Fault] of class [ErrNotFound].
func (v VM) CDROM(id string) (CDROM, error) {
	if i := slices.IndexFunc(v.CDROMs, func(c CDROM) bool { return c.ID == id }); i >= 0 {
		return v.CDROMs[i], nil
	}
	return CDROM{}, NotFound("CD-ROM drive of VM "+v.ID, id)
}

// hasSeed reports whether v has the drive for its seed.
func (v VM) hasSeed() bool {
	_, err := v.CDROM(SeedCDROM)
	return err == nil
}

// insert gives v another drive. The image it returns is held unless it is zero,
// also after an error: [Manager.letGo]. field is where the request names it.
func (m *Manager) insert(ctx context.Context, v *VM, want NewCDROM, field string) (Image, error) {
	c := CDROM{Image: want.Image, BootIndex: want.BootIndex}
	if want.BootIndex < 0 || want.BootIndex > maxBootIndex {
		return Image{}, invalidField(field+"/boot_index", "must be 1 to %d", maxBootIndex)
	}
	if want.BootIndex == RootBootIndex {
		return Image{}, invalidField(field+"/boot_index", "%d is the root disk's: take a lower one to boot from the CD-ROM first", RootBootIndex)
	}
	taken := map[string]bool{}
	for _, other := range v.CDROMs {
		taken[other.ID] = true
		if want.BootIndex != 0 && other.BootIndex == want.BootIndex {
			return Image{}, invalidField(field+"/boot_index", "%d is that of drive %s", want.BootIndex, other.ID)
		}
	}
	for n := 1; c.ID == ""; n++ {
		if n > MaxCDROMs {
			return Image{}, &Fault{Code: CodeLimitReached, Detail: fmt.Sprintf("VM %s already has %d CD-ROM drives, the most there can be", v.ID, MaxCDROMs), Hint: "eject one first"}
		}
		if !taken[cdromID(n)] {
			c.ID = cdromID(n)
		}
	}
	image, err := m.holdImage(ctx, want.Image, field+"/image")
	if err != nil {
		return Image{}, err
	}
	if image.Layout != FormatISO {
		return image, invalidField(field+"/image", "image %q is %s and not an ISO image", image.Name, image.Layout)
	}
	c.SHA256 = image.SHA256
	v.CDROMs = append(slices.Clone(v.CDROMs), c)
	slices.SortFunc(v.CDROMs, orderCDROMs)
	return image, nil
}

// orderCDROMs puts the seed first and the others in the order of their numbers.
func orderCDROMs(a, b CDROM) int {
	switch {
	case a.ID == b.ID:
		return 0
	case a.ID == SeedCDROM || b.ID != SeedCDROM && a.ID < b.ID:
		return -1
	}
	return 1
}

// AttachCDROM gives a VM a CD-ROM drive with an image in it, at once if the VM
// runs, and returns it.
func (m *Manager) AttachCDROM(ctx context.Context, vmID string, want NewCDROM) (CDROM, error) {
	var held []Image
	var c CDROM
	err := m.tune(ctx, tuning{kind: CDROMAttach, vmID: vmID, edit: func(ctx context.Context, v *VM) error {
		had := v.CDROMs
		image, err := m.insert(ctx, v, want, "")
		if image.SHA256 != "" {
			held = append(held, image)
		}
		for _, now := range v.CDROMs {
			if !slices.Contains(had, now) {
				c = now
			}
		}
		return err
	}, step: func() string { return c.ID }, apply: m.setCDROMs, after: func() { m.letGo(held) }})
	return c, err
}

// EjectCDROM takes a drive with what is in it from a VM, at once if the VM runs.
func (m *Manager) EjectCDROM(ctx context.Context, vmID, id string, match Match) error {
	var held []Image // the drive comes back if QEMU does not let go of it
	return m.tune(ctx, tuning{kind: CDROMEject, vmID: vmID, match: match, edit: func(_ context.Context, v *VM) error {
		c, err := v.CDROM(id)
		if err != nil {
			return err
		}
		m.contents.mu.Lock()
		m.contents.hold(c.SHA256)
		m.contents.mu.Unlock()
		held = append(held, Image{ImageContent: ImageContent{SHA256: c.SHA256}})
		v.CDROMs = slices.DeleteFunc(slices.Clone(v.CDROMs), func(c CDROM) bool { return c.ID == id })
		return nil
	}, apply: m.setCDROMs, after: func() { m.letGo(held) }})
}

// setCDROMs makes the drives of a running VM those that are recorded.
func (m *Manager) setCDROMs(ctx context.Context, v VM) error {
	return m.driver.SetCDROMs(ctx, v.ID, v.CDROMs)
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

// settleCDROMs makes the drives of a VM that has a process those that are recorded
// and reports whether they were not: a change of them was cut short. A drive has
// nothing that could be lost.
func (m *Manager) settleCDROMs(ctx context.Context, id string) (bool, error) {
	v, err := m.store.VM(ctx, id)
	if err != nil || !live(v) {
		return false, ignoreNotFound(err)
	}
	if SameCDROMs(v, m.driver.Observe(ctx, id)) {
		return false, nil
	}
	return true, m.setCDROMs(ctx, v)
}
