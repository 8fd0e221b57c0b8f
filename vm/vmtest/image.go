package vmtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"strings"

	"vmand/vm"
)

// images holds the image content, uploads and seeds of a [Driver].
type images struct {
	urls     map[string][]byte            // downloads, by URL
	contents map[string][]byte            // by SHA-256
	uploads  map[string][]byte            // by name of the image
	seeds    map[string]map[string][]byte // files, by VM id and name
	bases    map[string]vm.DiskFile       // data disks and root disks, by resource
}

// made records the base of a file. It must be called with d.mu held.
func (d *Driver) made(resource string, f vm.DiskFile) {
	if d.images.bases == nil {
		d.images.bases = map[string]vm.DiskFile{}
	}
	d.images.bases[resource] = f
}

// Offer makes content available for download from a URL.
func (d *Driver) Offer(url string, content []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.images.urls == nil {
		d.images.urls = map[string][]byte{}
	}
	d.images.urls[url] = content
}

// LoseImage removes image content.
func (d *Driver) LoseImage(sha256 string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.images.contents, sha256)
}

// Contents returns the SHA-256 of all image content, sorted.
func (d *Driver) Contents() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for sum := range d.images.contents {
		all = append(all, sum)
	}
	slices.Sort(all)
	return all
}

// SeedOf returns the files of the seed of a VM by name, nil if there is none.
func (d *Driver) SeedOf(vmID string) map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.images.seeds[vmID]
}

// CheckURL fails unless the scheme of url is http or https.
func (d *Driver) CheckURL(url string) error {
	if strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://") {
		return nil
	}
	return vm.InvalidField("/url", "must be http or https")
}

// check checks content as an import does and calls i.Ready. Content that begins with "bad" is
// unsafe, content that begins with "iso" is an ISO image of 1 MiB, and all other content is a raw
// image of 16 MiB.
func (d *Driver) check(content []byte, i vm.Import) (vm.ImageContent, error) {
	sum := sha256.Sum256(content)
	c := vm.ImageContent{
		SHA256:     hex.EncodeToString(sum[:]),
		Layout:     vm.FormatRaw,
		VirtualMiB: 16,
		Bytes:      int64(len(content)),
	}
	switch {
	case bytes.HasPrefix(content, []byte("bad")):
		return c, &vm.Fault{Code: vm.CodeUnsafeImage, Detail: "unsafe image: it begins with bad"}
	case bytes.HasPrefix(content, []byte("iso")):
		c.Layout, c.VirtualMiB = vm.FormatISO, 1
	}
	if want := i.Sum.SHA256; want != "" && !strings.EqualFold(want, c.SHA256) {
		return c, &vm.Fault{Code: vm.CodeChecksumMismatch, Detail: "the SHA-256 is " + c.SHA256 + ", want " + want}
	}
	if i.Format != "" && i.Format != c.Layout {
		return c, &vm.Fault{Code: vm.CodeUnsupportedImage, Detail: "unsupported image: its format is " + string(c.Layout)}
	}
	if i.Progress != nil {
		i.Progress(c.Bytes, c.Bytes)
	}
	if i.Ready != nil {
		if err := i.Ready(c); err != nil {
			return c, err
		}
	}
	return c, nil
}

// store stores content under its SHA-256. It must be called with d.mu held.
func (d *Driver) store(sum string, content []byte) {
	if d.images.contents == nil {
		d.images.contents = map[string][]byte{}
	}
	d.images.contents[sum] = content
}

// importInto checks and stores content. method and id identify the call for [Driver.Calls].
func (d *Driver) importInto(
	ctx context.Context, method, id string, content []byte, i vm.Import,
) (vm.ImageContent, error) {
	c, err := d.check(content, i)
	if err != nil {
		return vm.ImageContent{}, err
	}
	return c, d.do(ctx, method, id, func() error {
		d.store(c.SHA256, content)
		return nil
	})
}

