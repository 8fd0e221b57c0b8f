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

	"vmand/host"
	"vmand/qemu/image"
	"vmand/vm"
)

const (
	// copyMiBPerSecond bounds a copy: it may take the time, and the CPU time, of a
	// copy at this rate. Decompression takes CPU time.
	copyMiBPerSecond = 4
	// copyOverhead bounds the metadata of an image: one part in copyOverhead of the
	// disk's size, and copyOverheadFree bytes more.
	copyOverhead     = 512
	copyOverheadFree = 64 * mib
)

// copySource is the source of a copy.
type copySource struct {
	node  blockNode
	bytes int64 // the virtual size
	name  string
}

// copier returns a filler that makes an empty file of a size in bytes a copy of a disk,
// including its base.
func (d *Driver) copier(
	ctx context.Context, from vm.CopySource, bytes int64, progress func(done, total int64),
) (filler, error) {
	source, err := d.copySource(ctx, from)
	if err != nil {
		return nil, err
	}
	if source.bytes > bytes {
		return nil, fault(vm.CodeInvalid, nil, "a disk of %d bytes is smaller than its source: %s has %d bytes",
			bytes, source.name, source.bytes)
	}
	return func(f *os.File, path string) error {
		if err := image.WriteQcow2(f, bytes, "", ""); err != nil {
			return err
		}
		return d.convert(ctx, source, path, 0, progress)
	}, nil
}

// copySource returns the source of a copy. It fails if the source may change.
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
		return d.diskSource(from.File, vmRootDisk(id), "the root disk of VM "+id)
	}
	return copySource{}, fault(vm.CodeInvalid, nil, "nothing can be copied from %q", from.Resource)
}

// contentSource returns the content of an image as a source.
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

// diskSource returns a disk as a source. The base comes from the record; the header must
// have a base if and only if the record has one.
func (d *Driver) diskSource(file vm.DiskFile, name, label string) (copySource, error) {
	f, err := d.state.Open(name)
	if err != nil {
		return copySource{}, fileFault(err, "the file of %s", label)
	}
	defer f.Close()
	h, err := readHeader(f)
	switch {
	case err != nil:
		return copySource{}, fault(vm.CodeOperationFailed, err, "read the file of %s", label)
	case h.ExternalData || h.Encrypted || (h.Backing == "") != (file.Base == ""):
		return copySource{}, fault(vm.CodeOperationFailed, nil,
			"the file of %s differs from its record: it is based on %q", label, h.Backing)
	}
	if err := d.checkUnused(name); err != nil {
		return copySource{}, err
	}
	node := *readNode(formatQcow2, rootNode, rootFileNode, d.layout.inState(name))
	if file.Base != "" {
		if node.Backing, err = d.copiedBase(file, label); err != nil {
			return copySource{}, err
		}
	}
	return copySource{node, h.VirtualBytes, label}, nil
}

// copiedBase returns the base of the source of a copy. qemu-img opens it by its
// path: unlike QEMU, it takes no descriptors.
func (d *Driver) copiedBase(file vm.DiskFile, name string) (*blockNode, error) {
	path := file.Base
	if content, ok := file.Content(); ok {
		if err := d.checkBaseOf(file, name); err != nil {
			return nil, err
		}
		path = d.layout.content(content)
	} else if err := d.account.CanRead(path); err != nil {
		f := fault(vm.CodeOperationFailed, err, "%s is based on %s, which the user that QEMU runs as (uid %d) cannot read",
			name, path, d.account.UID)
		f.Hint = fmt.Sprintf("allow it with \"chmod o+r %s\", and with \"chmod o+x\" for the directories it is in", path)
		return nil, f
	}
	return readNode(file.BaseFormat, baseNode, baseFileNode, path), nil
}

// imgProgress matches the progress that qemu-img -p writes.
var imgProgress = regexp.MustCompile(`\((\d+(?:\.\d+)?)/100%\)`)

// convert copies a source into an empty qcow2 image at a path, which must belong to
// the account and have the size. It reports the progress in bytes of the source's
// virtual size. maxFile bounds the size of the file; 0 leaves it to the disk's size.
func (d *Driver) convert(
	ctx context.Context, from copySource, to string, maxFile int64, progress func(done, total int64),
) error {
	node, err := json.Marshal(from.node)
	if err != nil {
		return fmt.Errorf("encode the source: %w", err)
	}
	size := ceilMiB(from.bytes)
	patience := time.Duration(size) * time.Second / copyMiBPerSecond
	job := imgJob{
		args:    []string{"convert", "-p", "-n", "--target-is-zero", "-O", formatQcow2, "json:" + string(node), to},
		timeout: imgTimeout + patience,
		cpu:     imgCPU + patience,
		maxFile: from.bytes + from.bytes/copyOverhead + copyOverheadFree,
	}
	if maxFile != 0 && maxFile < job.maxFile {
		job.maxFile = maxFile
	}
	if progress != nil {
		job.progress = func(output *os.File) {
			if percent, ok := imgPercent(output); ok {
				progress(int64(percent/100*float64(from.bytes)), from.bytes)
			}
		}
	}
	err = d.runImg(ctx, job)
	if err == nil && progress != nil {
		progress(from.bytes, from.bytes)
	}
	if maxFile != 0 && err != nil && strings.Contains(strings.ToLower(err.Error()), unix.EFBIG.Error()) {
		return &image.TooLarge{Max: maxFile}
	}
	return err
}

// imgPercent returns the last progress that qemu-img wrote.
func imgPercent(output *os.File) (float64, bool) {
	all := imgProgress.FindAllStringSubmatch(host.Tail(output, 256), -1)
	if len(all) == 0 {
		return 0, false
	}
	percent, err := strconv.ParseFloat(all[len(all)-1][1], 64)
	return percent, err == nil
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
	w.Progress = nil // the copy has reported all of it
	got, err := d.importer.Adopt(ctx, temp, w)
	if err != nil {
		return vm.ImageContent{}, imageFault(err, "make an image of %s", source.name)
	}
	return contentOf(got), nil
}

// copyInto copies a source into the new file temp in the directory of images.
func (d *Driver) copyInto(ctx context.Context, source copySource, temp string, progress func(done, total int64)) error {
	f, err := makeTemp(d.contents.root, temp, d.account)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := image.WriteQcow2(f, source.bytes, "", ""); err != nil {
		return err
	}
	return d.convert(ctx, source, d.layout.content(temp), d.opts.Images.MaxBytes, progress)
}
