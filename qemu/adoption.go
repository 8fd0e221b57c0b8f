package qemu

import (
	"context"
	"path/filepath"

	"vmand/vm"
)

// AdoptVM implements [vm.Driver]. It fails if a process of the VM lives and does
// not say who it is: with a UUID that is made up, that process would be taken
// for a stranger from then on.
func (d *Driver) AdoptVM(ctx context.Context, id string) (string, vm.DiskFile, error) {
	root, err := d.rootDisk(id)
	if err != nil {
		return "", vm.DiskFile{}, err
	}
	s, err := d.session(id)
	if err != nil {
		return "", vm.DiskFile{}, fault(vm.CodeOperationFailed, err, "look for the QEMU process of vm %s", id)
	}
	if s == nil {
		return "", root, nil
	}
	// The session talks only to a monitor that names the UUID of the runtime
	// directory.
	var got identity
	if err := s.execute(ctx, queryTimeout, "query-uuid", nil, &got); err != nil {
		return "", vm.DiskFile{}, err
	}
	return got.UUID, root, nil
}

// rootDisk returns what the header of a VM's root disk says.
func (d *Driver) rootDisk(id string) (vm.DiskFile, error) {
	if !vm.ValidName(id) {
		return vm.DiskFile{}, vm.NotFound("VM", id)
	}
	f, err := d.state.Open(vmRootDisk(id))
	if err != nil {
		return vm.DiskFile{}, fileFault(err, "the root disk of vm %s", id)
	}
	defer f.Close()
	h, err := readQcow2Header(f)
	if err != nil {
		return vm.DiskFile{}, fault(vm.CodeOperationFailed, err, "read the root disk of vm %s", id)
	}
	switch {
	case h.external || h.crypt:
		return vm.DiskFile{}, fault(vm.CodeOperationFailed, nil, "the root disk of vm %s is none that vmand has made", id)
	case h.backing == "":
	case !filepath.IsAbs(h.backing), h.backingFormat != formatQcow2 && h.backingFormat != formatRaw:
		return vm.DiskFile{}, fault(vm.CodeOperationFailed, nil, "the root disk of vm %s is based on %q (%q), which vmand has not made it on",
			id, h.backing, h.backingFormat)
	}
	r := vm.DiskFile{SizeMiB: h.sizeMiB(), Base: h.backing}
	if r.Base != "" {
		r.BaseFormat = h.backingFormat
	}
	return r, nil
}
