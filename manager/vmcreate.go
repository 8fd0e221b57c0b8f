package manager

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"vmand/vm"
)

var vmCreate = verb{
	kind: vm.VMCreate, timeout: 24 * time.Hour, // it may have to copy an image
	cleanup: removeUnrecordedVM, reached: exists(true), answer: vm.AnswerCreated,
	points: []string{"dir.made", "image.temp-made", "image.created", "image.renamed", "image.synced"},
}

// removeUnrecordedVM removes the files of a VM that is not recorded: its creation had not
// finished, or its deletion had already deleted its record.
func removeUnrecordedVM(ctx context.Context, e *Engine, op vm.Operation) error {
	recorded, err := e.recorded(ctx, op.Resource)
	if err != nil || recorded {
		return err
	}
	return e.driver.DeleteVM(ctx, op.Resource.ID)
}

// Create makes a stopped VM with its root disk and returns it. A VM is not visible before
// it is complete.
func (s *VMs) Create(ctx context.Context, n vm.NewVM) (vm.VM, error) {
	if n.ID == "" {
		n.ID = "vm-" + randomWord(8)
	}
	if !vm.ValidName(n.ID) {
		return vm.VM{}, vm.InvalidField("/name",
			"must have 1 to 63 characters of a-z, 0-9 and '-', and begin and end with a letter or a digit")
	}
	c := &creation{s: s, n: n, v: vm.VM{
		ID: n.ID, UUID: uuid.NewString(),
		State: vm.Stopped, Reason: vm.ReasonCreated, Desired: vm.DesiredStopped, Restart: vm.RestartNever,
	}}
	if err := n.VMEdits.Apply(&c.v); err != nil {
		return vm.VM{}, err
	}
	if n.CloudInit != nil {
		if err := n.CloudInit.Check("/cloud_init"); err != nil {
			return vm.VM{}, err
		}
	}
	q := vmCreate.request(c, vm.VMResource(n.ID))
	q.preemptible = n.FullClone // it copies the image, which takes long
	if _, err := s.run(ctx, q); err != nil {
		return vm.VM{}, err
	}
	return s.store.VM(ctx, n.ID)
}

// A creation is one [VMs.Create].
type creation struct {
	s    *VMs
	n    vm.NewVM
	v    vm.VM          // as it will be recorded
	held []heldImage    // whose content must stay until the VM is recorded
	from *vm.CopySource // of the root disk, with full_clone
	made bool           // its files exist
}

func (c *creation) intent(ctx context.Context, r *run) (_ vm.Change, err error) {
	if c.v.Template, err = c.s.template(ctx, c.n.Template); err != nil {
		return vm.Change{}, err
	}
	if err := c.checkNew(ctx); err != nil {
		return vm.Change{}, err
	}
	if err := c.placeMedia(ctx, r); err != nil {
		return vm.Change{}, err
	}
	return vm.Change{}, c.s.NICs.placeAll(ctx, &c.v, c.n.NICs)
}

func (c *creation) act(ctx context.Context, r *run) (vm.Change, error) {
	if err := c.s.driver.CreateVM(ctx, c.v.ID, c.v.Root, c.from, r.progress); err != nil {
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
	if !c.made { // the driver has removed its files
		return vm.Change{}, nil
	}
	// The row may exist although recording it failed: a commit can succeed and its answer
	// be lost.
	if recorded, err := c.s.recorded(ctx, vm.VMResource(c.v.ID)); recorded || err != nil {
		return vm.Change{}, err
	}
	return vm.Change{}, c.s.driver.DeleteVM(ctx, c.v.ID)
}

func (c *creation) release() {
	c.s.NICs.release(c.v.NICs)
	c.s.Images.release(c.held...)
}

// placeMedia gives the VM its root disk and its CD-ROM drives. The images in c.held are
// held also after an error.
func (c *creation) placeMedia(ctx context.Context, r *run) (err error) {
	if c.n.CloudInit != nil {
		c.v.CDROMs = append(c.v.CDROMs, vm.CDROM{ID: vm.SeedCDROM})
	}
	for i, want := range c.n.CDROMs {
		_, image, err := c.s.CDROMs.insert(ctx, r, &c.v, want, fmt.Sprintf("/cdroms/%d", i))
		c.hold(image)
		if err != nil {
			return err
		}
	}
	if c.n.Image == "" {
		if c.n.FullClone {
			return vm.InvalidField("/full_clone", "needs an image to copy")
		}
		c.v.Root, err = c.s.bootDisk(c.n.RootSizeMiB)
		return err
	}
	image, err := c.s.Images.hold(ctx, r, c.n.Image, "/image")
	c.hold(image)
	if err != nil {
		return err
	}
	c.v.Root, err = image.Overlay(c.n.RootSizeMiB, "/root_disk_size", "/image")
	if err == nil && c.n.FullClone {
		c.from = &vm.CopySource{File: c.v.Root}
		c.v.Root.Base, c.v.Root.BaseFormat = "", ""
	}
	return err
}

// hold notes an image that is held; the zero value is none.
func (c *creation) hold(image heldImage) {
	if image.SHA256 != "" {
		c.held = append(c.held, image)
	}
}

// checkNew checks that neither the records nor the host have a VM of this id.
func (c *creation) checkNew(ctx context.Context) error {
	recorded, err := c.s.recorded(ctx, vm.VMResource(c.n.ID))
	if err != nil {
		return err
	}
	if recorded {
		return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("VM %s already exists", c.n.ID)}
	}
	left, err := c.s.driver.HasVM(ctx, c.n.ID)
	if err == nil && left {
		err = &vm.Fault{
			Code:   vm.CodeExists,
			Detail: fmt.Sprintf("files of VM %s exist on this host, although it is not recorded", c.n.ID),
			Hint:   "choose another name, or adopt or delete the orphan that GET /observer/status shows",
		}
	}
	return err
}

// bootDisk returns the root disk of a VM that is made without an image.
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
		return root, vm.InvalidField("/root_disk_size", "must be at least %g GiB, the size of the default boot disk",
			float64(root.SizeMiB)/vm.MiBPerGiB)
	}
	root.SizeMiB, root.ShortBytes = sizeMiB, 0
	return root, nil
}

// template returns the template of a new VM. A missing one is a fault of the request's
// body, not of its path.
func (s *VMs) template(ctx context.Context, name string) (vm.Template, error) {
	t, err := s.store.Template(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return t, vm.InvalidField("/template_name", "template %s not found", name)
	}
	if err != nil {
		return t, err
	}
	// The template may be older than the limit, or come from another host.
	if field, clause := s.driver.Limits(ctx).Exceeded(t); field != "" {
		return t, vm.InvalidField("/template_name", "the %s of template %s %s", field[1:], name, clause)
	}
	return t, nil
}

// randomWord returns n random characters that a person can read out.
func randomWord(n int) string { return strings.ToLower(rand.Text()[:n]) }
