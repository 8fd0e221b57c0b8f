package manager

import (
	"context"
	"fmt"
	"slices"

	"vmand/vm"
)

// insert gives v another drive. The image it returns is held unless it is zero,
// also after an error: [Images.release]. field is where the request names it.
func (s *CDROMs) insert(ctx context.Context, v *vm.VM, want vm.NewCDROM, field string) (vm.Image, error) {
	c := vm.CDROM{Image: want.Image, BootIndex: want.BootIndex}
	if want.BootIndex < 0 || want.BootIndex > vm.MaxBootIndex {
		return vm.Image{}, vm.InvalidField(field+"/boot_index", "must be 1 to %d", vm.MaxBootIndex)
	}
	if want.BootIndex == vm.RootBootIndex {
		return vm.Image{}, vm.InvalidField(field+"/boot_index", "%d is the root disk's: take a lower one to boot from the CD-ROM first", vm.RootBootIndex)
	}
	taken := map[string]bool{}
	for _, other := range v.CDROMs {
		taken[other.ID] = true
		if want.BootIndex != 0 && other.BootIndex == want.BootIndex {
			return vm.Image{}, vm.InvalidField(field+"/boot_index", "%d is that of drive %s", want.BootIndex, other.ID)
		}
	}
	for n := 1; c.ID == ""; n++ {
		if n > vm.MaxCDROMs {
			return vm.Image{}, &vm.Fault{Code: vm.CodeLimitReached, Detail: fmt.Sprintf("VM %s already has %d CD-ROM drives, the most there can be", v.ID, vm.MaxCDROMs), Hint: "eject one first"}
		}
		if !taken[vm.CDROMID(n)] {
			c.ID = vm.CDROMID(n)
		}
	}
	image, err := s.Images.hold(ctx, want.Image, field+"/image")
	if err != nil {
		return vm.Image{}, err
	}
	if image.Layout != vm.FormatISO {
		return image, vm.InvalidField(field+"/image", "image %q is %s and not an ISO image", image.Name, image.Layout)
	}
	c.SHA256 = image.SHA256
	v.CDROMs = append(slices.Clone(v.CDROMs), c)
	slices.SortFunc(v.CDROMs, vm.OrderCDROMs)
	return image, nil
}

// Attach gives a VM a CD-ROM drive with an image in it, at once if the VM
// runs, and returns it.
func (s *CDROMs) Attach(ctx context.Context, vmID string, want vm.NewCDROM) (vm.CDROM, error) {
	var held []vm.Image
	var c vm.CDROM
	err := s.VMs.liveEdit(ctx, tuning{kind: vm.CDROMAttach, vmID: vmID, edit: func(ctx context.Context, v *vm.VM) error {
		had := v.CDROMs
		image, err := s.insert(ctx, v, want, "")
		if image.SHA256 != "" {
			held = append(held, image)
		}
		for _, now := range v.CDROMs {
			if !slices.Contains(had, now) {
				c = now
			}
		}
		return err
	}, step: func() string { return c.ID }, apply: s.plug, after: func() { s.Images.release(held) }})
	return c, err
}

// Eject takes a drive with what is in it from a VM, at once if the VM runs.
func (s *CDROMs) Eject(ctx context.Context, vmID, id string, match vm.Match) error {
	var held []vm.Image // the drive comes back if QEMU does not let go of it
	return s.VMs.liveEdit(ctx, tuning{kind: vm.CDROMEject, vmID: vmID, match: match, edit: func(_ context.Context, v *vm.VM) error {
		c, err := v.CDROM(id)
		if err != nil {
			return err
		}
		s.contents.mu.Lock()
		s.contents.hold(c.SHA256)
		s.contents.mu.Unlock()
		held = append(held, vm.Image{ImageContent: vm.ImageContent{SHA256: c.SHA256}})
		v.CDROMs = slices.DeleteFunc(slices.Clone(v.CDROMs), func(c vm.CDROM) bool { return c.ID == id })
		return nil
	}, apply: s.plug, after: func() { s.Images.release(held) }})
}

// plug makes the drives of a running VM those that are recorded.
func (s *CDROMs) plug(ctx context.Context, v vm.VM) error {
	return s.driver.SetCDROMs(ctx, v.ID, v.CDROMs)
}

// settleOf makes the drives of a VM that has a process those that are recorded
// and reports whether they were not: a change of them was cut short. A drive has
// nothing that could be lost.
func (s *CDROMs) settleOf(ctx context.Context, id string) (bool, error) {
	v, err := s.store.VM(ctx, id)
	if err != nil || !vm.Live(v) {
		return false, ignoreNotFound(err)
	}
	if vm.SameCDROMs(v, s.driver.Observe(ctx, id)) {
		return false, nil
	}
	return true, s.plug(ctx, v)
}
