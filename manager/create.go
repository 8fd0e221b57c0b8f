package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"vmand/vm"

	"github.com/google/uuid"
)

// Create makes a stopped VM with its root disk and returns it. Nothing of it
// can be seen before it is complete.
func (s *VMs) Create(ctx context.Context, n vm.NewVM) (vm.VM, error) {
	if n.ID == "" {
		n.ID = "vm-" + randomWord(8)
	}
	if !vm.ValidName(n.ID) {
		return vm.VM{}, vm.InvalidField("/name", "must be 1 to 63 of a-z, 0-9 and '-', and begin and end with a letter or a digit")
	}
	c := creation{m: s, n: n}
	c.v = vm.VM{ID: n.ID, UUID: uuid.NewString(), State: vm.Stopped, Reason: vm.ReasonCreated, Desired: vm.DesiredStopped, Restart: vm.RestartNever}
	if err := n.VMEdits.Apply(&c.v); err != nil {
		return vm.VM{}, err
	}
	if n.CloudInit != nil {
		if err := n.CloudInit.Check("/cloud_init"); err != nil {
			return vm.VM{}, err
		}
	}
	r, err := s.begin(ctx, change{
		kind: vm.VMCreate, resources: []string{vm.VMResource(n.ID)}, timeout: createTimeout,
		after:  func() { s.NICs.release(c.v.NICs); s.Images.release(c.media.held) },
		intent: c.intent, act: c.act, truth: c.truth,
	})
	if err != nil {
		return vm.VM{}, err
	}
	if _, err := r.wait(ctx); err != nil {
		return vm.VM{}, err
	}
	return s.store.VM(ctx, n.ID)
}

// A creation is one [VMs.Create] on its way.
type creation struct {
	m     *VMs
	n     vm.NewVM
	v     vm.VM // as it is to be recorded
	media media
	made  bool // its files are there
}

func (c *creation) intent(ctx context.Context, _ *run) (_ vm.Change, err error) {
	if c.v.Template, err = c.m.templateForVM(ctx, c.n.Template); err != nil {
		return vm.Change{}, err
	}
	if err := c.m.checkNew(ctx, c.n.ID); err != nil {
		return vm.Change{}, err
	}
	if err := c.m.placeMedia(ctx, &c.v, c.n, &c.media); err != nil {
		return vm.Change{}, err
	}
	return vm.Change{}, c.m.NICs.placeAll(ctx, &c.v, c.n.NICs)
}

func (c *creation) act(ctx context.Context, r *run) (vm.Change, error) {
	if err := c.m.driver.CreateVM(ctx, c.v.ID, c.v.Root, c.media.from, r.progress); err != nil {
		return vm.Change{}, err
	}
	c.made = true
	c.v.CreatedAt = now()
	out := vm.Change{NewVM: &c.v}
	if c.n.CloudInit != nil {
		out.Seed = &vm.Seed{VMID: c.v.ID, CloudInit: *c.n.CloudInit}
	}
	return out, nil
}

func (c *creation) truth(ctx context.Context) (vm.Change, error) {
	if !c.made { // then the driver has undone its own
		return vm.Change{}, nil
	}
	// The row may be there although recording it has failed: a commit can be done
	// and its answer lost.
	if recorded, err := c.m.recorded(ctx, vm.VMResource(c.v.ID)); recorded || err != nil {
		return vm.Change{}, err
	}
	return vm.Change{}, c.m.driver.DeleteVM(ctx, c.v.ID)
}

// media is what a new VM's disk and drives are made of, besides what is recorded.
type media struct {
	held []vm.Image // which are not to be deleted meanwhile
	from *vm.CopySource
}

// placeMedia gives v, which is new, its root disk and its drives. What it holds is
// in use also after an error.
func (s *VMs) placeMedia(ctx context.Context, v *vm.VM, n vm.NewVM, use *media) (err error) {
	if n.CloudInit != nil {
		v.CDROMs = append(v.CDROMs, vm.CDROM{ID: vm.SeedCDROM})
	}
	for i, w := range n.CDROMs {
		image, err := s.CDROMs.insert(ctx, v, w, fmt.Sprintf("/cdroms/%d", i))
		if image.SHA256 != "" {
			use.held = append(use.held, image)
		}
		if err != nil {
			return err
		}
	}
	if n.Image == "" {
		if n.FullClone {
			return vm.InvalidField("/full_clone", "needs an image to copy")
		}
		v.Root, err = s.bootDisk(n.RootSizeMiB)
		return err
	}
	image, err := s.Images.hold(ctx, n.Image, "/image")
	if err != nil {
		return err
	}
	use.held = append(use.held, image)
	if v.Root, err = vm.OverlayOf(image, n.RootSizeMiB, "/root_disk_size", "/image"); err == nil && n.FullClone {
		use.from = &vm.CopySource{File: v.Root}
		v.Root.Base, v.Root.BaseFormat = "", ""
	}
	return err
}

// bootDisk returns the root disk of a VM that is made of no image.
func (s *VMs) bootDisk(sizeMiB int64) (vm.DiskFile, error) {
	root := s.o.Base
	if sizeMiB == 0 {
		root.SizeMiB = cmp.Or(root.SizeMiB, vm.DefaultMiB)
		return root, nil
	}
	if err := vm.CheckDiskSize(sizeMiB, "/root_disk_size"); err != nil {
		return root, err
	}
	if sizeMiB < root.SizeMiB {
		return root, vm.InvalidField("/root_disk_size", "must be at least %g GiB, the size of the default boot disk", float64(root.SizeMiB)/vm.MiBPerGiB)
	}
	root.SizeMiB = sizeMiB
	return root, nil
}

// templateForVM returns the template a VM is to be made of. That it is not
// there is a fault of the request and not of its path.
func (s *VMs) templateForVM(ctx context.Context, name string) (vm.Template, error) {
	t, err := s.store.Template(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return t, vm.InvalidField("/template_name", "template %q not found", name)
	}
	return t, err
}

// checkNew makes sure that neither the records nor the host know a VM of this id.
func (s *VMs) checkNew(ctx context.Context, id string) error {
	_, err := s.store.VM(ctx, id)
	if err == nil {
		return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("VM %s already exists", id)}
	}
	if !errors.Is(err, vm.ErrNotFound) {
		return err
	}
	left, err := s.driver.HasVM(ctx, id)
	if err == nil && left {
		err = &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("files of a VM %s already exist on this host, although there is no record of it", id),
			Hint: "take another name, or look at GET /observer/status and move the files away"}
	}
	return err
}
