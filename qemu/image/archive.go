package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha1" //nolint:gosec // manifests of OVF 1 have it
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
)

const (
	tarName    = "a tar archive"
	tarMagic   = "ustar"
	tarMagicAt = 257

	maxMembers    = 1024 // of an archive
	maxMemberName = 1024 // bytes
)

// isTar reports whether a stream is a tar archive, by its first sector, which it leaves in the
// buffer. A stream that is something else too is not: the inspection refuses it.
func isTar(in *bufio.Reader) (bool, error) {
	head, err := in.Peek(sectorBytes)
	if errors.Is(err, io.EOF) && !isInputError(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	found := signaturesIn(head)
	return len(found) == 1 && found[0].name == tarName, nil
}

// An archive is a tar archive from which one disk is taken: the only file, or a disk that the
// OVF descriptor of an OVA names. No name in it is used as a name of a file.
type archive struct {
	max  int64  // bytes of a member
	disk string // the requested name of a disk; empty for the only one
	// extract stores a member as the image. It is called at most once.
	extract func(io.Reader) error
	// bound bounds what is read of a member. nil for no bound.
	bound func(io.Reader) io.Reader

	members  map[string]bool
	ovf      string                 // name of the descriptor; empty before it is read
	disks    []string               // named by the descriptor
	want     string                 // the disk to take
	stored   string                 // the member that extract has stored
	manifest map[string]manifestSum // nil before it is read
	sums     map[string]memberSums
}

// memberSums are the hashes of a member. A manifest may follow the files that it names, so
// each member is hashed with all algorithms, or with the only one that will be compared.
type memberSums map[string]hash.Hash

// read reads an archive to its end.
func (a *archive) read(r io.Reader) error {
	a.members, a.sums = map[string]bool{}, map[string]memberSums{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) && !isInputError(err) {
			break
		}
		if err == nil {
			err = a.member(h, in)
		}
		if err != nil {
			return tarFault(err)
		}
	}
	// The bytes after the end belong to the checksums of the transfer.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	return a.check()
}

// tarFault classifies an error of the reader of a tar archive.
func tarFault(err error) error {
	switch {
	case isInputError(err) || errors.As(err, new(*Rejected)) || errors.As(err, new(*TooLarge)):
		return err
	case errors.Is(err, tar.ErrFieldTooLong):
		return hostilef("a header of the tar archive is too long")
	case errors.Is(err, tar.ErrHeader):
		return damagedf("a header of the tar archive is malformed")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return damagedf("the tar archive is cut off")
	}
	return err
}

// memberName returns the name of a member of an archive in its shortest form. ok is false if it
// leads out of the archive.
func memberName(name string) (_ string, ok bool) {
	clean := path.Clean(name)
	outside := path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsAny(name, "\\\x00")
	return clean, !outside && name != ""
}

// member reads one member.
func (a *archive) member(h *tar.Header, r io.Reader) error {
	name, ok := memberName(h.Name)
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return nil
	case len(h.Name) > maxMemberName:
		return hostilef("the tar archive has a name of %d bytes, at most %d are allowed", len(h.Name), maxMemberName)
	case !ok:
		return hostilef("the tar archive has a name outside of it: %.100q", h.Name)
	case a.members[name] && h.Typeflag != tar.TypeDir:
		return hostilef("the tar archive has %.100q twice", name)
	case len(a.members) == maxMembers:
		return hostilef("the tar archive has more than %d members", maxMembers)
	}
	a.members[name] = true
	switch h.Typeflag {
	case tar.TypeDir:
		return nil
	case tar.TypeReg, tar.TypeGNUSparse:
	default:
		return hostilef("the tar archive has a link or a device: %.100q", name)
	}
	switch {
	case h.Size > a.max:
		return &TooLarge{Max: a.max}
	case a.ovf != "" && isSparse(h):
		// No program writes one, and each expands to zeros that no byte was transferred for.
		return unsupportedf("the OVA has a sparse file: %.100q", name)
	}
	if a.bound != nil {
		r = a.bound(r)
	}
	switch strings.ToLower(path.Ext(name)) {
	case ".ovf":
		return a.readOVF(name, r)
	case ".mf":
		if a.ovf != "" {
			return a.readManifest(r)
		}
	}
	return a.file(name, r)
}

// isSparse reports whether a member has holes, which the reader fills with zeros.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// readSmall reads a member of at most limit bytes.
func readSmall(name string, r io.Reader, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = unsupportedf("the file %.100q of the archive has more than %d bytes", name, limit)
	}
	return b, err
}

// readOVF reads the descriptor of an OVA and selects the disk.
func (a *archive) readOVF(name string, r io.Reader) error {
	if a.ovf != "" {
		return unsupportedf("the archive has two descriptors, %.100q and %.100q", a.ovf, name)
	}
	if a.stored != "" {
		return unsupportedf("an OVA must begin with its .ovf, and this one begins with %.100q", a.stored)
	}
	b, err := readSmall(name, a.hashed(name, r), maxOVF)
	if err != nil {
		return err
	}
	if a.disks, err = parseOVF(b); err != nil {
		return err
	}
	a.ovf = name
	dir := path.Dir(name)
	for i, disk := range a.disks {
		a.disks[i] = path.Join(dir, disk)
	}
	a.want, err = a.selectDisk()
	return err
}

