package image

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
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

// Options limits the images that an [Importer] accepts.
type Options struct {
	MaxBytes        int64 // of the transferred bytes, and of the stored file; 0 for 1 TiB
	MaxVirtualBytes int64 // of the disk in the image; 0 for 16 TiB

	// Seal, if set, sets mode and owner of a file that becomes content: its readers
	// must be able to read it, and no process to change it. The default is mode 0400.
	Seal func(f *os.File) error
}

// Sum holds the expected checksums of the transferred bytes, before they are
// expanded, in hex. An empty string accepts any content.
type Sum struct{ SHA256, SHA512 string }

// Want holds the requirements for an imported image and the callbacks of the import.
type Want struct {
	Sum
	Format Format // required format; empty for any
	Disk   string // the file of an archive that is the image; empty for the only disk

	// Progress, if set, is called often with the number of transferred bytes; total
	// is 0 if it is not known.
	Progress func(done, total int64)
	// Ready, if set, is called once when the content is complete, inspected and
	// durable, before it gets its name. If Ready fails, the import fails with its error.
	Ready func(Content) error
}

func (w Want) progress(total int64) func(done int64) {
	if w.Progress == nil {
		return nil
	}
	return func(done int64) { w.Progress(done, total) }
}

// checkDisk refuses the name of a disk for a file that is no archive.
func (w Want) checkDisk(archived bool) error {
	if w.Disk != "" && !archived {
		return unsupportedf("the file is no archive, so it has no disk %.100q: leave disk out", w.Disk)
	}
	return nil
}

// Content is an imported image.
type Content struct {
	SHA256 string // of the stored bytes, in lower-case hex: the name of the file
	Bytes  int64  // size of the file, holes included
	Info
}

// TooLarge is the error for an image beyond the limits of [Options].
type TooLarge struct {
	Virtual bool  // the disk in the image is too large, not the file
	Max     int64 // bytes
}

func (e *TooLarge) Error() string {
	if e.Virtual {
		return fmt.Sprintf("the disk in the image is larger than the %d bytes allowed", e.Max)
	}
	return fmt.Sprintf("the image is larger than the %d bytes allowed", e.Max)
}

// Mismatch is the error for transferred content with a wrong checksum.
type Mismatch struct {
	Algorithm string // "sha256" or "sha512"
	Want, Got string // in hex
}

func (e *Mismatch) Error() string {
	return fmt.Sprintf("the %s of the transferred content is %s, and should be %s", e.Algorithm, e.Got, e.Want)
}

// An Importer stores images in a directory, each once, in a file that is named by the
// SHA-256 of its content. A file with such a name is complete, durable, inspected, and
// never changes. Unfinished files have names that begin with a dot. An Importer is
// safe for concurrent use.
//
// A stream is expanded while it arrives, so there is never a second copy. An upload in
// pieces is stored as transferred until [Importer.Finish]: if it is not compressed, it
// becomes content by a rename; if it is, each part is freed after it was expanded.
type Importer struct {
	dir   *os.Root
	opts  Options
	turns turns

	mu      sync.Mutex         // guards uploads
	uploads map[string]*upload // by name; nil while a caller works on the upload
}

