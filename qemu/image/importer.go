package image

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	tempPrefix   = ".import-"
	tempSuffix   = ".tmp"
	contentMode  = 0o400 // content never changes
	bufferBytes  = 64 << 10
	defaultBytes = 1 << 40
)

// Options is what may be imported.
type Options struct {
	MaxBytes        int64 // of what is transferred, and of the file it becomes; 0 for 1 TiB
	MaxVirtualBytes int64 // of the disk in it; 0 for 16 TiB

	// Seal, if set, makes a file content that nobody can change and everybody can
	// read who is to: it sets mode and owner. The default is mode 0400.
	Seal func(f *os.File) error
}

// Sum is what the transferred bytes must have, before they are expanded, in hex;
// empty for any.
type Sum struct{ SHA256, SHA512 string }

// Want is what is asked of an image that is to be imported, and who is told of it.
type Want struct {
	Sum
	Format Format // what it must be; empty for any

	// Progress, if set, is called often with how many bytes have been transferred;
	// total is 0 when unknown.
	Progress func(done, total int64)
	// Ready, if set, is called once when content is complete, was inspected and is
	// durable, but for its name. If it fails, so does the import, and with its error.
	Ready func(Content) error
}

func (w Want) progress(total int64) func(done int64) {
	if w.Progress == nil {
		return nil
	}
	return func(done int64) { w.Progress(done, total) }
}

// Content is an image that was imported.
type Content struct {
	SHA256 string // of the stored bytes, in lower-case hex: the name of its file
	Bytes  int64  // stored, holes included
	Info
}

// TooLarge is an image beyond the limits of [Options].
type TooLarge struct {
	Virtual bool  // the disk in it, not the file
	Max     int64 // bytes
}

func (e *TooLarge) Error() string {
	if e.Virtual {
		return fmt.Sprintf("the disk in the image is larger than the %d bytes allowed", e.Max)
	}
	return fmt.Sprintf("the image is larger than the %d bytes allowed", e.Max)
}

// Mismatch is transferred content that has not the sum it should have.
type Mismatch struct {
	Algorithm string // "sha256" or "sha512"
	Want, Got string // in hex
}

func (e *Mismatch) Error() string {
	return fmt.Sprintf("the %s of what was transferred is %s, and should be %s", e.Algorithm, e.Got, e.Want)
}

// An Importer stores images in a directory, each once, in a file that is named by
// the SHA-256 of its content. Whatever is there is complete, durable, was inspected
// and does not change. Files that are not finished have names that begin with a dot.
//
// One stream is expanded as it arrives, so that there is never a second copy of it.
// An upload in pieces is kept as it was transferred until [Importer.Finish]: one
// that is not compressed then becomes content by its name alone, and of a compressed one
// every part is given back to the file system when it has been expanded.
type Importer struct {
	dir  *os.Root
	opts Options

	mu      sync.Mutex
	uploads map[string]*upload // by name
}

// NewImporter returns an importer for a directory that is its alone, and removes
// what one that was killed has left there. Uploads that can go on are kept.
func NewImporter(dir *os.Root, o Options) (*Importer, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultBytes
	}
	if o.MaxVirtualBytes == 0 {
		o.MaxVirtualBytes = maxVirtual
	}
	if o.Seal == nil {
		o.Seal = func(f *os.File) error { return f.Chmod(contentMode) }
	}
	i := &Importer{dir: dir, opts: o, uploads: map[string]*upload{}}
	names, err := i.names()
	if err != nil {
		return nil, fmt.Errorf("read the directory of images: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix) {
			if err := dir.Remove(name); err != nil {
				return nil, fmt.Errorf("remove what is left of an import: %w", err)
			}
		}
	}
	return i, nil
}

