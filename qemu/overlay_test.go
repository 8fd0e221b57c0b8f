package qemu

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"vmand/vm"
)

// converted converts a raw disk to another format.
func converted(t testing.TB, raw, format string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "image."+format)
	img(t, "convert", "-f", "raw", "-O", format, raw, to)
	return to
}

// overlay returns the record of an overlay on content.
func overlay(c vm.ImageContent, sizeMiB int64) vm.DiskFile {
	return vm.DiskFile{SizeMiB: sizeMiB, Image: "debian", Base: vm.ContentBase(c.SHA256), BaseFormat: string(c.Layout)}
}

// createOn creates the files of a VM with a root disk.
func (h *testHost) createOn(id string, root vm.DiskFile) vm.Spec {
	h.t.Helper()
	must(h.t, h.CreateVM(h.t.Context(), id, root, nil, nil))
	p, err := h.Platform(h.t.Context())
	must(h.t, err)
	return vm.Spec{ID: id, UUID: uuid.NewString(), CPUCount: 1, RAMMiB: 32, Machine: p.Machine, Accel: p.Accel, Root: root}
}

func TestAVMBootsFromAnOverlayOfAnImageOfAnyFormat(t *testing.T) {
	h := newHost(t)
	raw := writeGuest(t, h.dir, guestSaysHi)
	for _, format := range []string{"qcow2", "raw", "vmdk", "vhdx", "vdi", "vpc"} {
		path := raw
		if format != "raw" {
			path = converted(t, raw, format)
		}
		c := h.bringFile(path)
		if string(c.Layout) != format || c.VirtualMiB != 1 && format != "vhdx" && format != "vpc" {
			t.Fatalf("%s: the content is %+v", format, c)
		}
		root := overlay(c, 16)
		h.startSpec(h.createOn(format, root))
		h.awaitSerial(format, "hi\n")
		want := root
		want.Image = "" // which is in no header
		if _, got, err := h.AdoptVM(t.Context(), format); got != want || err != nil {
			t.Errorf("%s: AdoptVM returns %+v, %v; want %+v", format, got, err, want)
		}
		must(t, h.CreateDisk(t.Context(), format, root, nil, nil))
		if got, err := h.AdoptDisk(t.Context(), format); got != want || err != nil {
			t.Errorf("%s: AdoptDisk returns %+v, %v; want %+v", format, got, err, want)
		}
	}
}

