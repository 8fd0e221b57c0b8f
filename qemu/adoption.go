package qemu

import (
	"context"
	"path/filepath"
	"slices"

	"vmand/qemu/image"
	"vmand/vm"
)

// AdoptVM implements [vm.Files]. It fails if a process of the VM lives and does
// not say its UUID: with an invented UUID, vmand would take that process for
// another VM's from then on.
func (d *Driver) AdoptVM(ctx context.Context, id string) (string, vm.DiskFile, error) {
	root, err := d.rootDisk(id)
	if err != nil {
		return "", vm.DiskFile{}, err
	}
	s, err := d.session(id)
	if err != nil {
		return "", vm.DiskFile{}, fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", id)
	}
	if s == nil {
		return "", root, nil
	}
	// The session only connects to a monitor that names the UUID in the runtime
	// directory.
	var got identity
	if err := s.execute(ctx, queryTimeout, "query-uuid", nil, &got); err != nil {
		return "", vm.DiskFile{}, err
	}
	return got.UUID, root, nil
}

// AdoptDisk implements [vm.Files].
func (d *Driver) AdoptDisk(_ context.Context, id string) (vm.DiskFile, error) {
	if !vm.ValidName(id) {
		return vm.DiskFile{}, vm.NotFound("disk", id)
	}
	return d.ownFile(dataDisk(id), "disk "+id)
}

// rootDisk returns the root disk of a VM, as described by its header.
func (d *Driver) rootDisk(id string) (vm.DiskFile, error) {
	if !vm.ValidName(id) {
		return vm.DiskFile{}, vm.NotFound("VM", id)
	}
	return d.ownFile(vmRootDisk(id), "the root disk of VM "+id)
}

// ownFile returns a disk's file as described by its header. what names the disk in
// messages.
func (d *Driver) ownFile(name, what string) (vm.DiskFile, error) {
	f, err := d.state.Open(name)
	if err != nil {
		return vm.DiskFile{}, fileFault(err, "%s", what)
	}
	defer f.Close()
	h, err := readHeader(f)
	if err != nil {
		return vm.DiskFile{}, fault(vm.CodeOperationFailed, err, "read %s", what)
	}
	if h.ExternalData || h.Encrypted {
		return vm.DiskFile{}, fault(vm.CodeOperationFailed, nil, "%s is none that vmand has made", what)
	}
	var r vm.DiskFile
	r.SetBytes(h.VirtualBytes)
	if h.Backing == "" {
		return r, nil
	}
	r.Base, r.BaseFormat = d.baseOfHeader(h)
	if r.Base == "" {
		return vm.DiskFile{}, fault(vm.CodeOperationFailed, nil, "%s is based on %q (%q), which vmand has not made it on",
			what, h.Backing, h.BackingFormat)
	}
	return r, nil
}

// baseOfHeader returns the base that a header names, or "" if vmand makes no
// overlays on it. A base is the content of an image, or an image of the operator's
// outside the directory of ours.
func (d *Driver) baseOfHeader(h image.Qcow2Header) (base, format string) {
	dir, name := filepath.Split(h.Backing)
	switch {
	case vm.ValidContent(name) && h.Backing == d.layout.content(name):
		format := vm.ImageFormat(h.BackingFormat)
		if format == vm.FormatISO || !slices.Contains(vm.ImageFormats, format) {
			return "", ""
		}
		return vm.ContentBase(name), h.BackingFormat
	case !filepath.IsAbs(h.Backing), filepath.Clean(dir) == d.layout.inState(imagesDir),
		h.BackingFormat != formatQcow2 && h.BackingFormat != formatRaw:
		return "", ""
	}
	return h.Backing, h.BackingFormat
}
