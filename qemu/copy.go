package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmand/qemu/image"
	"vmand/vm"
)

const (
	// copyMiBPerSecond is the slowest copy that is waited for; of CPU time, a copy
	// may take no more either. Decompressing takes some.
	copyMiBPerSecond = 4
	// copyOverhead is how much of the size of a disk the tables of its file take at most.
	copyOverhead     = 512
	copyOverheadFree = 64 * mib
)

// copySource is what is copied.
type copySource struct {
	node  blockNode
	bytes int64 // the size of the disk in it
	name  string
}

// copier returns what makes an empty file of sizeMiB a copy of a disk, with all that
// it is based on.
func (d *Driver) copier(ctx context.Context, from vm.CopySource, sizeMiB int64, progress func(done, total int64)) (filler, error) {
	source, err := d.copySource(ctx, from)
	if err != nil {
		return nil, err
	}
	if ceilMiB(source.bytes) > sizeMiB {
		return nil, fault(vm.CodeInvalid, nil, "a disk of %d MiB is smaller than what it is a copy of: %s has %d MiB", sizeMiB, source.name, ceilMiB(source.bytes))
	}
	return func(f *os.File, path string) error {
		if err := writeQcow2(f, sizeMiB*mib, "", ""); err != nil {
			return err
		}
		return d.convert(ctx, source, path, 0, progress)
	}, nil
}

// copySource returns what a source is, and sees to it that nobody changes it.
func (d *Driver) copySource(ctx context.Context, from vm.CopySource) (copySource, error) {
	kind, id := from.Resource.Kind, from.Resource.ID
	switch {
	case from.Resource == vm.Resource{}:
		return d.contentSource(from.File)
	case kind == vm.DiskKind && vm.ValidName(id):
		return d.diskSource(from.File, dataDisk(id), "disk "+id)
	case kind == vm.VMKind && vm.ValidName(id):
		if err := d.checkFree(ctx, id); err != nil {
			return copySource{}, err
		}
		return d.diskSource(from.File, vmRootDisk(id), "the root disk of vm "+id)
	}
	return copySource{}, fault(vm.CodeInvalid, nil, "nothing can be copied from %q", from.Resource)
}

func (d *Driver) contentSource(file vm.DiskFile) (copySource, error) {
	content, ok := file.Content()
	if !ok {
		return copySource{}, fault(vm.CodeInvalid, nil, "%q is no content of an image", file.Base)
	}
	name := fmt.Sprintf("image %s (content %s)", file.Image, content)
	info, err := d.info(content)
	if err == nil {
		err = d.checkContent(content)
	}
	if err != nil {
		return copySource{}, fault(vm.CodeOperationFailed, err, "%s cannot be read", name)
	}
	format := string(info.Format)
	if info.Format == image.ISO {
		format = formatRaw
	}
	return copySource{*readNode(format, rootNode, rootFileNode, d.layout.content(content)), info.VirtualBytes, name}, nil
}

// diskSource returns a disk of ours. What the records say of it is what counts, but
// its own header must not say that it is another kind of file.
func (d *Driver) diskSource(file vm.DiskFile, name, who string) (copySource, error) {
	f, err := d.state.Open(name)
	if err != nil {
		return copySource{}, fileFault(err, "the file of %s", who)
	}
	defer f.Close()
	h, err := readQcow2Header(f)
	switch {
	case err != nil:
		return copySource{}, fault(vm.CodeOperationFailed, err, "read the file of %s", who)
	case h.external || h.crypt || (h.backing == "") != (file.Base == ""):
		return copySource{}, fault(vm.CodeOperationFailed, nil, "the file of %s is not what vmand has made: it is based on %q", who, h.backing)
	}
	if err := d.checkUnused(name); err != nil {
		return copySource{}, err
	}
	node := *readNode(formatQcow2, rootNode, rootFileNode, d.layout.inState(name))
	if file.Base != "" {
		if node.Backing, err = d.copiedBase(file, who); err != nil {
			return copySource{}, err
		}
	}
	return copySource{node, h.size, who}, nil
}

