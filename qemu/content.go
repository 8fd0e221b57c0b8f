package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/qemu/image"
	"vmand/vm"
)

// ImageOptions limits the images that may be imported.
type ImageOptions struct {
	MaxBytes     int64          // of an image, both as transferred and as stored; 0 for 1 TiB
	AllowPrivate []netip.Prefix // non-public addresses that images may be downloaded from
}

// contents keeps the content of images in a directory. It implements the methods of
// [vm.Images] that need no QEMU.
type contents struct {
	root     *os.Root
	importer *image.Importer
	fetcher  *image.Fetcher

	mu    sync.Mutex
	infos map[string]image.Info // of inspected content, which never changes, by SHA-256
}

// openContents opens the directory of images.
func openContents(l layout, a host.Account, o ImageOptions) (*contents, error) {
	c := &contents{infos: make(map[string]image.Info)}
	var err error
	if c.root, err = os.OpenRoot(l.inState(imagesDir)); err != nil {
		return nil, fmt.Errorf("open the directory of images: %w", err)
	}
	c.importer, err = image.NewImporter(c.root, image.Options{
		MaxBytes:        o.MaxBytes,
		MaxVirtualBytes: vm.MaxDiskMiB * mib,
		Seal:            a.Lend,
	})
	if err != nil {
		c.root.Close()
		return nil, err
	}
	c.fetcher = image.NewFetcher(c.importer, image.FetchOptions{AllowPrivate: o.AllowPrivate})
	return c, nil
}

func (c *contents) close() error { return c.root.Close() }

