package manager

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"vmand/vm"
)

// contents keeps content of images that operations on their way are about to use
// from being removed. It is locked while what images name is changed, and never for
// long.
type contents struct {
	mu   sync.Mutex
	held map[string]int // how many operations need it, by SHA-256
}

// hold returns an image to make something of, whose content stays until
// [Images.release]. field is where the request names it.
func (s *Images) hold(ctx context.Context, name, field string) (vm.Image, error) {
	s.contents.mu.Lock()
	defer s.contents.mu.Unlock()
	i, err := s.store.Image(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return i, vm.InvalidField(field, "image %q not found", name)
	}
	if err == nil {
		err = i.Usable()
	}
	if err != nil {
		return i, err
	}
	s.contents.hold(i.SHA256)
	return i, nil
}

// hold is for who has c.mu.
func (c *contents) hold(sha256 string) {
	if c.held == nil {
		c.held = map[string]int{}
	}
	c.held[sha256]++
}

// release ends what holdImage began, for each of the images.
func (s *Images) release(images []vm.Image) {
	s.contents.mu.Lock()
	defer s.contents.mu.Unlock()
	for _, i := range images {
		if s.contents.held[i.SHA256]--; s.contents.held[i.SHA256] == 0 {
			delete(s.contents.held, i.SHA256)
		}
	}
}

// copied returns the resource that a copy is to be made of, given its id: that of
// a data disk or, if there is none, of a VM.
func (s *Disks) copied(ctx context.Context, id string) (string, error) {
	_, err := s.store.Disk(ctx, id)
	if err == nil || !errors.Is(err, vm.ErrNotFound) {
		return vm.DiskResource(id), err
	}
	_, err = s.store.VM(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return "", vm.InvalidField("/from_disk", "there is no disk and no VM %q", id)
	}
	return vm.VMResource(id), err
}

// copySource returns what to copy of a disk that nobody uses. The caller holds the
// lock of the resource.
func (s *Disks) copySource(ctx context.Context, resource string) (vm.CopySource, error) {
	kind, id, _ := strings.Cut(resource, "/")
	if kind == "vms" {
		v, err := s.VMs.settled(ctx, id)
		if err == nil && v.State != vm.Stopped {
			err = &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("VM %s is not stopped: it is %s", id, v.State), Hint: "stop it first"}
		}
		return vm.CopySource{Resource: resource, File: v.Root}, err
	}
	d, err := s.store.Disk(ctx, id)
	switch {
	case err != nil:
	case d.VMID != "":
		err = &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("disk %s is attached to VM %s", id, d.VMID), Hint: "detach it first"}
	case d.State != vm.DiskAvailable:
		err = vm.NotAvailable(d)
	}
	return vm.CopySource{Resource: resource, File: d.DiskFile}, err
}