// copiedBase returns what a disk that is copied is an overlay of. qemu-img has to
// open it itself: unlike QEMU it takes no descriptors.
func (d *Driver) copiedBase(file vm.DiskFile, who string) (*blockNode, error) {
	path := file.Base
	if content, ok := file.Content(); ok {
		if err := d.checkBaseOf(file, who); err != nil {
			return nil, err
		}
		path = d.layout.content(content)
	} else if err := d.account.canRead(path); err != nil {
		f := fault(vm.CodeOperationFailed, err, "%s is based on %s, which the user that QEMU runs as (uid %d) cannot read", who, path, d.account.uid)
		f.Hint = fmt.Sprintf("allow it with \"chmod o+r %s\", and with \"chmod o+x\" for the directories it is in", path)
		return nil, f
	}
	return readNode(file.BaseFormat, baseNode, baseFileNode, path), nil
}

var imgProgress = regexp.MustCompile(`\((\d+(?:\.\d+)?)/100%\)`)

// convert copies a source into a qcow2 image at a path, which is the account's, is
// empty and has room for it. It reports the progress in bytes of the source's disk.
// most is how large the file may become, 0 for as large as the disk makes it.
func (d *Driver) convert(ctx context.Context, from copySource, to string, most int64, progress func(done, total int64)) error {
	node, err := json.Marshal(from.node)
	if err != nil {
		return fmt.Errorf("encode the source: %w", err)
	}
	size := ceilMiB(from.bytes)
	patience := time.Duration(size) * time.Second / copyMiBPerSecond
	job := imgJob{
		args:    []string{"convert", "-p", "-n", "--target-is-zero", "-O", formatQcow2, "json:" + string(node), to},
		timeout: imgTimeout + patience, cpu: imgCPU + patience,
		file: from.bytes + from.bytes/copyOverhead + copyOverheadFree,
	}
	if most != 0 && most < job.file {
		job.file = most
	}
	if progress != nil {
		job.said = func(output *os.File) {
			all := imgProgress.FindAllStringSubmatch(tail(output, 256), -1)
			if len(all) == 0 {
				return
			}
			if percent, err := strconv.ParseFloat(all[len(all)-1][1], 64); err == nil {
				progress(int64(percent/100*float64(from.bytes)), from.bytes)
			}
		}
	}
	err = d.runImg(ctx, job)
	if err == nil && progress != nil {
		progress(from.bytes, from.bytes)
	}
	if most != 0 && err != nil && strings.Contains(strings.ToLower(err.Error()), unix.EFBIG.Error()) {
		return &image.TooLarge{Max: most}
	}
	return err
}

// ImageOfDisk implements [vm.Images].
func (d *Driver) ImageOfDisk(ctx context.Context, from vm.CopySource, i vm.Import) (vm.ImageContent, error) {
	source, err := d.copySource(ctx, from)
	if err != nil {
		return vm.ImageContent{}, err
	}
	temp := d.importer.TempName()
	if err := d.copyInto(ctx, source, temp, i.Progress); err != nil {
		return vm.ImageContent{}, imageFault(errors.Join(err, d.contents.discard(temp)), "make an image of %s", source.name)
	}
	w := want(i)
	w.Progress = nil // it has ended
	got, err := d.importer.Adopt(ctx, temp, w)
	if err != nil {
		return vm.ImageContent{}, imageFault(err, "make an image of %s", source.name)
	}
	return contentOf(got), nil
}

func (d *Driver) copyInto(ctx context.Context, source copySource, temp string, progress func(done, total int64)) error {
	f, err := makeTemp(d.contents.root, temp, d.account)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writeQcow2(f, source.bytes, "", ""); err != nil {
		return err
	}
	return d.convert(ctx, source, d.layout.content(temp), d.opts.Images.MaxBytes, progress)
}