// info returns the format and the virtual size of content.
func (c *contents) info(sha256 string) (image.Info, error) {
	c.mu.Lock()
	known, ok := c.infos[sha256]
	c.mu.Unlock()
	f, err := c.importer.Open(sha256)
	if err != nil {
		return image.Info{}, err
	}
	defer f.Close()
	if ok {
		return known, nil
	}
	st, err := f.Stat()
	if err != nil {
		return image.Info{}, err
	}
	if known, err = image.Inspect(f, st.Size()); err != nil {
		return image.Info{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.infos[sha256] = known
	return known, nil
}

// want translates an import for package image.
func want(i vm.Import) image.Want {
	w := image.Want{Sum: image.Sum(i.Sum), Format: image.Format(i.Format), Disk: i.Disk, Progress: i.Progress}
	if i.Ready != nil {
		w.Ready = func(c image.Content) error {
			if err := i.Ready(contentOf(c)); err != nil {
				return &readyError{err}
			}
			return nil
		}
	}
	return w
}

// readyError is an error of [vm.Import].Ready, which has its class already.
type readyError struct{ error }

// contentOf translates the content of an image for package vm.
func contentOf(c image.Content) vm.ImageContent {
	content := vm.ImageContent{SHA256: c.SHA256, Layout: vm.ImageFormat(c.Format), Bytes: c.Bytes}
	content.SetVirtualBytes(c.VirtualBytes)
	return content
}

// ceilMiB returns a size in MiB, rounded up.
func ceilMiB(bytes int64) int64 { return (bytes + mib - 1) / mib }

// CheckURL implements [vm.Images].
func (c *contents) CheckURL(url string) error {
	err := image.CheckURL(url)
	var refused *image.Refused
	if !errors.As(err, &refused) {
		return nil
	}
	f := fault(vm.CodeInvalid, nil, "/url: %s", refused.Reason)
	f.Fields = []vm.FieldFault{{Field: "/url", Detail: refused.Reason}}
	return f
}

// FetchImage implements [vm.Images].
func (c *contents) FetchImage(ctx context.Context, url string, i vm.Import) (vm.ImageContent, error) {
	got, err := c.fetcher.Fetch(ctx, url, want(i))
	if err != nil {
		return vm.ImageContent{}, fetchFault(ctx, err)
	}
	return contentOf(got), nil
}

// source records the error of a reader, to tell it from errors of the store.
type source struct {
	io.Reader
	err error
}

// Read implements [io.Reader].
func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// UploadImage implements [vm.Images]. An error of r is wrapped, not classified.
func (c *contents) UploadImage(ctx context.Context, name string, offset int64, r io.Reader) (int64, error) {
	s := &source{Reader: r}
	at, err := c.importer.Append(ctx, name, offset, s)
	if s.err != nil && errors.Is(err, s.err) {
		return at, fmt.Errorf("upload image %s: %w", name, s.err)
	}
	return at, imageFault(err, "upload image %s", name)
}

// Uploaded implements [vm.Images].
func (c *contents) Uploaded(_ context.Context, name string) (int64, error) {
	at, err := c.importer.Uploaded(name)
	return at, imageFault(err, "inspect the upload of image %s", name)
}

// FinishUpload implements [vm.Images].
func (c *contents) FinishUpload(ctx context.Context, name string, i vm.Import) (vm.ImageContent, error) {
	got, err := c.importer.Finish(ctx, name, want(i))
	if err != nil {
		return vm.ImageContent{}, imageFault(err, "finish the upload of image %s", name)
	}
	return contentOf(got), nil
}

// DropUpload implements [vm.Images].
func (c *contents) DropUpload(_ context.Context, name string) error {
	return imageFault(c.importer.Drop(name), "drop the upload of image %s", name)
}

// HasImage implements [vm.Images].
func (c *contents) HasImage(_ context.Context, sha256 string) (bool, error) {
	has, err := c.importer.Has(sha256)
	return has, fileFault(err, "look for content %s", sha256)
}

// OpenImage implements [vm.Images].
func (c *contents) OpenImage(_ context.Context, sha256 string) (io.ReadSeekCloser, error) {
	f, err := c.importer.Open(sha256)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, vm.NotFound("content", sha256)
	}
	if err != nil {
		return nil, fileFault(err, "open content %s", sha256)
	}
	return f, nil
}

// DeleteImage implements [vm.Images].
func (c *contents) DeleteImage(_ context.Context, sha256 string) error {
	c.mu.Lock()
	delete(c.infos, sha256)
	c.mu.Unlock()
	return fileFault(c.importer.Delete(sha256), "delete content %s", sha256)
}

// flawCodes has the code of each flaw of an image.
var flawCodes = map[image.Flaw]vm.Code{
	image.Hostile:     vm.CodeUnsafeImage,
	image.Damaged:     vm.CodeDamagedImage,
	image.Unsupported: vm.CodeUnsupportedImage,
}

// imageFault gives an error of package image its class.
func imageFault(err error, format string, args ...any) error {
	var ready *readyError
	var rejected *image.Rejected
	var large *image.TooLarge
	var mismatch *image.Mismatch
	var offset *image.OffsetError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ready):
		return ready.error
	case errors.As(err, &rejected):
		return fault(flawCodes[rejected.Flaw], nil, "%v", rejected)
	case errors.As(err, &large):
		f := fault(vm.CodeTooLarge, nil, "%v", large)
		if !large.Virtual {
			f.Hint = "the setting images.max_gib limits the size of images"
		}
		return f
	case errors.As(err, &mismatch):
		return fault(vm.CodeChecksumMismatch, nil, "%v", mismatch)
	case errors.As(err, &offset):
		return fault(vm.CodePrecondition, nil, "%v", offset)
	case errors.Is(err, image.ErrBusy):
		return fault(vm.CodeBusy, err, format, args...)
	}
	return fileFault(err, format, args...)
}

// fetchFault gives an error of a download its class: that of the network, unless
// the image or this host is the cause.
func fetchFault(ctx context.Context, err error) error {
	var refused *image.Refused
	switch {
	case errors.As(err, &refused):
		f := fault(vm.CodeFetchFailed, err, "download the image")
		if refused.Private {
			f.Hint = "the setting images.allow_private lists the private addresses that images may be downloaded from"
		}
		return f
	case isLocal(err), ctx.Err() != nil:
		return imageFault(err, "download the image")
	}
	return fault(vm.CodeFetchFailed, err, "download the image")
}

// isLocal reports whether an error of a download concerns the image or the storage
// instead of the network.
func isLocal(err error) bool {
	return errors.As(err, new(*readyError)) ||
		errors.As(err, new(*image.Rejected)) ||
		errors.As(err, new(*image.TooLarge)) ||
		errors.As(err, new(*image.Mismatch)) ||
		errors.As(err, new(*fs.PathError)) ||
		errors.Is(err, unix.ENOSPC) ||
		errors.Is(err, unix.EDQUOT)
}

// discard removes a file that did not become content.
func (c *contents) discard(temp string) error {
	if err := c.root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
