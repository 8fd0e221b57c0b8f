// Package image brings images of disks from outside onto this host: it looks at
// their bytes before anything opens them as more than bytes, stores them once
// under the SHA-256 of their content, and downloads them.
//
// [Inspect] follows no name it finds in an image, and refuses every image that has
// one. What it checks is that opening the image leads nowhere but into the image:
// where an entry of a table of the second level leads (an L2 table, a grain table)
// is checked by QEMU at each access, and is in the same file.
package image

import (
	"fmt"
	"io"
)

// A Format is how the content of an image is laid out.
type Format string

// The formats that are accepted. QEMU's driver for ISO is raw.
const (
	Qcow2 Format = "qcow2"
	Raw   Format = "raw"
	VMDK  Format = "vmdk"
	VHDX  Format = "vhdx"
	VDI   Format = "vdi"
	ISO   Format = "iso"
)

const (
	sectorBytes = 512
	mib         = 1 << 20

	// maxVirtual is the size of the largest disk an image may have, in bytes.
	maxVirtual = 16 << 40
	// maxFile is the largest file that is looked at: the largest disk, with tables.
	maxFile = 17 << 40
)

// Info is what an image says of itself.
type Info struct {
	Format       Format
	VirtualBytes int64 // as a guest sees it; a multiple of 512
}

// Expect returns an [Unsafe] error when the image is not of the format somebody
// said it was.
func (i Info) Expect(claimed Format) error {
	if i.Format != claimed {
		return unsafef("it is said to be %s and is %s", claimed, i.Format)
	}
	return nil
}

// Unsafe is why an image is refused: opening it could do harm, or it is not what
// an image has to be.
type Unsafe struct {
	Reason string // for a person; may quote what the image says of itself
}

func (e *Unsafe) Error() string { return "unsafe image: " + e.Reason }

func unsafef(format string, args ...any) error { return &Unsafe{fmt.Sprintf(format, args...)} }

// Inspect looks at an image of size bytes. It returns an [Unsafe] error for one
// that is refused, and an error of r's as it is. Whatever the image says,
// it makes at most 4096 reads of at most 64 KiB and keeps at most 8 MiB.
func Inspect(r io.ReaderAt, size int64) (Info, error) {
	s := newSource(r, size)
	switch {
	case size <= 0:
		return Info{}, unsafef("it is empty")
	case size > maxFile:
		return Info{}, unsafef("it has %d bytes, at most %d are allowed", size, int64(maxFile))
	}
	format, err := detect(s)
	if err != nil {
		return Info{}, err
	}
	var virtual uint64
	switch format {
	case Qcow2:
		virtual, err = inspectQcow2(s)
	case VMDK:
		virtual, err = inspectVMDK(s)
	case VHDX:
		virtual, err = inspectVHDX(s)
	case VDI:
		virtual, err = inspectVDI(s)
	case ISO:
		virtual, err = inspectISO(s)
	default:
		virtual, err = inspectRaw(s)
	}
	if err != nil {
		return Info{}, err
	}
	if virtual == 0 || virtual > maxVirtual || virtual%sectorBytes != 0 {
		return Info{}, unsafef("a %s disk of %d bytes: it must have whole sectors of %d bytes, and at most %d bytes", format, virtual, sectorBytes, int64(maxVirtual))
	}
	return Info{Format: format, VirtualBytes: int64(virtual)}, nil
}
