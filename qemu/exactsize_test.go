package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"vmand/vm"
)

// The second copy of a partition table is in the last sector of a disk, so a disk made of an
// image must end where the image ends.
func TestADiskOfAnImageEndsWhereTheImageEnds(t *testing.T) {
	h := newHost(t)
	const size = 3*mib + 7*512
	content := append(bytes.Repeat([]byte{0}, size-512), bytes.Repeat([]byte("EFI PART"), 64)...)
	path := filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(path, content, 0o600))
	i := vm.Image{Name: "gpt", State: vm.ImageAvailable, ImageContent: h.bringFile(path)}
	file, err := i.Overlay(0, "/size", "/image")
	must(t, err)
	must(t, h.CreateDisk(t.Context(), "overlay", file, nil, nil))
	full := file
	full.Base, full.BaseFormat = "", ""
	must(t, h.CreateDisk(t.Context(), "full", full, &vm.CopySource{File: file}, nil))
	must(t, h.CreateDisk(t.Context(), "copy", full, &vm.CopySource{Resource: vm.DiskResource("overlay"), File: file}, nil))
	for _, id := range []string{"overlay", "full", "copy"} {
		raw := filepath.Join(t.TempDir(), id)
		img(t, "convert", "-f", "qcow2", "-O", "raw", h.layout.inState(dataDisk(id)), raw)
		got, err := os.ReadFile(raw)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("disk %s has %d bytes, %v; want %d", id, len(got), err, size)
		}
		if adopted, err := h.AdoptDisk(t.Context(), id); err != nil || adopted.Bytes() != size {
			t.Errorf("disk %s is adopted with %d bytes, %v", id, adopted.Bytes(), err)
		}
	}
	c, err := h.ImageOfDisk(t.Context(), vm.CopySource{Resource: vm.DiskResource("full"), File: full}, vm.Import{})
	if err != nil || c.VirtualBytes() != size {
		t.Errorf("the image of the disk has %d bytes, %v", c.VirtualBytes(), err)
	}
	// A disk grows to whole MiB, also within its last MiB.
	must(t, h.ResizeDisk(t.Context(), vm.Disk{ID: "full", DiskFile: full}, full.SizeMiB))
	if adopted, err := h.AdoptDisk(t.Context(), "full"); err != nil || adopted.Bytes() != full.SizeMiB*mib {
		t.Errorf("the grown disk has %d bytes, %v", adopted.Bytes(), err)
	}
}
