package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"vmand/failpoint"
	"vmand/host"
	"vmand/qemu/image"
	"vmand/vm"
)

// HasVM implements [vm.Files].
func (d *Driver) HasVM(_ context.Context, id string) (bool, error) {
	_, err := d.state.Lstat(vmDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, fileFault(err, "look for files of VM %s", id)
}

// CreateVM implements [vm.Files].
func (d *Driver) CreateVM(
	ctx context.Context, id string, root vm.DiskFile, from *vm.CopySource, progress func(done, total int64),
) error {
	fill, err := d.filler(ctx, root, from, progress)
	if err != nil {
		return err
	}
	dir := vmDir(id)
	if err := d.state.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fault(vm.CodeExists, nil, "files of a VM %s already exist in %s", id, d.layout.inState(dir))
		}
		return fileFault(err, "make the directory of VM %s", id)
	}
	failpoint.Hit("dir.made")
	err = admit(d.account, d.state, dir)
	if err == nil {
		err = d.createImage(vmRootDisk(id), fill)
	}
	if err == nil {
		failpoint.Hit("image.synced")
		err = host.Sync(d.state, vmsDir)
	}
	if err != nil {
		return errors.Join(fileFault(err, "make the root disk of VM %s", id), d.removeAll(dir))
	}
	return nil
}

// checkBase fails if a file cannot be an overlay of its base. It returns the name
// of the base for the file's header, which QEMU does not use.
func (d *Driver) checkBase(file vm.DiskFile) (string, error) {
	path, format, size := file.Base, "", int64(0)
	if content, ok := file.Content(); ok {
		info, err := d.info(content)
		if err != nil {
			return "", fault(vm.CodeOperationFailed, err, "image %s (content %s) cannot be used", file.Image, content)
		}
		path, format, size = d.layout.content(content), string(info.Format), info.VirtualBytes
	} else {
		var err error
		if format, size, err = ProbeBase(file.Base); err != nil {
			return "", fault(vm.CodeOperationFailed, err, "the boot image cannot be used")
		}
	}
	switch {
	case format != file.BaseFormat:
		return "", fault(vm.CodeOperationFailed, nil, "the image %s is %s and not %s", path, format, file.BaseFormat)
	case size > file.Bytes():
		return "", fault(vm.CodeInvalid, nil, "a disk of %d bytes is smaller than its image, which has %d bytes",
			file.Bytes(), size)
	}
	return path, nil
}

// DeleteVM implements [vm.Files].
func (d *Driver) DeleteVM(ctx context.Context, id string) error {
	if err := d.checkFree(ctx, id); err != nil {
		return err
	}
	if err := d.checkUnused(vmRootDisk(id)); err != nil {
		return err
	}
	d.layout.removeRun(id, runSuffixes...)
	return d.removeAll(vmDir(id))
}

// removeAll removes a directory and its content durably.
func (d *Driver) removeAll(dir string) error {
	err := d.state.RemoveAll(dir)
	if err == nil {
		failpoint.Hit("files.removed")
		err = host.Sync(d.state, path.Dir(dir))
	}
	return fileFault(err, "remove %s", d.layout.inState(dir))
}

// CreateDisk implements [vm.Files].
func (d *Driver) CreateDisk(
	ctx context.Context, id string, file vm.DiskFile, from *vm.CopySource, progress func(done, total int64),
) error {
	if _, err := d.state.Lstat(dataDisk(id)); err == nil {
		return fault(vm.CodeExists, nil, "the file of a disk %s already exists: %s", id, d.layout.inState(dataDisk(id)))
	}
	if _, ok := file.Content(); !ok && file.Base != "" {
		return fault(vm.CodeInvalid, nil, "disk %s cannot be based on %q: a base is the content of an image", id, file.Base)
	}
	fill, err := d.filler(ctx, file, from, progress)
	if err != nil {
		return err
	}
	return fileFault(d.createImage(dataDisk(id), fill), "make disk %s", id)
}

// A filler writes a disk into an empty file. path is that of the file.
type filler func(f *os.File, path string) error