func (i *Importer) names() ([]string, error) {
	d, err := i.dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// TempName returns a name in the directory that nobody has: for a file that is to
// be given to [Importer.Adopt]. If that does not come about, the next NewImporter
// removes the file.
func (i *Importer) TempName() string { return tempPrefix + rand.Text() + tempSuffix }

// Import stores what r has, expanded if it is compressed by gzip, xz or zstd.
// It fails with [*Unsafe], [*TooLarge] or [*Mismatch], with r's error, or with that of
// the file system (errors.Is syscall.ENOSPC), and then nothing is left.
func (i *Importer) Import(ctx context.Context, r io.Reader, w Want) (Content, error) {
	return i.importFrom(ctx, r, 0, w)
}

// importFrom is Import of so many bytes, 0 for an unknown number.
func (i *Importer) importFrom(ctx context.Context, r io.Reader, total int64, w Want) (c Content, err error) {
	temp := i.TempName()
	f, err := i.dir.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Content{}, fmt.Errorf("make a file for the image: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			err = errors.Join(err, i.remove(temp))
		}
	}()
	in := &arrival{ctx: ctx, r: r, max: i.opts.MaxBytes, progress: w.progress(total)}
	first := bufio.NewReaderSize(in, bufferBytes)
	packed, err := expansionOf(first)
	if err != nil {
		return Content{}, plain(err)
	}
	content := sha256.New()
	sums := newSums(w.Sum)
	if packed.open == nil {
		sums.same256 = content
	}
	// The decoder gets a buffer of its own, behind the sums, which have to have all.
	body, end, err := packed.expand(bufio.NewReaderSize(sums.tee(first), bufferBytes))
	if err != nil {
		return Content{}, plain(err)
	}
	defer end()
	dst := &copier{f: f, sum: content, max: i.opts.MaxBytes}
	if packed.open != nil {
		dst.ratio = func() int64 { return in.n }
	}
	if _, err := dst.run(body); err != nil {
		return Content{}, fmt.Errorf("import the image: %w", plain(err))
	}
	if err := sums.check(); err != nil {
		return Content{}, err
	}
	return i.keep(f, temp, content, w)
}

// plain takes the wrapping off an error of what brings an image.
func plain(err error) error {
	var a *arrivalError
	if errors.As(err, &a) {
		return a.err
	}
	return err
}

// Adopt makes content of a finished file in the directory, such as one that
// qemu-img made, whose name is one of TempName's. On an error the file is gone. No
// sum is checked.
func (i *Importer) Adopt(ctx context.Context, temp string, w Want) (c Content, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, i.remove(temp))
		}
	}()
	f, err := i.dir.Open(temp)
	if err != nil {
		return Content{}, err
	}
	defer f.Close()
	if err := f.Chown(os.Geteuid(), os.Getegid()); err != nil { // its maker cannot open it any more
		return Content{}, err
	}
	if err := awaitReaders(ctx, f); err != nil {
		return Content{}, err
	}
	content := sha256.New()
	if err := hashFile(ctx, f, 0, content); err != nil {
		return Content{}, err
	}
	return i.keep(f, temp, content, w)
}

// keep makes content of a file whose bytes have gone through sum.
func (i *Importer) keep(f *os.File, temp string, sum hash.Hash, w Want) (Content, error) {
	st, err := f.Stat()
	if err != nil {
		return Content{}, err
	}
	info, err := Inspect(f, st.Size())
	if err != nil {
		return Content{}, err
	}
	switch {
	case st.Size() > i.opts.MaxBytes:
		return Content{}, &TooLarge{Max: i.opts.MaxBytes}
	case info.VirtualBytes > i.opts.MaxVirtualBytes:
		return Content{}, &TooLarge{Virtual: true, Max: i.opts.MaxVirtualBytes}
	}
	if w.Format != "" {
		if err := info.Expect(w.Format); err != nil {
			return Content{}, err
		}
	}
	c := Content{SHA256: hex.EncodeToString(sum.Sum(nil)), Bytes: st.Size(), Info: info}
	if err := f.Sync(); err != nil {
		return Content{}, fmt.Errorf("write the image: %w", err)
	}
	if w.Ready != nil {
		if err := w.Ready(c); err != nil {
			return Content{}, err
		}
	}
	if err := i.name(f, temp, c); err != nil {
		return Content{}, err
	}
	return c, nil
}

