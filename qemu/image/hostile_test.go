package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// counter counts the reads of an image, and their bytes.
type counter struct {
	io.ReaderAt
	reads, bytes int
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.reads, c.bytes = c.reads+1, c.bytes+len(p)
	return c.ReaderAt.ReadAt(p, off)
}

func TestTheGoodImagesAreAccepted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		good func() []byte
		want Info
	}{
		{goodQcow2, Info{Qcow2, 1 << 30}},
		{goodVMDK, Info{VMDK, mib}},
		{goodVDI, Info{VDI, 2 * mib}},
		{goodVHDX, Info{VHDX, 4 * mib}},
		{goodVPC, Info{VPC, 4 * mib}},
		{goodFixedVPC, Info{VPC, mib}},
		{goodISO, Info{ISO, 20 * isoSector}},
		{goodRaw, Info{Raw, 1024}},
	} {
		b := c.good()
		if got, err := Inspect(bytes.NewReader(b), int64(len(b))); err != nil || got != c.want {
			t.Errorf("%+v: got %+v, %v", c.want, got, err)
		}
	}
}

func TestHostileImagesAreRefused(t *testing.T) {
	t.Parallel()
	all := hostileImages("/etc/shadow")
	if len(all) < 40 {
		t.Fatalf("only %d hostile images", len(all))
	}
	t.Logf("%d hostile images", len(all))
	for _, h := range all {
		c := &counter{ReaderAt: bytes.NewReader(h.content)}
		info, err := Inspect(c, int64(len(h.content)))
		var unsafe *Rejected
		if !errors.As(err, &unsafe) || !strings.Contains(unsafe.Reason, h.reason) {
			t.Errorf("%s: got %+v, %v; want a refusal with %q", h.name, info, err, h.reason)
		}
		if c.reads > 64 || c.bytes > mib {
			t.Errorf("%s: %d reads of %d bytes", h.name, c.reads, c.bytes)
		}
	}
}

// Inotify reports every opening of the file that the hostile images name.
func TestImportOfHostileImagesOpensNoFileAndLeavesNone(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, secret, unix.IN_OPEN|unix.IN_ACCESS); err != nil {
		t.Fatal(err)
	}
	i, dir := testImporter(t, Options{})
	for _, h := range hostileImages(secret) {
		var unsafe *Rejected
		if c, err := i.Import(t.Context(), bytes.NewReader(h.content), Want{}); !errors.As(err, &unsafe) {
			t.Errorf("%s: imported as %+v, %v", h.name, c, err)
		}
	}
	wantFiles(t, dir)
	if n, err := unix.Read(watch, make([]byte, 4096)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the file that the images name was opened: %d bytes of inotify events, %v", n, err)
	}
	if f, err := os.Open(secret); err != nil {
		t.Fatal(err)
	} else {
		f.Close()
	}
	if n, err := unix.Read(watch, make([]byte, 4096)); err != nil || n == 0 {
		t.Fatalf("inotify does not report an opening: %d, %v", n, err)
	}
}

func TestExpect(t *testing.T) {
	t.Parallel()
	b := goodQcow2()
	info, err := Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var unsafe *Rejected
	if err := info.Expect(Raw); !errors.As(err, &unsafe) {
		t.Errorf("a qcow2 image is accepted as raw: %v", err)
	}
	if err := info.Expect(Qcow2); err != nil {
		t.Error(err)
	}
}

// hole is a file of any size with some bytes at the beginning, and zeros after them.
type hole []byte

func (h hole) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(h)) {
		copy(p, h[off:])
	}
	return len(p), nil
}

// This test is not parallel: it measures the allocations of the process.
func TestTheLargestTablesAreReadInBounds(t *testing.T) {
	const size = 17 << 40
	l1 := goodQcow2()
	be.PutUint32(l1[20:], 21) // clusters of 2 MiB
	be.PutUint64(l1[24:], 16<<40)
	be.PutUint32(l1[36:], maxTableBytes/8)
	be.PutUint64(l1[40:], 8*mib)
	be.PutUint64(l1[48:], 4*mib)
	l1 = append(l1, make([]byte, 10*mib)...)
	for i := range maxTableBytes / 8 {
		be.PutUint64(l1[8*mib+8*i:], uint64(i+16)*2*mib)
		be.PutUint64(l1[4*mib+8*i:], uint64(i+300000)*2*mib)
	}
	vdi := append(goodVDI()[:512:512], bytes.Repeat([]byte{0xff}, 64*mib)...)
	le.PutUint32(vdi[0x158:], 512+64*mib)
	le.PutUint64(vdi[0x170:], 16<<40)
	le.PutUint32(vdi[0x180:], 16*mib)
	le.PutUint32(vdi[0x184:], 16*mib)
	for i := range 16 * mib {
		le.PutUint32(vdi[512+4*i:], uint32(i))
	}
	for name, b := range map[string][]byte{"qcow2": l1, "vdi": vdi} {
		c := &counter{ReaderAt: hole(b)}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		info, err := Inspect(c, size)
		runtime.ReadMemStats(&after)
		if err != nil || info.VirtualBytes != 16<<40 {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
		allocated := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s: %d reads, %d MiB read, %d KiB allocated", name, c.reads, c.bytes>>20, allocated>>10)
		if allocated > 8*mib {
			t.Errorf("%s: %d bytes allocated", name, allocated)
		}
	}
}
