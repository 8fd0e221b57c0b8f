package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// The image formats in use here, as QEMU names their drivers.
const (
	formatQcow2 = "qcow2"
	formatRaw   = "raw"
	formatVMDK  = "vmdk"
)

// qcow2Header is what of a qcow2 header matters here (docs/interop/qcow2.txt in
// QEMU's source).
type qcow2Header struct {
	size          int64  // bytes, of the disk in it
	backing       string // the name of its backing file, empty if it has none
	backingFormat string // empty if it does not say
	external      bool   // its data are in another file
	crypt         bool
}

// sizeMiB rounds up.
func (h qcow2Header) sizeMiB() int64 { return ceilMiB(h.size) }

const (
	qcow2Magic     = "QFI\xfb"
	qcow2V2Header  = 72
	qcow2V3Header  = 104
	incompatDirty  = 1 << 0
	incompatData   = 1 << 2
	incompatKnown  = incompatDirty | 1<<1 | incompatData | 1<<3 | 1<<4
	extEnd         = 0
	extExternal    = 0x44415441
	extFormat      = 0xe2792aca
	maxBackingName = 1023
	minClusterBits = 9
	maxClusterBits = 21
)

var errNotQcow2 = errors.New("not a qcow2 image")

// readQcow2Header reads and checks the header of a qcow2 image, which anybody
// may have written.
func readQcow2Header(r io.ReaderAt) (qcow2Header, error) {
	buf := make([]byte, 1<<minClusterBits)
	n, err := r.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return qcow2Header{}, err
	}
	buf = buf[:n]
	if len(buf) < qcow2V2Header || string(buf[:4]) != qcow2Magic {
		return qcow2Header{}, errNotQcow2
	}
	be := binary.BigEndian
	version, clusterBits, size := be.Uint32(buf[4:]), be.Uint32(buf[20:]), be.Uint64(buf[24:])
	switch {
	case version != 2 && version != 3:
		return qcow2Header{}, fmt.Errorf("qcow2 version %d is not known", version)
	case clusterBits < minClusterBits || clusterBits > maxClusterBits:
		return qcow2Header{}, fmt.Errorf("qcow2 cluster size 2^%d is not allowed", clusterBits)
	case size == 0 || size > vm.MaxDiskMiB*mib:
		return qcow2Header{}, fmt.Errorf("qcow2 disk size of %d bytes: it must be above 0 and at most %d MiB", size, vm.MaxDiskMiB)
	}
	h := qcow2Header{size: int64(size), crypt: be.Uint32(buf[32:]) != 0}
	if h.backing, err = backingName(r, be.Uint64(buf[8:]), be.Uint32(buf[16:])); err != nil {
		return qcow2Header{}, err
	}
	if version == 2 {
		return h, h.readExtensions(r, qcow2V2Header)
	}
	if len(buf) < qcow2V3Header {
		return qcow2Header{}, errors.New("qcow2 header is cut off")
	}
	features, length := be.Uint64(buf[72:]), be.Uint32(buf[100:])
	switch {
	case features&^uint64(incompatKnown) != 0:
		return qcow2Header{}, fmt.Errorf("qcow2 features %#x are not known", features)
	case length < qcow2V3Header || length > 1<<clusterBits:
		return qcow2Header{}, fmt.Errorf("qcow2 header length of %d is not allowed", length)
	}
	h.external = features&incompatData != 0
	return h, h.readExtensions(r, int64(length))
}

// backingName reads the name of the backing file, if offset is not 0.
func backingName(r io.ReaderAt, offset uint64, length uint32) (string, error) {
	if offset == 0 {
		return "", nil
	}
	if offset > 1<<maxClusterBits || length == 0 || length > maxBackingName {
		return "", fmt.Errorf("qcow2 backing file name of %d bytes at %d is not allowed", length, offset)
	}
	name := make([]byte, length)
	if n, err := r.ReadAt(name, int64(offset)); n < len(name) {
		return "", fmt.Errorf("read qcow2 backing file name: %w", err)
	}
	return string(name), nil
}

// readExtensions looks through the header extensions from offset on for the
// name of a file that would hold the data, and for the backing file's format.
func (h *qcow2Header) readExtensions(r io.ReaderAt, offset int64) error {
	var ext [8]byte
	for offset+8 <= 1<<maxClusterBits {
		if _, err := r.ReadAt(ext[:], offset); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		length := int64(binary.BigEndian.Uint32(ext[4:]))
		switch binary.BigEndian.Uint32(ext[:4]) {
		case extEnd:
			return nil
		case extExternal:
			h.external = true
		case extFormat:
			format := make([]byte, min(length, maxBackingName))
			if n, err := r.ReadAt(format, offset+8); n < len(format) {
				return fmt.Errorf("read qcow2 backing file format: %w", err)
			}
			h.backingFormat = string(format)
		}
		offset += 8 + (length+7)&^7
	}
	return errors.New("qcow2 header extensions do not end")
}

// foreignFormats are images that would be nonsense if taken as raw. The name is
// that of QEMU's driver.
var foreignFormats = []struct {
	format string
	offset int
	magic  string
}{
	{"vmdk", 0, "KDMV"}, {"vmdk", 0, "COWD"}, {"vmdk", 0, "# Disk DescriptorFile"},
	{"vdi", 0x40, "\x7f\x10\xda\xbe"}, {"vhdx", 0, "vhdxfile"}, {"vpc", 0, "conectix"},
	{"qed", 0, "QED\x00"}, {"luks", 0, "LUKS\xba\xbe"}, {"parallels", 0, "WithoutFreeSpace"}, {"parallels", 0, "WithouFreSpacExt"},
}

// ProbeBase looks at an image that VMs are to boot from and returns its format,
// "qcow2" or "raw", and the size of the disk in it in MiB, rounded up. It reads
// the header itself and starts no tool: QEMU's own probing, and opening an image
// of unknown origin with any of its tools, follows names of other files in it.
// It refuses an image that has such names, and formats that are neither.
func ProbeBase(path string) (format string, sizeMiB int64, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a named pipe must not hang it
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	if m := st.Mode(); !m.IsRegular() && (m&os.ModeDevice == 0 || m&os.ModeCharDevice != 0) {
		return "", 0, fmt.Errorf("%s is neither a file nor a block device", path)
	}
	h, err := readQcow2Header(f)
	switch {
	case errors.Is(err, errNotQcow2):
		return probeRaw(f)
	case err != nil:
		return "", 0, fmt.Errorf("%s: %w", path, err)
	case h.backing != "":
		return "", 0, fmt.Errorf("%s has a backing file: flatten it with \"qemu-img convert\"", path)
	case h.external:
		return "", 0, fmt.Errorf("%s keeps its data in another file: flatten it with \"qemu-img convert\"", path)
	case h.crypt:
		return "", 0, fmt.Errorf("%s is encrypted", path)
	}
	return formatQcow2, h.sizeMiB(), nil
}

func probeRaw(f *os.File) (string, int64, error) {
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	for _, other := range foreignFormats {
		if end := other.offset + len(other.magic); end <= n && bytes.Equal(head[other.offset:end], []byte(other.magic)) {
			return "", 0, fmt.Errorf("%s is a %s image: convert it to qcow2 with \"qemu-img convert -f %s -O qcow2\"", f.Name(), other.format, other.format)
		}
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", 0, err
	}
	if size == 0 || size > vm.MaxDiskMiB*mib {
		return "", 0, fmt.Errorf("%s has %d bytes: an image must have more than 0 and at most %d MiB", f.Name(), size, vm.MaxDiskMiB)
	}
	return formatRaw, ceilMiB(size), nil
}