// name gives a file that is content its name, for good. Content that is there
// already stays: who has it open shares its pages with who opens it next.
func (i *Importer) name(f *os.File, temp string, c Content) error {
	if old, err := i.dir.Lstat(c.SHA256); err == nil && old.Mode().IsRegular() && old.Size() == c.Bytes {
		f, err := i.dir.Open(c.SHA256)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(i.opts.Seal(f), i.remove(temp)) // those who are to read it may be others by now
	}
	if err := errors.Join(i.opts.Seal(f), f.Sync()); err != nil {
		return fmt.Errorf("seal the image: %w", err)
	}
	if err := i.dir.Rename(temp, c.SHA256); err != nil {
		return fmt.Errorf("name the image: %w", err)
	}
	if err := i.syncDir(); err != nil {
		return errors.Join(err, i.remove(c.SHA256))
	}
	return nil
}

// Open opens content to read; the error of content that is not there is
// [fs.ErrNotExist].
func (i *Importer) Open(sha256 string) (*os.File, error) {
	if !isContent(sha256) {
		return nil, fs.ErrNotExist
	}
	return i.dir.Open(sha256)
}

// Delete removes content and succeeds if there is none. Who has it open keeps it.
func (i *Importer) Delete(sha256 string) error {
	if !isContent(sha256) {
		return nil
	}
	return errors.Join(i.remove(sha256), i.syncDir())
}

// Has reports whether there is content.
func (i *Importer) Has(sha256 string) (bool, error) {
	if !isContent(sha256) {
		return false, nil
	}
	st, err := i.dir.Lstat(sha256)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Mode().IsRegular(), err
}

// Contents returns the content there is and its size in bytes, by SHA-256. It asks
// one question of the kernel for each.
func (i *Importer) Contents() (map[string]int64, error) {
	d, err := i.dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := make(map[string]int64, len(names))
	for _, name := range names {
		if !isContent(name) {
			continue
		}
		var st unix.Stat_t
		switch err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
		case err != nil:
			return nil, fmt.Errorf("look at content %s: %w", name, err)
		case st.Mode&unix.S_IFMT == unix.S_IFREG:
			all[name] = st.Size
		}
	}
	return all, nil
}

func isContent(name string) bool {
	_, err := hex.DecodeString(name)
	return err == nil && len(name) == 2*sha256.Size && name == strings.ToLower(name)
}

func (i *Importer) remove(name string) error {
	if err := i.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes the names in the directory last.
func (i *Importer) syncDir() error {
	d, err := i.dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// sums hashes what is transferred, where something was said of it.
type sums struct {
	want    Sum
	h256    hash.Hash // nil when not needed
	h512    hash.Hash
	same256 hash.Hash // has had the same bytes, so that h256 is not needed
}

func newSums(want Sum) *sums { return &sums{want: want} }

// tee returns a reader of r's bytes that hashes them.
func (s *sums) tee(r io.Reader) io.Reader {
	if s.want.SHA256 != "" && s.same256 == nil {
		s.h256 = sha256.New()
		r = io.TeeReader(r, s.h256)
	}
	if s.want.SHA512 != "" {
		s.h512 = sha512.New()
		r = io.TeeReader(r, s.h512)
	}
	return r
}

func (s *sums) check() error {
	if s.same256 != nil {
		s.h256 = s.same256
	}
	if err := compare("sha256", s.want.SHA256, s.h256); err != nil {
		return err
	}
	return compare("sha512", s.want.SHA512, s.h512)
}

func compare(algorithm, want string, h hash.Hash) error {
	if want == "" {
		return nil
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, want) {
		return &Mismatch{Algorithm: algorithm, Want: want, Got: got}
	}
	return nil
}

// hashFile hashes a file from an offset to its end.
func hashFile(ctx context.Context, f *os.File, from int64, into ...io.Writer) error {
	in := &arrival{ctx: ctx, r: io.NewSectionReader(f, from, maxFile), max: maxFile}
	_, err := io.CopyBuffer(io.MultiWriter(into...), in, make([]byte, copyBufferBytes))
	return plain(err)
}
