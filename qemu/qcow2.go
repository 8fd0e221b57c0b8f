package qemu

import (
	"os"

	"vmand/qemu/image"
)

// The image formats in use here, as QEMU names their drivers.
const (
	formatQcow2 = "qcow2"
	formatRaw   = "raw"
	formatVMDK  = "vmdk"
)

// ProbeBase returns the format, "qcow2" or "raw", and the disk size in bytes, of
// the image at path that root disks are to be overlays of. See
// [image.ProbeBase].
func ProbeBase(path string) (format string, bytes int64, err error) {
	info, err := image.ProbeBase(path)
	if err != nil {
		return "", 0, err
	}
	return string(info.Format), info.VirtualBytes, nil
}

// readHeader reads the qcow2 header of a disk file, also while QEMU has it open.
func readHeader(f *os.File) (image.Qcow2Header, error) {
	st, err := f.Stat()
	if err != nil {
		return image.Qcow2Header{}, err
	}
	return image.ReadQcow2Header(f, st.Size())
}
