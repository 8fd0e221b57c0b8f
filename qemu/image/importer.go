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
}

// Sum is what the transferred bytes must have, before they are expanded, in hex;
// empty for any.
type Sum struct{ SHA256, SHA512 string }

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

// Import stores what r has, expanded if it is compressed by gzip, xz or zstd. It
// calls progress, which may be nil, with how many bytes have been transferred, often.
// It fails with [*Unsafe], [*TooLarge] or [*Mismatch], with r's error, or with that of
// the file system (errors.Is syscall.ENOSPC), and then nothing is left.
func (i *Importer) Import(ctx context.Context, r io.Reader, sum Sum, progress func(done int64)) (c Content, err error) {
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
	in := &arrival{ctx: ctx, r: r, max: i.opts.MaxBytes, progress: progress}
	first := bufio.NewReaderSize(in, bufferBytes)
	packed, err := expansionOf(first)
	if err != nil {
		return Content{}, plain(err)
	}
	content := sha256.New()
	sums := newSums(sum)
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
	return i.keep(f, temp, content)
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
// qemu-img made, whose name is one of TempName's. On an error the file is gone.
func (i *Importer) Adopt(ctx context.Context, temp string) (c Content, err error) {
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
	if err := f.Chown(os.Geteuid(), os.Getegid()); err != nil { // its maker cannot change it any more
		return Content{}, err
	}
	content := sha256.New()
	if err := hashFile(ctx, f, 0, content); err != nil {
		return Content{}, err
	}
	return i.keep(f, temp, content)
}

// keep makes content of a file whose bytes have gone through sum.
func (i *Importer) keep(f *os.File, temp string, sum hash.Hash) (Content, error) {
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
	c := Content{SHA256: hex.EncodeToString(sum.Sum(nil)), Bytes: st.Size(), Info: info}
	if old, err := i.dir.Lstat(c.SHA256); err == nil && old.Mode().IsRegular() && old.Size() == c.Bytes {
		return c, i.remove(temp)
	}
	if err := f.Sync(); err != nil {
		return Content{}, fmt.Errorf("write the image: %w", err)
	}
	if err := f.Chmod(contentMode); err != nil {
		return Content{}, err
	}
	if err := i.dir.Rename(temp, c.SHA256); err != nil {
		return Content{}, fmt.Errorf("name the image: %w", err)
	}
	if err := i.syncDir(); err != nil {
		return Content{}, errors.Join(err, i.remove(c.SHA256))
	}
	return c, nil
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

// Contents returns the content there is and its size in bytes, by SHA-256.
func (i *Importer) Contents() (map[string]int64, error) {
	names, err := i.names()
	if err != nil {
		return nil, err
	}
	all := map[string]int64{}
	for _, name := range names {
		if !isContent(name) {
			continue
		}
		st, err := i.dir.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
		case err != nil:
			return nil, err
		case st.Mode().IsRegular():
			all[name] = st.Size()
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
