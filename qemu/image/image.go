// Package image brings disk images from outside onto this host. It inspects their
// bytes before any program opens them as an image, stores each once under the SHA-256
// of its content, and downloads them. It also reads and writes qcow2 headers.
//
// [Inspect] follows no file name that it finds in an image, and refuses every image
// that has one. It checks that opening the image reads no other file. Entries of
// second-level tables (an L2 table, a grain table) are not inspected: QEMU checks them
// at each access, and they lead to offsets in the same file.
package image

import (
	"fmt"
	"io"
)

// A Format is the format of an image.
type Format string

// The accepted formats. QEMU's driver for ISO is raw.
const (
	Qcow2 Format = "qcow2"
	Raw   Format = "raw"
	VMDK  Format = "vmdk"
	VHDX  Format = "vhdx"
	VDI   Format = "vdi"
	VPC   Format = "vpc" // VHD
	ISO   Format = "iso"
)

const (
	sectorBytes = 512
	mib         = 1 << 20

	// maxVirtual is the size of the largest disk in an image, in bytes.
	maxVirtual = 16 << 40
	// maxFile is the size of the largest image file: the largest disk, with tables.
	maxFile = 17 << 40
)

// Info is the format and the disk size of an image.
type Info struct {
	Format       Format
	VirtualBytes int64 // as a guest sees it; Inspect returns a multiple of 512
}

// Expect returns an [*Rejected] error if the image is not of the claimed format.
func (i Info) Expect(claimed Format) error {
	if i.Format != claimed {
		return unsupportedf("the format is %s, not %s", i.Format, claimed)
	}
	return nil
}

// A Flaw is the kind of fault for which an image is rejected.
type Flaw int

// The flaws.
const (
	Hostile     Flaw = iota // opening the image could do harm: it names other files, expands without end or contradicts itself
	Damaged                 // the image is cut off or malformed
	Unsupported             // the format, or a feature of it, is not accepted
)

// String returns the flaw as an adjective.
func (f Flaw) String() string { return [...]string{"hostile", "damaged", "unsupported"}[f] }

// Rejected is the error for an image that is not accepted.
type Rejected struct {
	Flaw   Flaw
	Reason string // for people; may quote the image
}

func (e *Rejected) Error() string { return e.Flaw.String() + " image: " + e.Reason }

func hostilef(format string, args ...any) error {
	return &Rejected{Hostile, fmt.Sprintf(format, args...)}
}

func damagedf(format string, args ...any) error {
	return &Rejected{Damaged, fmt.Sprintf(format, args...)}
}

func unsupportedf(format string, args ...any) error {
	return &Rejected{Unsupported, fmt.Sprintf(format, args...)}
}

// Inspect checks an image of size bytes. It returns an [*Rejected] error if the image is
// refused, and an error of r unchanged. For any image it makes at most 4096 reads of
// at most 64 KiB and allocates at most 8 MiB.
func Inspect(r io.ReaderAt, size int64) (Info, error) {
	switch {
	case size <= 0:
		return Info{}, damagedf("the file is empty")
	case size > maxFile:
		return Info{}, unsupportedf("the file has %d bytes, at most %d are allowed", size, int64(maxFile))
	}
	s := newSource(r, size)
	format, err := detect(s)
	if err != nil {
		return Info{}, err
	}
	virtual, err := inspectAs(format, s)
	if err != nil {
		return Info{}, err
	}
	if virtual == 0 || virtual > maxVirtual || virtual%sectorBytes != 0 {
		return Info{}, damagedf("the %s disk has %d bytes: it must be a multiple of %d, above 0 and at most %d",
			format, virtual, sectorBytes, int64(maxVirtual))
	}
	return Info{Format: format, VirtualBytes: int64(virtual)}, nil
}

// inspectAs checks an image of a format and returns the size of its disk in bytes.
func inspectAs(format Format, s *source) (uint64, error) {
	switch format {
	case Qcow2:
		return inspectQcow2(s)
	case VMDK:
		return inspectVMDK(s)
	case VHDX:
		return inspectVHDX(s)
	case VDI:
		return inspectVDI(s)
	case VPC:
		return inspectVPC(s)
	case ISO:
		return inspectISO(s)
	default:
		return inspectRaw(s)
	}
}
