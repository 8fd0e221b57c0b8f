package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// A NewVM is what is asked of a VM to make.
type NewVM struct {
	ID          string // empty: one is made up
	Template    string
	Image       string // that its root disk is made of; empty: the daemon's boot image, or none
	FullClone   bool   // the root disk is a copy of the image, and no overlay of it
	RootSizeMiB int64  // 0: the size of the image, or [DefaultMiB] without one
	VMEdits     VMEdits
	NICs        *[]NewNIC // nil: one on the default network
	CDROMs      []NewCDROM
	CloudInit   *CloudInit // nil: the guest gets no seed
}

// CreateVM makes a stopped VM with its root disk and returns it. Nothing of it
// can be seen before it is complete.
func (m *Manager) CreateVM(ctx context.Context, n NewVM) (VM, error) {
	if n.ID == "" {
		n.ID = "vm-" + randomWord(8)
	}
	if !ValidName(n.ID) {
		return VM{}, invalidField("/name", "must be 1 to 63 of a-z, 0-9 and '-', and begin and end with a letter or a digit")
	}
	c := creation{m: m, n: n}
	c.v = VM{ID: n.ID, UUID: uuid.NewString(), State: Stopped, Reason: ReasonCreated, Desired: DesiredStopped, Restart: RestartNever}
	if err := n.VMEdits.apply(&c.v); err != nil {
		return VM{}, err
	}
	if n.CloudInit != nil {
		if err := n.CloudInit.check("/cloud_init"); err != nil {
			return VM{}, err
		}
	}
	r, err := m.begin(ctx, change{
		kind: VMCreate, resources: []string{VMResource(n.ID)}, timeout: createTimeout,
		after:  func() { m.release(c.v.NICs); m.letGo(c.media.held) },
		intent: c.intent, act: c.act, truth: c.truth,
	})
	if err != nil {
		return VM{}, err
	}
	if _, err := r.wait(ctx); err != nil {
		return VM{}, err
	}
	return m.store.VM(ctx, n.ID)
}

// A creation is one [Manager.CreateVM] on its way.
type creation struct {
	m     *Manager
	n     NewVM
	v     VM // as it is to be recorded
	media media
	made  bool // its files are there
}

func (c *creation) intent(ctx context.Context, _ *run) (_ Change, err error) {
	if c.v.Template, err = c.m.templateForVM(ctx, c.n.Template); err != nil {
		return Change{}, err
	}
	if err := c.m.checkNew(ctx, c.n.ID); err != nil {
		return Change{}, err
	}
	if err := c.m.placeMedia(ctx, &c.v, c.n, &c.media); err != nil {
		return Change{}, err
	}
	return Change{}, c.m.placeNICs(ctx, &c.v, c.n.NICs)
}

func (c *creation) act(ctx context.Context, r *run) (Change, error) {
	if err := c.m.driver.CreateVM(ctx, c.v.ID, c.v.Root, c.media.from, r.progress); err != nil {
		return Change{}, err
	}
	c.made = true
	c.v.CreatedAt = now()
	out := Change{NewVM: &c.v}
	if c.n.CloudInit != nil {
		out.Seed = &Seed{VMID: c.v.ID, CloudInit: *c.n.CloudInit}
	}
	return out, nil
}

func (c *creation) truth(ctx context.Context) (Change, error) {
	if !c.made { // then the driver has undone its own
		return Change{}, nil
	}
	// The row may be there although recording it has failed: a commit can be done
	// and its answer lost.
	if recorded, err := c.m.recorded(ctx, VMResource(c.v.ID)); recorded || err != nil {
		return Change{}, err
	}
	return Change{}, c.m.driver.DeleteVM(ctx, c.v.ID)
}

// media is what a new VM's disk and drives are made of, besides what is recorded.
type media struct {
	held []Image // which are not to be deleted meanwhile
	from *CopySource
}

// placeMedia gives v, which is new, its root disk and its drives. What it holds is
// in use also after an error.
func (m *Manager) placeMedia(ctx context.Context, v *VM, n NewVM, use *media) (err error) {
	if n.CloudInit != nil {
		v.CDROMs = append(v.CDROMs, CDROM{ID: SeedCDROM})
	}
	for i, w := range n.CDROMs {
		image, err := m.insert(ctx, v, w, fmt.Sprintf("/cdroms/%d", i))
		if image.SHA256 != "" {
			use.held = append(use.held, image)
		}
		if err != nil {
			return err
		}
	}
	if n.Image == "" {
		if n.FullClone {
			return invalidField("/full_clone", "needs an image to copy")
		}
		v.Root, err = m.bootDisk(n.RootSizeMiB)
		return err
	}
	image, err := m.holdImage(ctx, n.Image, "/image")
	if err != nil {
		return err
	}
	use.held = append(use.held, image)
	if v.Root, err = overlayOf(image, n.RootSizeMiB, "/root_disk_size", "/image"); err == nil && n.FullClone {
		use.from = &CopySource{File: v.Root}
		v.Root.Base, v.Root.BaseFormat = "", ""
	}
	return err
}

// bootDisk returns the root disk of a VM that is made of no image.
func (m *Manager) bootDisk(sizeMiB int64) (DiskFile, error) {
	root := m.o.Base
	if sizeMiB == 0 {
		root.SizeMiB = cmp.Or(root.SizeMiB, DefaultMiB)
		return root, nil
	}
	if err := checkSize(sizeMiB, "/root_disk_size"); err != nil {
		return root, err
	}
	if sizeMiB < root.SizeMiB {
		return root, invalidField("/root_disk_size", "must be at least %g GiB, the size of the default boot disk", float64(root.SizeMiB)/gibInMi)
	}
	root.SizeMiB = sizeMiB
	return root, nil
}

// templateForVM returns the template a VM is to be made of. That it is not
// there is a fault of the request and not of its path.
func (m *Manager) templateForVM(ctx context.Context, name string) (Template, error) {
	t, err := m.store.Template(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return t, invalidField("/template_name", "template %q not found", name)
	}
	return t, err
}

// checkNew makes sure that neither the records nor the host know a VM of this id.
func (m *Manager) checkNew(ctx context.Context, id string) error {
	_, err := m.store.VM(ctx, id)
	if err == nil {
		return &Fault{Code: CodeExists, Detail: fmt.Sprintf("VM %s already exists", id)}
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	left, err := m.driver.HasVM(ctx, id)
	if err == nil && left {
		err = &Fault{Code: CodeExists, Detail: fmt.Sprintf("files of a VM %s already exist on this host, although there is no record of it", id),
			Hint: "take another name, or look at GET /observer/status and move the files away"}
	}
	return err
}
