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
	partSuffix   = ".part"   // the received bytes
	offsetSuffix = ".offset" // how many of them are durable, in decimal
	offsetDigits = 20
	syncEvery    = 64 << 20
	punchEvery   = 8 << 20
)

// ErrBusy is the error for an upload that another request is working on.
var ErrBusy = errors.New("another request is working on this upload")

// OffsetError is the error for a piece of an upload that does not begin at the end
// of the previous piece.
type OffsetError struct{ Want int64 }

func (e *OffsetError) Error() string {
	return fmt.Sprintf("the next piece of the upload must begin at offset %d", e.Want)
}

// upload is the state of an upload that is not in its files.
type upload struct {
	sum    hash.Hash // of the first summed bytes; nil for none
	summed int64
}

// forget drops the hash.
func (u *upload) forget() { u.sum, u.summed = nil, 0 }

var uploadName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$`)

func partName(upload string) string   { return uploadPrefix + upload + partSuffix }
func offsetName(upload string) string { return uploadPrefix + upload + offsetSuffix }

// Append appends the content of r to an upload and returns the new offset, up to which
// the upload is durable; it does so also with an error. offset must equal the value of
// Uploaded, otherwise Append fails with [*OffsetError]. Append blocks until r ends or
// fails, and checks ctx between two reads.
func (i *Importer) Append(ctx context.Context, name string, offset int64, r io.Reader) (int64, error) {
	u, err := i.acquire(name)
	if err != nil {
		return 0, err
	}
	defer i.release(name, u)
	durable, err := i.durable(name)
	if err != nil {
		return 0, err
	}
	if offset != durable {
		return durable, &OffsetError{durable}
	}
	p, err := i.openPart(name, offset)
	if err != nil {
		return durable, fmt.Errorf("open the upload: %w", err)
	}
	defer p.close()
	return i.append(ctx, u, p, r)
}

// part is the pair of files of an upload.
type part struct {
	content *os.File
	offset  *os.File
	durable int64
}

// openPart opens the files of an upload, and creates them if they do not exist. It
// cuts the content at durable.
func (i *Importer) openPart(name string, durable int64) (*part, error) {
	content, err := i.dir.OpenFile(partName(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	offset, err := i.dir.OpenFile(offsetName(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		content.Close()
		return nil, err
	}
	p := &part{content: content, offset: offset, durable: durable}
	err = errors.Join(content.Truncate(durable), i.syncDir())
	if durable == 0 {
		// The number may be that of an earlier upload. Overwrite it now: later the disk
		// may be full.
		err = errors.Join(err, p.writeOffset(0))
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *part) close() {
	p.content.Close()
	p.offset.Close()
}

func (p *part) writeOffset(at int64) error {
	_, err := p.offset.WriteAt(fmt.Appendf(nil, "%0*d", offsetDigits, at), 0)
	return err
}

// record makes the content up to at durable, and then the offset.
func (p *part) record(at int64) error {
	if err := errors.Join(p.content.Truncate(at), p.content.Sync()); err != nil {
		return err
	}
	if err := p.writeOffset(at); err != nil {
		return err
	}
	if err := p.offset.Sync(); err != nil {
		return err
	}
	p.durable = at
	return nil
}

// append copies r to the end of an upload.
func (i *Importer) append(ctx context.Context, u *upload, p *part, r io.Reader) (int64, error) {
	c := &copier{
		f:         p.content,
		at:        p.durable,
		max:       i.opts.MaxBytes,
		syncEvery: syncEvery,
		sync:      p.record,
	}
	if p.durable == 0 {
		u.sum, u.summed = sha256.New(), 0
	}
	if u.summed == p.durable {
		c.sum = u.sum
	}
	end, err := c.run(&input{ctx: ctx, r: r, max: i.opts.MaxBytes})
	if c.sum != nil {
		u.summed = end
	}
	if end > p.durable {
		err = errors.Join(err, p.record(end))
	}
	if u.summed > p.durable {
		u.forget() // the hash has bytes that the client will send again
	}
	if err != nil {
		return p.durable, fmt.Errorf("upload the image: %w", unwrapInput(err))
	}
	return p.durable, nil
}

// Uploaded returns how many bytes of an upload are durable, 0 if it does not exist.
func (i *Importer) Uploaded(name string) (int64, error) {
	if err := checkUploadName(name); err != nil {
		return 0, err
	}
	return i.durable(name)
}

func checkUploadName(name string) error {
	if !uploadName.MatchString(name) {
		return fmt.Errorf("an upload cannot have the name %.100q", name)
	}
	return nil
}

func (i *Importer) durable(name string) (int64, error) {
	content, err := i.dir.Lstat(partName(name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	offset, err := i.dir.ReadFile(offsetName(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(offset)), 10, 64)
	if err != nil || n < 0 || n > content.Size() {
		return 0, nil // vmand was killed before anything was durable
	}
	return n, nil
}

// Finish makes content of an upload. It fails as [Importer.Import] does, but the upload
// then remains and can be continued. A compressed upload or an archive that failed while it
// was expanded does not remain: its first bytes were freed. Neither does a VHD that failed after
// its header was changed.
func (i *Importer) Finish(ctx context.Context, name string, w Want) (Content, error) {
	u, err := i.acquire(name)
	if err != nil {
		return Content{}, err
	}
	defer i.release(name, u)
	size, err := i.durable(name)
	if err != nil {
		return Content{}, err
	}
	f, err := i.dir.OpenFile(partName(name), os.O_RDWR, 0)
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
	packed, err := isPacked(io.NewSectionReader(f, 0, size))
	if err != nil {
		return Content{}, err
	}
	if !packed { // of a compressed file it is not known yet
		if err := w.checkDisk(false); err != nil {
			return Content{}, err
		}
	}
	needSHA256 := !packed || w.Sum.SHA256 != ""
	if err := u.verify(ctx, f, size, w.Sum, needSHA256); err != nil {
		return Content{}, err
	}
	var c Content
	if packed {
		c, err = i.expandUpload(ctx, f, partName(name), size, w)
	} else {
		c, err = i.store(f, partName(name), u.sum, w)
		if err != nil {
			u.forget()
			return Content{}, err
		}
	}
	u.forget()
	return c, errors.Join(err, i.remove(offsetName(name)), i.syncDir())
}

// isPacked reports whether a stream is compressed or an archive.
func isPacked(r io.Reader) (bool, error) {
	in := bufio.NewReader(r)
	c, err := detectCompression(in)
	if err != nil || c.used() {
		return c.used(), err
	}
	return isTar(in)
}

// verify checks the checksums of an upload. If needSHA256 is set, u.sum is the hash of
// all bytes afterwards; verify reads the file if Append has not hashed all of it, as
// after a restart of vmand.
func (u *upload) verify(ctx context.Context, f *os.File, size int64, want Sum, needSHA256 bool) error {
	if needSHA256 && (u.sum == nil || u.summed != size) {
		u.sum, u.summed = sha256.New(), 0
		if err := hashFile(ctx, f, 0, u.sum); err != nil {
			u.sum = nil
			return err
		}
		u.summed = size
	}
	if err := compare("sha256", want.SHA256, u.sum); err != nil {
		return err
	}
	if want.SHA512 == "" {
		return nil
	}
	h := sha512.New()
	if err := hashFile(ctx, f, 0, h); err != nil {
		return err
	}
	return compare("sha512", want.SHA512, h)
}

// expandUpload imports a compressed upload or an archive from its file and frees the file part by
// part. It renames the file first, so that after a kill the rest of it is not taken
// for an upload.
func (i *Importer) expandUpload(
	ctx context.Context, f *os.File, part string, size int64, w Want,
) (Content, error) {
	temp := i.TempName()
	if err := errors.Join(i.dir.Rename(part, temp), i.syncDir()); err != nil {
		return Content{}, err
	}
	w.Sum = Sum{} // verify has checked it
	c, err := i.importFrom(ctx, &punchReader{f: f}, size, w)
	return c, errors.Join(err, i.remove(temp))
}

// punchReader reads a file once and frees the parts it has read. Freeing is best
// effort: without support of the file system, the file keeps its size until it is
// removed.
type punchReader struct {
	f         *os.File
	at, freed int64
}

// Read implements [io.Reader].
func (p *punchReader) Read(b []byte) (int, error) {
	n, err := p.f.ReadAt(b, p.at)
	p.at += int64(n)
	if p.at-p.freed >= punchEvery {
		const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		_ = unix.Fallocate(int(p.f.Fd()), mode, p.freed, p.at-p.freed)
		p.freed = p.at
	}
	return n, err
}

// Drop removes an upload. It is idempotent.
func (i *Importer) Drop(name string) error {
	u, err := i.acquire(name)
	if err != nil {
		return err
	}
	defer i.release(name, u)
	u.forget()
	return errors.Join(i.remove(partName(name)), i.remove(offsetName(name)), i.syncDir())
}

// acquire returns the state of an upload, which the caller has to itself until it
// calls release. It returns ErrBusy if another caller holds it.
func (i *Importer) acquire(name string) (*upload, error) {
	if err := checkUploadName(name); err != nil {
		return nil, err
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

func (i *Importer) release(name string, u *upload) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if u.sum == nil {
		delete(i.uploads, name)
		return
	}
	i.uploads[name] = u
}