// filler returns the filler of an empty disk, an overlay or a copy.
func (d *Driver) filler(
	ctx context.Context, file vm.DiskFile, from *vm.CopySource, progress func(done, total int64),
) (filler, error) {
	if from != nil {
		return d.copier(ctx, *from, file.Bytes(), progress)
	}
	backing := ""
	if file.Base != "" {
		var err error
		if backing, err = d.checkBase(file); err != nil {
			return nil, err
		}
	}
	return func(f *os.File, _ string) error {
		return image.WriteQcow2(f, file.Bytes(), backing, file.BaseFormat)
	}, nil
}

// DeleteDisk implements [vm.Files].
func (d *Driver) DeleteDisk(_ context.Context, id string) error {
	if err := d.checkUnused(dataDisk(id)); err != nil {
		return err
	}
	err := d.state.Remove(dataDisk(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		failpoint.Hit("files.removed")
		err = host.Sync(d.state, disksDir)
	}
	return fileFault(err, "remove the file of disk %s", id)
}

// DiskSize implements [vm.Files]. It reads the header of the file, which QEMU may
// have open.
func (d *Driver) DiskSize(_ context.Context, id string) (int64, error) {
	bytes, err := d.diskBytes(id)
	return ceilMiB(bytes), err
}

// diskBytes returns the virtual size in the header of the file of a disk.
func (d *Driver) diskBytes(id string) (int64, error) {
	f, err := d.state.Open(dataDisk(id))
	if err != nil {
		return 0, fileFault(err, "the file of disk %s", id)
	}
	defer f.Close()
	h, err := readHeader(f)
	if err != nil {
		return 0, fault(vm.CodeOperationFailed, err, "read the file of disk %s", id)
	}
	return h.VirtualBytes, nil
}

// createImage creates the file name, which belongs to QEMU's account, and lets
// fill write it. The file is durable when createImage returns nil, and does not
// exist when it returns an error. name must not exist.
func (d *Driver) createImage(name string, fill filler) error {
	err := host.WriteFile(d.state, name, 0o600, func(f *os.File) error {
		if err := d.account.Own(f); err != nil {
			return err
		}
		failpoint.Hit("image.temp-made")
		if err := fill(f, d.layout.inState(host.TempName(name))); err != nil {
			return err
		}
		failpoint.Hit("image.created")
		return nil
	})
	if errors.Is(err, host.ErrNotDurable) {
		return errors.Join(err, d.state.Remove(name))
	}
	if err != nil {
		return err
	}
	failpoint.Hit("image.renamed")
	return nil
}

// makeTemp creates an empty file that the account can write.
func makeTemp(dir *os.Root, name string, a host.Account) (*os.File, error) {
	f, err := host.CreateTemp(dir, name, 0o600)
	if err != nil {
		return nil, err
	}
	if err := a.Own(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// removeTemps removes the unfinished files of disks that a killed vmand left.
func (d *Driver) removeTemps() error {
	entries, err := readDir(d.state, disksDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if host.IsTempName(e.Name()) {
			if err := d.state.Remove(disksDir + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// fileTimeStep is how far the time of a change of a file can be behind the clock, with
// some room: the kernel takes the time of its last tick, at most 10 ms ago.
const fileTimeStep = 20 * time.Millisecond

// removeVMTemps removes the unfinished recordings and seeds of VMs that a killed vmand
// left: those that were last changed before a time. It runs beside the API, because it
// takes 3 us for each VM, recorded or not. An unfinished root disk goes with the
// directory of its VM.
func (d *Driver) removeVMTemps(ctx context.Context, before time.Time) error {
	err := eachVMDir(ctx, d.state, func(id string, lstat statInVMs) error {
		for _, temp := range []string{vmCrashTemp(id), host.TempName(vmSeed(id)), host.TempName(vmIgnition(id))} {
			st, err := lstat(temp)
			if err == nil && time.Unix(st.Mtim.Unix()).Before(before) {
				err = d.state.RemoveAll(temp)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return err
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil // vmand stops, and the next one continues
	}
	return err
}