// nodeNames returns the names of the block nodes of a VM.
func (h *testHost) nodeNames(id string) (names []string) {
	h.t.Helper()
	s, err := h.live(id)
	must(h.t, err)
	nodes, err := s.nodes(h.t.Context())
	must(h.t, err)
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

func TestADiskIsPluggedAndUnpluggedWithItsBase(t *testing.T) {
	h := newHost(t)
	raw := writeGuest(t, h.dir, guestDeaf)
	qcow2, vhdx := h.bringFile(converted(t, raw, "qcow2")), h.bringFile(converted(t, raw, "vhdx"))
	first, second := h.createOn("first", overlay(qcow2, 8)), h.createOn("second", overlay(qcow2, 8))
	disks := map[string]vm.Disk{}
	for id, c := range map[string]vm.ImageContent{"a-disk-of-20-chars-1": qcow2, "a-disk-of-20-chars-2": qcow2, "disk": vhdx} {
		file := overlay(c, 16)
		must(t, h.CreateDisk(t.Context(), id, file, nil, nil))
		disks[id] = vm.Disk{ID: id, VMID: "first", MountPoint: "/dev/sd" + string("bcd"[len(disks)]), DiskFile: file}
	}
	first.Disks = []vm.Disk{disks["a-disk-of-20-chars-1"]}
	h.startSpec(first)
	h.startSpec(second) // its base is open already
	for range 2 {
		for _, disk := range disks {
			for range 2 {
				must(t, h.AttachDisk(t.Context(), disk))
			}
		}
		if got := h.plugged("first"); len(got) != 3 {
			t.Fatalf("plugged: %q", got)
		}
		if got := h.nodeNames("first"); !slices.Contains(got, diskBaseNode("disk")) {
			t.Errorf("the nodes are %q", got)
		}
		must(t, h.ResizeDisk(t.Context(), disks["disk"], 24))
		for _, disk := range disks {
			must(t, h.DetachDisk(t.Context(), disk))
		}
		want := slices.Sorted(slices.Values([]string{baseNode, baseFileNode, rootNode, rootFileNode}))
		if got := h.nodeNames("first"); !slices.Equal(got, want) {
			t.Errorf("nodes are left: %q", got)
		}
		must(t, h.Reset(t.Context(), "first"))
	}
	// An interrupted attach that left only the nodes.
	s, err := h.live("first")
	must(t, err)
	must(t, s.blockdevAdd(t.Context(), diskNodes(disks["disk"], h.layout)))
	must(t, h.AttachDisk(t.Context(), disks["disk"]))
}

func TestAVMWithoutItsImageDoesNotStart(t *testing.T) {
	h := newHost(t)
	c := h.bringFile(writeGuest(t, h.dir, guestDeaf))
	root, disk := h.createOn("root", overlay(c, 8)), h.create("disk", guestDeaf)
	must(t, h.CreateDisk(t.Context(), "data", overlay(c, 8), nil, nil))
	disk.Disks = []vm.Disk{{ID: "data", VMID: "disk", MountPoint: "/dev/sdb", DiskFile: overlay(c, 8)}}
	drive := h.create("drive", guestDeaf)
	drive.CDROMs = []vm.CDROM{{ID: "cd-1", Image: "debian", SHA256: c.SHA256}}
	specs := []vm.Spec{root, disk, drive}
	for _, s := range specs {
		must(t, h.Admit(t.Context(), s))
	}
	must(t, h.DeleteImage(t.Context(), c.SHA256))
	for _, s := range specs {
		err := h.Admit(t.Context(), s)
		mustFail(t, err, vm.CodeOperationFailed)
		if err != nil && (!strings.Contains(err.Error(), c.SHA256) || !strings.Contains(err.Error(), "image debian")) {
			t.Errorf("the error does not name the image: %v", err)
		}
	}
	for what, made := range map[string]error{
		"a VM":   h.CreateVM(t.Context(), "other", overlay(c, 8), nil, nil),
		"a disk": h.CreateDisk(t.Context(), "other", overlay(c, 8), nil, nil),
	} {
		if codeOf(made) != vm.CodeOperationFailed || !strings.Contains(made.Error(), c.SHA256) {
			t.Errorf("%s: %v", what, made)
		}
	}
	if _, err := os.Stat(h.layout.inState(vmDir("other"))); !os.IsNotExist(err) {
		t.Errorf("a directory is left: %v", err)
	}
}

func TestADiskMustFitItsImage(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{})
	c := bring(t, d, append(rawImage("two"), make([]byte, mib)...))
	small, odd := overlay(c, 1), overlay(c, 8)
	odd.BaseFormat = "vdi"
	outside := vm.DiskFile{SizeMiB: 8, Base: "/etc/passwd", BaseFormat: formatRaw}
	for what, file := range map[string]vm.DiskFile{"smaller": small, "of another format": odd, "on a file": outside} {
		want := vm.CodeInvalid
		if what == "of another format" {
			want = vm.CodeOperationFailed
		}
		if err := d.CreateDisk(t.Context(), "data", file, nil, nil); codeOf(err) != want {
			t.Errorf("%s: %v, want code %s", what, err, want)
		}
	}
	mustFail(t, d.CreateVM(t.Context(), "web", small, nil, nil), vm.CodeInvalid)
	for name, made := range map[string]string{"an image that is none of ours": "/etc/passwd", "content elsewhere": "/x/" + c.SHA256} {
		must(t, d.CreateDisk(t.Context(), "forged", vm.DiskFile{SizeMiB: 8}, nil, nil))
		img(t, "rebase", "-u", "-f", "qcow2", "-F", "vmdk", "-b", made, d.layout.inState(dataDisk("forged")))
		if _, err := d.AdoptDisk(t.Context(), "forged"); codeOf(err) != vm.CodeOperationFailed {
			t.Errorf("%s: %v", name, err)
		}
		must(t, d.DeleteDisk(t.Context(), "forged"))
	}
}