// FetchImage imports the content that Offer made available at url.
func (d *Driver) FetchImage(ctx context.Context, url string, i vm.Import) (vm.ImageContent, error) {
	if d.Hook != nil {
		if err := d.Hook(ctx, "Fetch", url); err != nil {
			return vm.ImageContent{}, err
		}
	}
	d.mu.Lock()
	content, ok := d.images.urls[url]
	d.mu.Unlock()
	if !ok {
		return vm.ImageContent{}, &vm.Fault{Code: vm.CodeFetchFailed, Detail: "the server has no content at " + url}
	}
	return d.importInto(ctx, "FetchImage", url, content, i)
}

// UploadImage appends r to an upload. Bytes read before an error are kept.
func (d *Driver) UploadImage(ctx context.Context, name string, offset int64, r io.Reader) (int64, error) {
	d.mu.Lock()
	have := d.images.uploads[name]
	d.mu.Unlock()
	if offset != int64(len(have)) {
		return int64(len(have)), &vm.Fault{Code: vm.CodePrecondition, Detail: "the offset is not the end of the upload"}
	}
	content, readErr := io.ReadAll(r)
	err := d.do(ctx, "UploadImage", name, func() error {
		if d.images.uploads == nil {
			d.images.uploads = map[string][]byte{}
		}
		have = append(have, content...)
		d.images.uploads[name] = have
		return nil
	})
	return int64(len(have)), cmp.Or(readErr, err)
}

// Uploaded returns the number of bytes received.
func (d *Driver) Uploaded(ctx context.Context, name string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.images.uploads[name])), nil
}

// FinishUpload imports the bytes received.
func (d *Driver) FinishUpload(ctx context.Context, name string, i vm.Import) (vm.ImageContent, error) {
	d.mu.Lock()
	content := d.images.uploads[name]
	d.mu.Unlock()
	c, err := d.importInto(ctx, "FinishUpload", name, content, i)
	if err != nil {
		return c, err
	}
	return c, d.DropUpload(ctx, name)
}

// DropUpload deletes the bytes received.
func (d *Driver) DropUpload(ctx context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.images.uploads, name)
	return nil
}

// ImageOfDisk imports content that names its source.
func (d *Driver) ImageOfDisk(ctx context.Context, from vm.CopySource, i vm.Import) (vm.ImageContent, error) {
	return d.importInto(ctx, "ImageOfDisk", from.Resource.String(), []byte("copy of "+from.Resource.String()), i)
}

// HasImage reports whether content is stored.
func (d *Driver) HasImage(ctx context.Context, sha256 string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.images.contents[sha256]
	return ok, nil
}

// OpenImage opens content for reading.
func (d *Driver) OpenImage(ctx context.Context, sha256 string) (io.ReadSeekCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	content, ok := d.images.contents[sha256]
	if !ok {
		return nil, vm.NotFound("content", sha256)
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{bytes.NewReader(content), io.NopCloser(nil)}, nil
}

// DeleteImage removes content.
func (d *Driver) DeleteImage(ctx context.Context, sha256 string) error {
	return d.do(ctx, "DeleteImage", sha256, func() error {
		delete(d.images.contents, sha256)
		return nil
	})
}

// SetCDROMs replaces the drives of the process of a VM.
func (d *Driver) SetCDROMs(ctx context.Context, vmID string, want []vm.CDROM) error {
	return d.do(ctx, "SetCDROMs", vmID, func() error {
		p := d.procs[vmID]
		if p == nil {
			return noProcess(vmID)
		}
		p.cdroms = cdromIDs(want)
		return nil
	})
}

// cdromIDs returns the ids of all drives; it is never nil.
func cdromIDs(all []vm.CDROM) []string {
	ids := []string{}
	for _, c := range all {
		ids = append(ids, c.ID)
	}
	return ids
}

// WriteSeed stores the files of a seed.
func (d *Driver) WriteSeed(ctx context.Context, vmID string, files map[string][]byte) error {
	return d.do(ctx, "WriteSeed", vmID, func() error {
		if d.images.seeds == nil {
			d.images.seeds = map[string]map[string][]byte{}
		}
		d.images.seeds[vmID] = files
		return nil
	})
}
