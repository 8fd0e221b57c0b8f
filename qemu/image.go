package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// imgTimeout bounds a run of qemu-img. Nothing it is used for here copies data.
const imgTimeout = 2 * time.Minute

const tempSuffix = ".tmp"

// tempName returns the name a file has until it is finished. No VM or disk can
// have it, so nobody takes it for one.
func tempName(name string) string {
	return path.Join(path.Dir(name), "."+path.Base(name)+tempSuffix)
}

// HasVM implements [vm.Driver].
func (d *Driver) HasVM(_ context.Context, id string) (bool, error) {
	_, err := d.state.Lstat(vmDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, fileFault(err, "look for files of vm %s", id)
}

// CreateVM implements [vm.Driver].
func (d *Driver) CreateVM(ctx context.Context, id string, root vm.DiskFile) error {
	args := []string{"create", "-q", "-f", formatQcow2}
	if root.Base != "" {
		if err := checkBase(root); err != nil {
			return err
		}
		// With -u the base is not opened: it is the operator's, and whoever
		// qemu-img runs as may not read it.
		args = append(args, "-u", "-F", root.BaseFormat, "-b", root.Base)
	}
	dir := vmDir(id)
	if err := d.state.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fault(vm.CodeExists, nil, "files of a vm %s already exist in %s", id, d.layout.inState(dir))
		}
		return fileFault(err, "make the directory of vm %s", id)
	}
	vm.FailPoint("dir.made")
	err := d.account.admit(d.layout.inState(dir))
	if err == nil {
		err = d.createImage(ctx, vmRootDisk(id), args, root.SizeMiB)
	}
	if err == nil {
		vm.FailPoint("image.synced")
		err = d.syncFile(vmsDir)
	}
	if err != nil {
		return errors.Join(fileFault(err, "make the root disk of vm %s", id), d.removeAll(dir))
	}
	return nil
}

// checkBase reports what is wrong with the image a root disk is to be based on.
func checkBase(root vm.DiskFile) error {
	format, size, err := ProbeBase(root.Base)
	switch {
	case err != nil:
		return fault(vm.CodeOperationFailed, err, "the boot image cannot be used")
	case format != root.BaseFormat:
		return fault(vm.CodeOperationFailed, nil, "the boot image %s has become %s, it was %s", root.Base, format, root.BaseFormat)
	case size > root.SizeMiB:
		return fault(vm.CodeInvalid, nil, "a root disk of %d MiB is smaller than the boot image, which has %d MiB", root.SizeMiB, size)
	}
	return nil
}

// DeleteVM implements [vm.Driver].
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

func (d *Driver) removeAll(dir string) error {
	err := d.state.RemoveAll(dir)
	if err == nil {
		vm.FailPoint("files.removed")
		err = d.syncFile(path.Dir(dir))
	}
	return fileFault(err, "remove %s", d.layout.inState(dir))
}

// CreateDisk implements [vm.Driver].
func (d *Driver) CreateDisk(ctx context.Context, id string, sizeMiB int64) error {
	if _, err := d.state.Lstat(dataDisk(id)); err == nil {
		return fault(vm.CodeExists, nil, "the file of a disk %s already exists: %s", id, d.layout.inState(dataDisk(id)))
	}
	err := d.createImage(ctx, dataDisk(id), []string{"create", "-q", "-f", formatQcow2}, sizeMiB)
	return fileFault(err, "make disk %s", id)
}

// DeleteDisk implements [vm.Driver].
func (d *Driver) DeleteDisk(_ context.Context, id string) error {
	if err := d.checkUnused(dataDisk(id)); err != nil {
		return err
	}
	err := d.state.Remove(dataDisk(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		vm.FailPoint("files.removed")
		err = d.syncFile(disksDir)
	}
	return fileFault(err, "remove the file of disk %s", id)
}

// DiskSize implements [vm.Driver]. It reads the file's header, also while QEMU
// has it open.
func (d *Driver) DiskSize(_ context.Context, id string) (int64, error) {
	f, err := d.state.Open(dataDisk(id))
	if err != nil {
		return 0, fileFault(err, "the file of disk %s", id)
	}
	defer f.Close()
	h, err := readQcow2Header(f)
	if err != nil {
		return 0, fault(vm.CodeOperationFailed, err, "read the file of disk %s", id)
	}
	return h.sizeMiB(), nil
}

// createImage runs "qemu-img create" for a file of the QEMU account's, which is
// there, finished and on the disk, when it returns nil, and not at all if not.
func (d *Driver) createImage(ctx context.Context, name string, args []string, sizeMiB int64) (err error) {
	temp := tempName(name)
	if err := d.makeTemp(temp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			d.state.Remove(temp)
		}
	}()
	vm.FailPoint("image.temp-made")
	if err := d.runImg(ctx, append(args, d.layout.inState(temp), strconv.FormatInt(sizeMiB*mib, 10))...); err != nil {
		return err
	}
	vm.FailPoint("image.created")
	if err := d.syncFile(temp); err != nil {
		return err
	}
	if err := d.state.Rename(temp, name); err != nil {
		return err
	}
	vm.FailPoint("image.renamed")
	if err := d.syncFile(path.Dir(name)); err != nil {
		return errors.Join(err, d.state.Remove(name))
	}
	return nil
}

