package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	uploadPrefix = ".upload-"
	partSuffix   = ".part"   // what has come
	markSuffix   = ".offset" // how much of it is durable, in decimal
	markBytes    = 20
	syncEvery    = 64 << 20
	punchEvery   = 8 << 20
)

// ErrBusy is that somebody else is at the same upload.
var ErrBusy = errors.New("somebody else is at this upload")

// OffsetError is a piece of an upload that does not begin where the last ended.
type OffsetError struct{ Want int64 }

func (e *OffsetError) Error() string { return fmt.Sprintf("the upload goes on at offset %d", e.Want) }

// upload is what is known of an upload besides its files.
type upload struct {
	sum    hash.Hash // of the first summed bytes of it; nil for none
	summed int64
}

var uploadName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$`)

// Append adds what r has to an upload at an offset, which must be Uploaded's
// ([*OffsetError]), and returns the new one, also with an error: what has come
// up to there is durable. It does not return before r ends or fails; ctx is looked
// at between two reads.
func (i *Importer) Append(ctx context.Context, name string, offset int64, r io.Reader) (int64, error) {
	u, err := i.take(name)
	if err != nil {
		return 0, err
	}
	defer i.put(name, u)
	durable, err := i.durable(name)
	if err != nil {
		return 0, err
	}
	if offset != durable {
		return durable, &OffsetError{durable}
	}
	f, err := i.dir.OpenFile(uploadPrefix+name+partSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return durable, fmt.Errorf("open the upload: %w", err)
	}
	defer f.Close()
	mark, err := i.dir.OpenFile(uploadPrefix+name+markSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return durable, fmt.Errorf("open the upload: %w", err)
	}
	defer mark.Close()
	err = errors.Join(f.Truncate(offset), i.syncDir())
	if offset == 0 { // its number may be of an upload before, and later the disk may be full
		_, failure := mark.WriteAt(fmt.Appendf(nil, "%0*d", markBytes, 0), 0)
		err = errors.Join(err, failure)
	}
	if err != nil {
		return durable, fmt.Errorf("open the upload: %w", err)
	}
	return i.append(ctx, u, f, mark, offset, r)
}

func (i *Importer) append(ctx context.Context, u *upload, f, mark *os.File, durable int64, r io.Reader) (int64, error) {
	record := func(at int64) error {
		if err := errors.Join(f.Truncate(at), f.Sync()); err != nil {
			return err
		}
		if _, err := mark.WriteAt(fmt.Appendf(nil, "%0*d", markBytes, at), 0); err != nil {
			return err
		}
		if err := mark.Sync(); err != nil {
			return err
		}
		durable = at
		return nil
	}
	c := &copier{f: f, at: durable, max: i.opts.MaxBytes, every: syncEvery, sync: record}
	if durable == 0 {
		u.sum, u.summed = sha256.New(), 0
	}
	if u.summed == durable {
		c.sum = u.sum
	}
	end, err := c.run(&arrival{ctx: ctx, r: r, max: i.opts.MaxBytes})
	if c.sum != nil {
		u.summed = end
	}
	if end > durable {
		err = errors.Join(err, record(end))
	}
	if u.summed > durable {
		u.sum, u.summed = nil, 0 // of bytes that will come again
	}
	if err != nil {
		return durable, fmt.Errorf("upload the image: %w", plain(err))
	}
	return durable, nil
}

// Uploaded returns how many bytes of an upload are durable, 0 if there is none.
func (i *Importer) Uploaded(name string) (int64, error) {
	if !uploadName.MatchString(name) {
		return 0, fmt.Errorf("an upload cannot have the name %.100q", name)
	}
	return i.durable(name)
}

func (i *Importer) durable(name string) (int64, error) {
	part, err := i.dir.Lstat(uploadPrefix + name + partSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	mark, err := i.dir.ReadFile(uploadPrefix + name + markSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(mark)), 10, 64)
	if err != nil || n < 0 || n > part.Size() {
		return 0, nil // killed before anything was durable
	}
	return n, nil
}

// Finish makes content of an upload. What is said of [Importer.Import] holds for
// it, but that an upload stays, and can go on, unless it was being expanded: then its
// first bytes are no longer there.
func (i *Importer) Finish(ctx context.Context, name string, w Want) (Content, error) {
	u, err := i.take(name)
	if err != nil {
		return Content{}, err
	}
	defer i.put(name, u)
	size, err := i.durable(name)
	if err != nil {
		return Content{}, err
	}
	part := uploadPrefix + name + partSuffix
	f, err := i.dir.OpenFile(part, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Content{}, fmt.Errorf("nothing was uploaded: %w", err)
	}
	if err != nil {
		return Content{}, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return Content{}, err
	}
	packed, err := expansionOf(bufio.NewReader(io.NewSectionReader(f, 0, size)))
	if err != nil {
		return Content{}, err
	}
	if err := u.verify(ctx, f, size, w.Sum, packed.open == nil); err != nil {
		return Content{}, err
	}
	var c Content
	if packed.open == nil {
		c, err = i.keep(f, part, u.sum, w)
	} else {
		c, err = i.expandUpload(ctx, f, part, size, w)
	}
	if err != nil && packed.open == nil {
		return Content{}, err
	}
	u.sum, u.summed = nil, 0
	return c, errors.Join(err, i.remove(uploadPrefix+name+markSuffix), i.syncDir())
}

// verify checks the sums of an upload, and hashes what Append has not: all of it
// when vmand was started anew in between. With own set it needs the SHA-256 in any case.
func (u *upload) verify(ctx context.Context, f *os.File, size int64, want Sum, own bool) error {
	if (own || want.SHA256 != "") && (u.sum == nil || u.summed != size) {
		u.sum, u.summed = sha256.New(), 0
		if err := hashFile(ctx, f, 0, u.sum); err != nil {
			u.sum = nil
			return err
		}
		u.summed = size
	}
	if err := compare("sha256", want.SHA256, u.sum); err != nil || want.SHA512 == "" {
		return err
	}
	h := sha512.New()
	if err := hashFile(ctx, f, 0, h); err != nil {
		return err
	}
	return compare("sha512", want.SHA512, h)
}

// expandUpload imports a compressed upload from its file, which it gives back
// part by part. So that nobody takes the rest for an upload, it is renamed first.
func (i *Importer) expandUpload(ctx context.Context, f *os.File, part string, size int64, w Want) (Content, error) {
	temp := i.TempName()
	if err := errors.Join(i.dir.Rename(part, temp), i.syncDir()); err != nil {
		return Content{}, err
	}
	w.Sum = Sum{} // which verify has checked
	c, err := i.importFrom(ctx, &punching{f: f}, size, w)
	return c, errors.Join(err, i.remove(temp))
}

// punching reads a file once and frees what was read. Where the file system
// cannot, the file is there until all is expanded.
type punching struct {
	f         *os.File
	at, freed int64
}

// Read implements [io.Reader].
func (p *punching) Read(b []byte) (int, error) {
	n, err := p.f.ReadAt(b, p.at)
	p.at += int64(n)
	if p.at-p.freed >= punchEvery {
		_ = unix.Fallocate(int(p.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, p.freed, p.at-p.freed)
		p.freed = p.at
	}
	return n, err
}

// Drop forgets an upload. It succeeds if there is none.
func (i *Importer) Drop(name string) error {
	u, err := i.take(name)
	if err != nil {
		return err
	}
	defer i.put(name, u)
	u.sum, u.summed = nil, 0
	return errors.Join(i.remove(uploadPrefix+name+partSuffix), i.remove(uploadPrefix+name+markSuffix), i.syncDir())
}

// take gives an upload to its caller alone until put.
func (i *Importer) take(name string) (*upload, error) {
	if !uploadName.MatchString(name) {
		return nil, fmt.Errorf("an upload cannot have the name %.100q", name)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	u, known := i.uploads[name]
	if known && u == nil {
		return nil, ErrBusy
	}
	if u == nil {
		u = &upload{}
	}
	i.uploads[name] = nil
	return u, nil
}

func (i *Importer) put(name string, u *upload) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if u.sum == nil {
		delete(i.uploads, name)
		return
	}
	i.uploads[name] = u
}
