package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"vmand/host"
	"vmand/qemu/image"
	"vmand/vm"
)

func (d *Driver) seed(t testing.TB, vmID string, files map[string][]byte) []byte {
	t.Helper()
	must(t, d.WriteSeed(t.Context(), vmID, files))
	b, err := d.state.ReadFile(vmSeed(vmID))
	must(t, err)
	return b
}

// jolietFiles returns the files of an ISO image by its Joliet directory.
func jolietFiles(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	descriptor := b[(isoFirst+1)*isoSector:]
	if descriptor[0] != isoJoliet || !bytes.HasPrefix(descriptor[88:], []byte("%/")) {
		t.Fatalf("the image has no Joliet volume: %q", descriptor[:128])
	}
	extent := func(r []byte) []byte {
		at, size := int(le.Uint32(r[2:]))*isoSector, int(le.Uint32(r[10:]))
		return b[at : at+size]
	}
	files := map[string][]byte{}
	for dir := extent(descriptor[156:]); dir[0] != 0; dir = dir[dir[0]:] {
		name := dir[33 : 33+int(dir[32])]
		if len(name) == 1 { // the entries "." and ".."
			continue
		}
		var letters []uint16
		for ; len(name) > 0; name = name[2:] {
			letters = append(letters, binary.BigEndian.Uint16(name))
		}
		files[strings.TrimSuffix(string(utf16.Decode(letters)), ";1")] = slices.Clone(extent(dir))
	}
	return files
}

// rockRidgeFiles returns the files of an ISO image by its Rock Ridge names.
func rockRidgeFiles(t testing.TB, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	iso, err := iso9660.Read(file.New(f, true), 0, 0, isoSector)
	must(t, err)
	if label := iso.Label(); label != fmt.Sprintf("%-32s", "cidata") {
		t.Errorf("the label is %q", label)
	}
	files := map[string][]byte{}
	entries, err := iso.ReadDir(".")
	must(t, err)
	for _, e := range entries {
		if files[e.Name()], err = fs.ReadFile(iso, e.Name()); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func TestASeedHasItsFilesUnderTheirNames(t *testing.T) {
	d := newDriver(t, Options{})
	must(t, d.CreateVM(t.Context(), "web", vm.DiskFile{SizeMiB: 16}, nil, nil))
	text := func(n int) []byte { return bytes.Repeat([]byte("text\n"), n/5+1)[:n] }
	for _, size := range []int{0, 1, isoSector - 1, isoSector, isoSector + 1, 3 * isoSector, 200_000} {
		files := map[string][]byte{
			"meta-data":      text(size),
			"network-config": text(isoSector),
			"user-data":      text(size),
			"vendor-data":    text(size),
		}
		b := d.seed(t, "web", files)
		if !bytes.Equal(b, d.seed(t, "web", files)) {
			t.Errorf("%d bytes: the same files make a different image", size)
		}
		info, err := image.Inspect(bytes.NewReader(b), int64(len(b)))
		if err != nil || info.Format != image.ISO || info.VirtualBytes != int64(len(b)) {
			t.Errorf("%d bytes: the image is %+v, %v", size, info, err)
		}
		files[seedLast] = []byte("made by vmand\n")
		for extension, got := range map[string]map[string][]byte{
			"Joliet": jolietFiles(t, b), "Rock Ridge": rockRidgeFiles(t, d.layout.inState(vmSeed("web"))),
		} {
			if !maps.EqualFunc(got, files, bytes.Equal) {
				t.Errorf("%d bytes: %s lists %q", size, extension, slices.Sorted(maps.Keys(got)))
			}
		}
	}
}

func TestIgnitionConfigurationIsInFirmware(t *testing.T) {
	h := newHost(t)
	spec := h.createOn("web", overlay(h.bringFile(writeGuest(t, h.dir, guestSaysHi)), 16))
	files := map[string][]byte{"user-data": []byte("{}"), vm.SeedIgnition: []byte(`{"ignition":{"version":"3.4.0"}}`)}
	must(t, h.WriteSeed(t.Context(), "web", files))
	if len(files) != 2 {
		t.Errorf("WriteSeed has changed the files of its caller: %q", files)
	}
	path := h.layout.inState(vmIgnition("web"))
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, files[vm.SeedIgnition]) {
		t.Errorf("the file for the firmware is %q, %v", got, err)
	}
	if b, err := os.ReadFile(h.layout.inState(vmSeed("web"))); err != nil || bytes.Contains(b, files[vm.SeedIgnition]) {
		t.Errorf("the configuration is in the ISO image too: %v", err)
	}
	spec.Ignition = true
	h.startSpec(spec) // QEMU has read the file: it ends if it cannot
	h.awaitSerial("web", "hi\n")
	delete(files, vm.SeedIgnition)
	must(t, h.WriteSeed(t.Context(), "web", files))
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file for the firmware is left: %v", err)
	}
	must(t, h.WriteSeed(t.Context(), "web", files))
}