// makeTemp makes an empty file that qemu-img can write to.
func (d *Driver) makeTemp(name string) error {
	if err := d.state.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.state.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.account.own(f)
}

// removeTemps removes what a vmand that was killed has left of disks and of
// recordings. What it has left of a VM is in the VM's directory and goes with it.
func (d *Driver) removeTemps() error {
	dirs, err := readDir(d.state, vmsDir)
	if err != nil {
		return err
	}
	for _, e := range dirs {
		if err := d.state.Remove(vmCrashTemp(e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
	}
	entries, err := readDir(d.state, disksDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && strings.HasSuffix(e.Name(), tempSuffix) {
			if err := d.state.Remove(disksDir + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncFile makes what was written to a file, or the names in a directory, last.
func (d *Driver) syncFile(name string) error {
	f, err := d.state.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (d *Driver) imgResize(ctx context.Context, diskID string, bytes int64) error {
	err := d.runImg(ctx, "resize", "-q", "-f", formatQcow2, d.layout.inState(dataDisk(diskID)), strconv.FormatInt(bytes, 10))
	return fileFault(err, "grow disk %s", diskID)
}

// imgLimits is what qemu-img may use: 2 GiB of addresses, a minute of CPU.
var imgLimits = []string{"--as=2147483648", "--cpu=60", "--nofile=64"}

// runImg runs qemu-img as the account QEMU runs as. prlimit is what sets the
// limits, because a Go program cannot between fork and exec; it is a part of
// util-linux, which every Linux host has.
func (d *Driver) runImg(ctx context.Context, args ...string) error {
	img, err := lookUpTool(d.opts.ImgBinary)
	if err != nil {
		return unavailable(err, d.opts.ImgBinary, "qemu-utils")
	}
	prlimit, err := lookUpTool("prlimit")
	if err != nil {
		return unavailable(err, "prlimit", "util-linux")
	}
	argv := append(append([]string{prlimit}, imgLimits...), "--", img)
	words, err := d.runTool(ctx, append(argv, args...))
	switch {
	case err == nil:
		return nil
	case strings.Contains(strings.ToLower(words), unix.ENOSPC.Error()):
		return fmt.Errorf("qemu-img %s: %w", args[0], unix.ENOSPC)
	case strings.Contains(strings.ToLower(words), unix.EDQUOT.Error()):
		return fmt.Errorf("qemu-img %s: %w", args[0], unix.EDQUOT)
	case words != "":
		return fault(vm.CodeOperationFailed, nil, "qemu-img %s: %s", args[0], words)
	default:
		return fmt.Errorf("qemu-img %s: %w", args[0], err)
	}
}

// runTool runs a program to its end and returns the last lines it wrote.
func (d *Driver) runTool(ctx context.Context, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, imgTimeout)
	defer cancel()
	out, err := memoryFile("output")
	if err != nil {
		return "", err
	}
	defer out.Close()
	p, err := start(d.account, argv, []*os.File{nil, out, out})
	if err != nil {
		return "", err
	}
	select {
	case <-p.done:
		p.release()
	case <-ctx.Done():
		p.kill()
		return "", ctx.Err()
	}
	words := lastLines(tail(out, maxStderr), 4)
	if p.state != "exit status 0" {
		return words, errors.New(p.state)
	}
	return words, nil
}

var imgVersionPattern = regexp.MustCompile(`qemu-img version (\S+)`)

// imgVersion returns the version of qemu-img, which it asks for once.
func (d *Driver) imgVersion(ctx context.Context) (string, error) {
	path, err := lookUpTool(d.opts.ImgBinary)
	if err != nil {
		return "", unavailable(err, d.opts.ImgBinary, "qemu-utils")
	}
	id, err := identify(path)
	if err != nil {
		return "", unavailable(err, path, "qemu-utils")
	}
	d.mu.Lock()
	known, version := d.img, d.imgIs
	d.mu.Unlock()
	if known == id {
		return version, nil
	}
	words, err := d.runTool(ctx, []string{path, "--version"})
	m := imgVersionPattern.FindStringSubmatch(words)
	if err == nil && m == nil {
		err = fmt.Errorf("it says %q when asked for its version", words)
	}
	if err != nil {
		return "", unavailable(err, path, "qemu-utils")
	}
	d.mu.Lock()
	d.img, d.imgIs = id, m[1]
	d.mu.Unlock()
	return m[1], nil
}

// lookPath is exec.LookPath, with the error of a program that is not there as
// it should read.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("it is not installed")
	}
	return path, err
}
