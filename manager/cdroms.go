package manager

import (
	"context"
	"fmt"
	"slices"

	"vmand/vm"
)

// CDROMs gives VMs CD-ROM drives and takes them away.
type CDROMs struct{ *Engine }

var cdromAttach = verb{
	kind: vm.CDROMAttach, timeout: deviceTimeout, preemptible: true, edit: true,
	cleanup: reapplyRecord, reached: recordedWithIntent, answer: vm.AnswerCreatedTarget,
	points: []string{"cdrom.node-added", "cdrom.device-added"},
}

var cdromEject = verb{
	kind: vm.CDROMEject, timeout: deviceTimeout, preemptible: true, edit: true,
	cleanup: reapplyRecord, reached: recordedWithIntent, answer: vm.AnswerNothing,
	points: []string{"cdrom.device-deleted", "cdrom.node-deleted"},
}

// insert gives v another drive and returns it with its image, which is held unless it is
// zero, also after an error: [Images.release]. field is where the request names the drive.
func (s *CDROMs) insert(
	ctx context.Context, r *run, v *vm.VM, want vm.NewCDROM, field string,
) (vm.CDROM, heldImage, error) {
	c := vm.CDROM{Image: want.Image, BootIndex: want.BootIndex}
	if want.BootIndex < 0 || want.BootIndex > vm.MaxBootIndex {
		return c, heldImage{}, vm.InvalidField(field+"/boot_index", "must be 1 to %d", vm.MaxBootIndex)
	}
	if want.BootIndex == vm.RootBootIndex {
		return c, heldImage{}, vm.InvalidField(field+"/boot_index", "%d is the root disk's: take a lower one to boot from the CD-ROM first", vm.RootBootIndex)
	}
	taken := map[string]bool{}
	for _, other := range v.CDROMs {
		taken[other.ID] = true
		if want.BootIndex != 0 && other.BootIndex == want.BootIndex {
			return c, heldImage{}, vm.InvalidField(field+"/boot_index", "%d is that of drive %s", want.BootIndex, other.ID)
		}
	}
	for n := 1; c.ID == ""; n++ {
		if n > vm.MaxCDROMs {
			return c, heldImage{}, &vm.Fault{
				Code:   vm.CodeLimitReached,
				Detail: fmt.Sprintf("VM %s already has %d CD-ROM drives, the limit", v.ID, vm.MaxCDROMs),
				Hint:   "eject one first",
			}
		}
		if !taken[vm.CDROMID(n)] {
			c.ID = vm.CDROMID(n)
		}
	}
	image, err := s.Images.hold(ctx, r, want.Image, field+"/image")
	if err != nil {
		return c, heldImage{}, err
	}
	if image.Layout != vm.FormatISO {
		return c, image, vm.InvalidField(field+"/image", "image %s is %s and not an ISO image", image.Name, image.Layout)
	}
	c.SHA256 = image.SHA256
	v.CDROMs = append(slices.Clone(v.CDROMs), c)
	slices.SortFunc(v.CDROMs, vm.CompareCDROMs)
	return c, image, nil
}

// Attach gives a VM a CD-ROM drive with an image in it, at once if the VM runs, and returns
// the drive.
func (s *CDROMs) Attach(ctx context.Context, vmID string, want vm.NewCDROM) (vm.CDROM, error) {
	a := &cdromInsertion{s: s, want: want}
	err := s.VMs.liveEdit(ctx, &cdromAttach, &liveEdit{id: vmID, change: a})
	return a.c, err
}

// A cdromInsertion is one [CDROMs.Attach].
type cdromInsertion struct {
	s     *CDROMs
	want  vm.NewCDROM
	c     vm.CDROM
	image heldImage // zero for none
}

func (a *cdromInsertion) edit(ctx context.Context, r *run, v *vm.VM) (_ vm.Target, err error) {
	a.c, a.image, err = a.s.insert(ctx, r, v, a.want, "")
	return vm.Target{CDROM: a.c.ID}, err
}

func (a *cdromInsertion) apply(ctx context.Context, v vm.VM) error { return a.s.plug(ctx, v) }

func (a *cdromInsertion) release() {
	if a.image.SHA256 != "" {
		a.s.Images.release(a.image)
	}
}

// Eject takes a drive with its image from a VM, at once if the VM runs.
func (s *CDROMs) Eject(ctx context.Context, vmID, id string, match vm.Match) error {
	return s.VMs.liveEdit(ctx, &cdromEject, &liveEdit{id: vmID, match: match, change: &cdromEjection{s: s, id: id}})
}

// A cdromEjection is one [CDROMs.Eject]. It holds the content of the drive: the drive comes
// back if QEMU does not release it.
type cdromEjection struct {
	s    *CDROMs
	id   string
	held []heldImage
}

func (x *cdromEjection) edit(_ context.Context, r *run, v *vm.VM) (vm.Target, error) {
	c, err := v.CDROM(x.id)
	if err != nil {
		return vm.Target{}, err
	}
	x.held = append(x.held, x.s.Images.holdContent(r, c.SHA256))
	v.CDROMs = slices.DeleteFunc(slices.Clone(v.CDROMs), func(c vm.CDROM) bool { return c.ID == x.id })
	return vm.Target{CDROM: x.id}, nil
}

func (x *cdromEjection) apply(ctx context.Context, v vm.VM) error { return x.s.plug(ctx, v) }

func (x *cdromEjection) release() { x.s.Images.release(x.held...) }

// plug makes the drives of a running VM match its record.
func (s *CDROMs) plug(ctx context.Context, v vm.VM) error {
	return s.driver.SetCDROMs(ctx, v.ID, v.CDROMs)
}

// settleOf makes the drives of a live VM match its record and reports whether they did not.
func (s *CDROMs) settleOf(ctx context.Context, id string) (bool, error) {
	v, err := s.store.VM(ctx, id)
	if err != nil || !v.Live() {
		return false, ignoreNotFound(err)
	}
	if v.SameCDROMs(s.driver.Observe(ctx, id)) {
		return false, nil
	}
	return true, s.plug(ctx, v)
}
