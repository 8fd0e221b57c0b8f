package image

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ProbeBase returns the format, [Qcow2] or [Raw], and the disk size of the image at
// path. It is for an image that the operator chose as the base of root disks: unlike
// [Inspect] it does not read the tables, and a raw image may have any size above 0: the
// disk then has whole sectors.
//
// ProbeBase reads the header itself and starts no program: QEMU's probing, and every
// QEMU tool that opens an image, follows the names of other files in it. ProbeBase
// refuses an image with such names, and other formats.
func ProbeBase(path string) (Info, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // opening a named pipe must not block
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	blockDevice := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !st.Mode().IsRegular() && !blockDevice {
		return Info{}, fmt.Errorf("%s is neither a file nor a block device", path)
	}
	size, err := f.Seek(0, io.SeekEnd) // Stat reports 0 for a block device
	if err != nil {
		return Info{}, err
	}
	info, err := probeBase(newSource(f, size))
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w", path, err)
	}
	return info, nil
}

func probeBase(s *source) (Info, error) {
	head := make([]byte, sectorBytes)
	if err := s.fill(head, 0); err != nil {
		return Info{}, err
	}
	for _, sig := range signaturesIn(head) {
		if sig.name == string(Qcow2) {
			return probeQcow2(s)
		}
		if sig.driver != "" {
			return Info{}, fmt.Errorf("it is %s: convert it to qcow2 with \"qemu-img convert -f %s -O qcow2\"",
				sig.name, sig.driver)
		}
	}
	if s.size == 0 || s.size > maxVirtual {
		return Info{}, fmt.Errorf("it has %d bytes: an image must have at least 1 and at most %d",
			s.size, int64(maxVirtual))
	}
	return Info{Format: Raw, VirtualBytes: int64(alignUp(uint64(s.size), sectorBytes))}, nil
}

func probeQcow2(s *source) (Info, error) {
	h, err := readQcow2Header(s)
	switch {
	case err != nil:
		return Info{}, err
	case h.Backing != "":
		return Info{}, errors.New("it has a backing file: flatten it with \"qemu-img convert\"")
	case h.ExternalData:
		return Info{}, errors.New("its data is in another file: flatten it with \"qemu-img convert\"")
	case h.Encrypted:
		return Info{}, errors.New("it is encrypted")
	}
	return Info{Format: Qcow2, VirtualBytes: h.VirtualBytes}, nil
}