// NewImporter returns an importer for a directory that no other importer uses. It
// removes unfinished imports of a process that was killed, and keeps uploads that can
// be continued.
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
	i := &Importer{dir: dir, opts: o, turns: newTurns(), uploads: map[string]*upload{}}
	names, err := i.names()
	if err != nil {
		return nil, fmt.Errorf("read the directory of images: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix) {
			if err := dir.Remove(name); err != nil {
				return nil, fmt.Errorf("remove an unfinished import: %w", err)
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

// TempName returns a new file name in the directory, for a file that is then given to
// [Importer.Adopt]. If Adopt is never called, the next NewImporter removes the file.
func (i *Importer) TempName() string { return tempPrefix + rand.Text() + tempSuffix }

// Import stores the content of r, expanded if it is compressed with gzip, xz, zstd or bzip2, and
// taken out of a tar archive or an OVA.
// It fails with [*Rejected], [*TooLarge] or [*Mismatch], with the error of r, or with the
// error of the file system (errors.Is syscall.ENOSPC). If it fails, no file remains.
func (i *Importer) Import(ctx context.Context, r io.Reader, w Want) (Content, error) {
	return i.importFrom(ctx, r, 0, w)
}

// importFrom is Import with the number of bytes in r; total is 0 if it is not known.
func (i *Importer) importFrom(ctx context.Context, r io.Reader, total int64, w Want) (c Content, err error) {
	temp := i.TempName()
	f, err := i.dir.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Content{}, fmt.Errorf("create a file for the image: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			err = errors.Join(err, i.remove(temp))
		}
	}()
	content := sha256.New()
	if err := i.receive(ctx, r, total, w, f, content); err != nil {
		return Content{}, err
	}
	return i.store(f, temp, content, w)
}

// receive writes the content of r, expanded, to f and to the hash content, and checks
// the checksums of the transferred bytes.
func (i *Importer) receive(
	ctx context.Context, r io.Reader, total int64, w Want, f *os.File, content hash.Hash,
) error {
	in := &input{ctx: ctx, r: r, max: i.opts.MaxBytes, progress: w.progress(total)}
	first := bufio.NewReaderSize(in, bufferBytes)
	packed, err := detectCompression(first)
	if err != nil {
		return unwrapInput(err)
	}
	archived := false
	if !packed.used() {
		if archived, err = isTar(first); err != nil {
			return unwrapInput(err)
		}
	}
	sums := &checksums{want: w.Sum}
	dst := &copier{f: f, sum: content, max: i.opts.MaxBytes}
	if packed.used() || archived {
		dst.inputBytes = func() int64 { return in.n }
		in.turn = &turn{ctx: ctx, of: i.turns}
		dst.turn = in.turn
	} else {
		sums.same256 = content
	}
	// The decoder gets a buffer of its own, behind the tee: the checksums must include
	// every byte, also those that the decoder buffers and does not use.
	body, closeBody, err := packed.expand(bufio.NewReaderSize(sums.tee(first), bufferBytes))
	if err != nil {
		return unwrapInput(err)
	}
	defer closeBody()
	expanded := bufio.NewReaderSize(body, bufferBytes)
	if packed.used() {
		if archived, err = isTar(expanded); err != nil {
			return fmt.Errorf("import the image: %w", unwrapInput(err))
		}
	}
	if err := w.checkDisk(archived); err != nil {
		return err
	}
	if archived {
		err = i.unpack(expanded, packed.used(), w, dst)
	} else if _, err = dst.run(expanded); err != nil {
		err = fmt.Errorf("import the image: %w", unwrapInput(err))
	}
	if err != nil {
		return err
	}
	return sums.check()
}

// Adopt makes content of a complete file in the directory, such as one that qemu-img
// wrote, with a name from TempName. If it fails, it removes the file. It checks no
// checksum.
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
	// After the change of owner, the account that wrote the file cannot open it again.
	if err := f.Chown(os.Geteuid(), os.Getegid()); err != nil {
		return Content{}, err
	}
	if err := awaitNoWriters(ctx, f); err != nil {
		return Content{}, err
	}
	content := sha256.New()
	if err := hashFile(ctx, f, 0, content); err != nil {
		return Content{}, err
	}
	return i.store(f, temp, content, w)
}

// store inspects a complete file, makes it durable and names it by sum, the hash of
// all its bytes. It pads a raw image and may change the header of a VHD, so after an error sum
// may be that of other bytes. It does not change bytes of an upload: a repetition checks their
// checksum.
func (i *Importer) store(f *os.File, temp string, sum hash.Hash, w Want) (Content, error) {
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
	bytes, patches := st.Size(), []patch(nil)
	switch {
	case info.Format == Raw && bytes%sectorBytes != 0:
		bytes, err = pad(f, bytes, sum)
	case info.Format == VPC:
		if patches, err = exactVPC(f, bytes); len(patches) > 0 && err == nil {
			err = rehash(f, bytes, patches, sum)
		}
	}
	if err != nil {
		return Content{}, err
	}
	c := Content{SHA256: hex.EncodeToString(sum.Sum(nil)), Bytes: bytes, Info: info}
	if err := f.Sync(); err != nil {
		return Content{}, fmt.Errorf("sync the image: %w", err)
	}
	if w.Ready != nil {
		if err := w.Ready(c); err != nil {
			return Content{}, err
		}
	}
	if err := i.publish(f, temp, c, patches); err != nil {
		return Content{}, err
	}
	return c, nil
}

// pad appends zeros to a file of size bytes, and to the hash of its content, up to a whole
// number of sectors. It returns the new size.
func pad(f *os.File, size int64, sum hash.Hash) (int64, error) {
	whole := int64(alignUp(uint64(size), sectorBytes))
	if err := f.Truncate(whole); err != nil {
		return 0, fmt.Errorf("pad the image: %w", err)
	}
	_, err := sum.Write(make([]byte, whole-size))
	return whole, err
}

// publish patches and seals a file and renames it to its final name. If the content exists
// already, publish keeps the existing file, so that all its readers share its pages in
// the page cache, and removes temp.
func (i *Importer) publish(f *os.File, temp string, c Content, patches []patch) (err error) {
	if old, err := i.dir.Lstat(c.SHA256); err == nil && old.Mode().IsRegular() && old.Size() == c.Bytes {
		f, err := i.dir.Open(c.SHA256)
		if err != nil {
			return err
		}
		defer f.Close()
		// Seal again: the account that must read it may have changed.
		return errors.Join(i.opts.Seal(f), i.remove(temp))
	}
	if len(patches) > 0 {
		patched := i.TempName()
		defer func() {
			if err != nil {
				err = errors.Join(err, i.remove(patched))
			}
		}()
		if err := i.patch(f, temp, patched, patches); err != nil {
			return fmt.Errorf("write the header of the image: %w", err)
		}
		temp = patched
	}
	if err := errors.Join(i.opts.Seal(f), f.Sync()); err != nil {
		return fmt.Errorf("seal the image: %w", err)
	}
	if err := i.dir.Rename(temp, c.SHA256); err != nil {
		return fmt.Errorf("rename the image: %w", err)
	}
	if err := i.syncDir(); err != nil {
		return errors.Join(err, i.remove(c.SHA256))
	}
	return nil
}

// patch renames a file and then changes it, so that after a kill it is not taken for an upload.
func (i *Importer) patch(f *os.File, from, to string, patches []patch) error {
	if err := errors.Join(i.dir.Rename(from, to), i.syncDir()); err != nil {
		return err
	}
	for _, p := range patches {
		if _, err := f.WriteAt(p.bytes, p.at); err != nil {
			return err
		}
	}
	return nil
}

// Open opens content for reading. It fails with [fs.ErrNotExist] if the content does
// not exist.
func (i *Importer) Open(sha256 string) (*os.File, error) {
	if !isContentName(sha256) {
		return nil, fs.ErrNotExist
	}
	return i.dir.Open(sha256)
}

// Delete removes content. It is idempotent. Processes that have the content open can
// still read it.
func (i *Importer) Delete(sha256 string) error {
	if !isContentName(sha256) {
		return nil
	}
	return errors.Join(i.remove(sha256), i.syncDir())
}

// Has reports whether content exists.
func (i *Importer) Has(sha256 string) (bool, error) {
	if !isContentName(sha256) {
		return false, nil
	}
	st, err := i.dir.Lstat(sha256)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Mode().IsRegular(), err
}

// Contents returns the size in bytes of all content, by SHA-256. It makes one system
// call per content.
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
		if !isContentName(name) {
			continue
		}
		var st unix.Stat_t
		switch err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); {
		case errors.Is(err, fs.ErrNotExist): // deleted since Readdirnames
		case err != nil:
			return nil, fmt.Errorf("stat content %s: %w", name, err)
		case st.Mode&unix.S_IFMT == unix.S_IFREG:
			all[name] = st.Size
		}
	}
	return all, nil
}

func isContentName(name string) bool {
	_, err := hex.DecodeString(name)
	return err == nil && len(name) == 2*sha256.Size && name == strings.ToLower(name)
}

// remove removes a file. It is idempotent.
func (i *Importer) remove(name string) error {
	if err := i.dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes the names in the directory durable.
func (i *Importer) syncDir() error {
	d, err := i.dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
