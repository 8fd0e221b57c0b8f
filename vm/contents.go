package vm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// contents keeps content of images that operations on their way are about to use
// from being removed. It is locked while what images name is changed, and never for
// long.
type contents struct {
	mu   sync.Mutex
	held map[string]int // how many operations need it, by SHA-256
}

// holdImage returns an image to make something of, whose content stays until
// [Manager.letGo]. field is where the request names it.
func (m *Manager) holdImage(ctx context.Context, name, field string) (Image, error) {
	m.contents.mu.Lock()
	defer m.contents.mu.Unlock()
	i, err := m.store.Image(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return i, invalidField(field, "image %q not found", name)
	}
	if err == nil {
		err = i.usable()
	}
	if err != nil {
		return i, err
	}
	m.contents.hold(i.SHA256)
	return i, nil
}

// hold is for who has c.mu.
func (c *contents) hold(sha256 string) {
	if c.held == nil {
		c.held = map[string]int{}
	}
	c.held[sha256]++
}

// letGo ends what holdImage began, for each of the images.
func (m *Manager) letGo(images []Image) {
	m.contents.mu.Lock()
	defer m.contents.mu.Unlock()
	for _, i := range images {
		if m.contents.held[i.SHA256]--; m.contents.held[i.SHA256] == 0 {
			delete(m.contents.held, i.SHA256)
		}
	}
}

// overlayOf returns the file of a disk that is a copy-on-write overlay of an image.
// sizeMiB is the wished size, 0 for that of the image; field says where.
func overlayOf(i Image, sizeMiB int64, sizeField, imageField string) (DiskFile, error) {
	f := DiskFile{SizeMiB: sizeMiB, Image: i.Name, Base: ContentBase(i.SHA256), BaseFormat: string(i.Layout)}
	switch {
	case i.Layout == FormatISO:
		bad := invalidField(imageField, "image %q is an ISO image, which nothing can be written to", i.Name)
		bad.Hint = "give it to a VM as a CD-ROM: cdroms"
		return f, bad
	case sizeMiB == 0:
		f.SizeMiB = i.VirtualMiB
	case sizeMiB < i.VirtualMiB:
		return f, invalidField(sizeField, "must be at least %g GiB, the size of image %s", float64(i.VirtualMiB)/gibInMi, i.Name)
	}
	return f, checkSize(f.SizeMiB, sizeField)
}

func checkSize(mib int64, field string) error {
	if mib < 1 || mib > MaxDiskMiB {
		return invalidField(field, "must be 1 MiB to %d GiB", MaxDiskMiB/gibInMi)
	}
	return nil
}

// copied returns the resource that a copy is to be made of, given its id: that of
// a data disk or, if there is none, of a VM.
func (m *Manager) copied(ctx context.Context, id string) (string, error) {
	_, err := m.store.Disk(ctx, id)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return DiskResource(id), err
	}
	_, err = m.store.VM(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return "", invalidField("/from_disk", "there is no disk and no VM %q", id)
	}
	return VMResource(id), err
}

// copySource returns what to copy of a disk that nobody uses. The caller holds the
// lock of the resource.
func (m *Manager) copySource(ctx context.Context, resource string) (CopySource, error) {
	kind, id, _ := strings.Cut(resource, "/")
	if kind == "vms" {
		v, err := m.settled(ctx, id)
		if err == nil && v.State != Stopped {
			err = &Fault{Code: CodeState, Detail: fmt.Sprintf("VM %s is not stopped: it is %s", id, v.State), Hint: "stop it first"}
		}
		return CopySource{Resource: resource, File: v.Root}, err
	}
	d, err := m.store.Disk(ctx, id)
	switch {
	case err != nil:
	case d.VMID != "":
		err = &Fault{Code: CodeInUse, Detail: fmt.Sprintf("disk %s is attached to VM %s", id, d.VMID), Hint: "detach it first"}
	case d.State != DiskAvailable:
		err = notAvailable(d)
	}
	return CopySource{Resource: resource, File: d.DiskFile}, err
}