func TestASeedIsReadableByQEMUOnly(t *testing.T) {
	d := newDriver(t, Options{})
	must(t, d.CreateVM(t.Context(), "web", vm.DiskFile{SizeMiB: 16}, nil, nil))
	d.seed(t, "web", map[string][]byte{"user-data": []byte("#cloud-config\n")})
	st, err := d.state.Stat(vmSeed("web"))
	must(t, err)
	if os.Geteuid() == 0 {
		if owner := st.Sys().(*syscall.Stat_t); st.Mode() != 0o440 || owner.Uid != 0 || int(owner.Gid) != d.account.GID {
			t.Errorf("the seed has mode %v and belongs to %d:%d", st.Mode(), owner.Uid, owner.Gid)
		}
	}
	must(t, d.account.CanRead(d.layout.inState(vmSeed("web"))))
	entries, err := os.ReadDir(d.layout.inState(vmDir("web")))
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	mustFail(t, d.WriteSeed(t.Context(), "none", nil), vm.CodeNotFound)
	for _, name := range []string{"", "..", "a/b", "zz"} {
		mustFail(t, d.WriteSeed(t.Context(), "web", map[string][]byte{name: nil}), vm.CodeOperationFailed)
	}
	// The next vmand removes the leftovers of a killed one.
	must(t, d.state.MkdirAll(host.TempName(vmSeed("web"))+"/files", 0o700))
	must(t, d.removeVMTemps(t.Context(), time.Now().Add(time.Second)))
	if entries, err = os.ReadDir(d.layout.inState(vmDir("web"))); err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	must(t, d.DeleteVM(t.Context(), "web"))
}

// guestTimeout is how long the Linux guest may take to boot.
const guestTimeout = 2 * time.Minute

func (h *testHost) awaitGuest(id, pattern string) {
	h.t.Helper()
	want := regexp.MustCompile(pattern)
	awaitFor(h.t, guestTimeout, fmt.Sprintf("VM %s prints %q", id, pattern), func() bool {
		return want.MatchString(h.serialLog(id))
	})
}

func TestALinuxGuestOfAnImageReadsItsSeedAndItsDiscs(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	linux := h.bringFile(linuxGuest(t, "net"))
	other := h.bringFile(disc(t, guestDeaf))
	s := h.createOn("web", overlay(linux, 64))
	s.RAMMiB, s.CDROMs = 192, []vm.CDROM{{ID: vm.SeedCDROM}}
	s.Ports = []vm.Port{userPort(0)}
	must(t, h.WriteSeed(ctx, "web", map[string][]byte{
		"meta-data":      []byte("instance-id: first-1\nlocal-hostname: web\n"),
		"network-config": []byte("version: 2\n"),
		"user-data":      []byte("#cloud-config\n{}\n"),
	}))
	h.startSpec(s)
	h.awaitGuest("web", `VMT: disc name=sr0 label=cidata files=meta-data,network-config,user-data`)
	h.awaitGuest("web", `VMT: seed instance=first-1 hostname=web`)
	h.awaitGuest("web", `VMT: ready `)
	drives := []vm.CDROM{{ID: vm.SeedCDROM}, {ID: "cd-1", Image: "disc", SHA256: other.SHA256}}
	must(t, h.SetCDROMs(ctx, "web", drives))
	h.awaitGuest("web", `VMT: disc name=sr1 label=DISC files=boot.bin`)
	must(t, h.SetCDROMs(ctx, "web", drives[1:]))
	h.awaitGuest("web", `VMT: disk-remove name=sr0`)

	// A data disk on an image has the content of the image.
	data := overlay(h.bringFile(converted(t, writeGuest(t, h.dir, guestDeaf), "vdi")), 16)
	must(t, h.CreateDisk(ctx, "data", data, nil, nil))
	must(t, h.AttachDisk(ctx, vm.Disk{ID: "data", VMID: "web", MountPoint: "/dev/sdb", DiskFile: data}))
	h.awaitGuest("web", `VMT: disk-add name=sd. bytes=16777216 ro=0 serial=data `)
	if _, err := os.Stat(filepath.Join(h.layout.state, vmSeed("web"))); err != nil {
		t.Error(err)
	}
}