// selectDisk returns the name of the disk to take of those in the descriptor.
func (a *archive) selectDisk() (string, error) {
	if a.disk == "" && len(a.disks) == 1 {
		return a.disks[0], nil
	}
	for _, disk := range a.disks {
		if a.disk != "" && (disk == a.disk || path.Base(disk) == a.disk) {
			return disk, nil
		}
	}
	if a.disk == "" {
		return "", unsupportedf("the OVA has %d disks, and an image has one: name one of them with disk: %.1000s",
			len(a.disks), strings.Join(a.disks, ", "))
	}
	return "", unsupportedf("the OVA has no disk %.100q: it has %.1000s", a.disk, strings.Join(a.disks, ", "))
}

func (a *archive) readManifest(r io.Reader) error {
	if a.manifest != nil {
		return unsupportedf("the archive has two manifests")
	}
	b, err := readSmall("the manifest", r, maxManifest)
	if err != nil {
		return err
	}
	sums, err := parseManifest(b)
	if err != nil {
		return err
	}
	dir := path.Dir(a.ovf)
	a.manifest = map[string]manifestSum{}
	for name, sum := range sums {
		a.manifest[path.Join(dir, name)] = sum
	}
	return nil
}

// hashed returns a reader of a member that hashes it for the manifest.
func (a *archive) hashed(name string, r io.Reader) io.Reader {
	sums := memberSums{"SHA1": sha1.New(), "SHA256": sha256.New(), "SHA512": sha512.New()}
	if a.manifest != nil {
		listed, ok := a.manifest[name]
		if !ok {
			return r
		}
		sums = memberSums{listed.algorithm: sums[listed.algorithm]}
	}
	a.sums[name] = sums
	writers := make([]io.Writer, 0, len(sums))
	for _, sum := range sums {
		writers = append(writers, sum)
	}
	return io.TeeReader(r, io.MultiWriter(writers...))
}

// file reads a member that is neither the descriptor nor the manifest.
func (a *archive) file(name string, r io.Reader) error {
	switch {
	case a.ovf == "" && a.stored != "":
		return unsupportedf("the tar archive has several files (%.100q, %.100q): it must have one, "+
			"or be an OVA, which begins with its .ovf", a.stored, name)
	case a.ovf == "":
		if a.disk != "" && a.disk != name && a.disk != path.Base(name) {
			return unsupportedf("the tar archive has the file %.100q and not %.100q", name, a.disk)
		}
		a.stored = name
		return a.extract(r)
	case name == a.want:
		a.stored = name
		r = a.hashed(name, r)
		if err := a.extract(r); err != nil {
			return err
		}
	default:
		r = a.hashed(name, r)
	}
	_, err := io.Copy(io.Discard, r)
	return err
}

// check checks the archive after its end.
func (a *archive) check() error {
	for name, sum := range a.manifest {
		got, ok := a.sums[name]
		if !ok {
			return damagedf("the archive lacks the file %.100q of its manifest", name)
		}
		if !bytes.Equal(got[sum.algorithm].Sum(nil), sum.want) {
			return damagedf("the %s of the file %.100q is not that of the manifest", sum.algorithm, name)
		}
	}
	switch {
	case a.ovf == "" && a.stored == "":
		return unsupportedf("the tar archive has no file")
	case a.ovf != "" && a.stored != a.want:
		return damagedf("the archive lacks the disk %.100q of its .ovf", a.want)
	}
	return nil
}

// unpack takes the image out of a tar archive and writes it to dst. It expands an image that is
// compressed in the archive, unless packed is set: the archive was compressed itself.
func (i *Importer) unpack(body io.Reader, packed bool, w Want, dst *copier) error {
	defer dst.turn.leave()
	max := i.opts.MaxBytes
	bounded := func(r io.Reader, left int64) io.Reader {
		return &limited{r: r, left: left, max: max, turn: dst.turn, check: dst.checkZeroRatio}
	}
	a := &archive{max: max, disk: w.Disk}
	// The holes of a sparse member are not in the body.
	a.bound = func(r io.Reader) io.Reader { return bounded(r, max) }
	a.extract = func(r io.Reader) error {
		if packed {
			_, err := dst.run(r)
			return err
		}
		in := bufio.NewReaderSize(r, bufferBytes)
		c, err := detectCompression(in)
		if err != nil {
			return err
		}
		expanded, closeReader, err := c.expand(in)
		if err != nil {
			return err
		}
		defer closeReader()
		if _, err := dst.run(expanded); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, in) // what the decoder left, for the manifest
		return err
	}
	// The limit is that of an image, and a MiB for the headers.
	if err := a.read(bounded(body, max+mib)); err != nil {
		return fmt.Errorf("import the image: %w", unwrapInput(err))
	}
	return nil
}

// limited fails with [*TooLarge] after a number of bytes, and when check refuses the number of
// bytes read. It holds the turn for what the caller does with the bytes of one Read: members
// other than the image are hashed, too.
type limited struct {
	r         io.Reader
	n         int64 // bytes read
	left, max int64
	turn      *turn
	check     func(n int64) error
}

// Read implements [io.Reader].
func (l *limited) Read(p []byte) (int, error) {
	l.turn.leave() // others may be waiting
	if err := l.turn.take(); err != nil {
		return 0, err
	}
	n, err := l.r.Read(p)
	l.n += int64(n)
	if l.left -= int64(n); l.left < 0 {
		return 0, &TooLarge{Max: l.max}
	}
	if err := l.check(l.n); err != nil {
		return 0, err
	}
	return n, err
}
