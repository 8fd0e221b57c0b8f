package image

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmand/test/need"
)

func run(t testing.TB, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return out
}

// goodImages makes images with qemu-img, some with data and some empty, and returns
// the Info that Inspect must return for each, by file name.
func goodImages(t testing.TB, dir string) map[string]Info {
	t.Helper()
	data := make([]byte, 9*mib)
	for i := range data[:5*mib] {
		data[mib+i/3*2] = byte(i * 7919 >> 8)
	}
	if err := os.WriteFile(filepath.Join(dir, "data"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	all := map[string]Info{"data": {Raw, 9 * mib}}
	for format, options := range map[Format][]string{
		Qcow2: {
			"", "compat=0.10", "compat=v3",
			"cluster_size=512", "cluster_size=4k", "cluster_size=2M,extended_l2=on",
			"compression_type=zstd", "lazy_refcounts=on", "preallocation=metadata",
			"refcount_bits=1", "refcount_bits=64",
		},
		Raw:  {""},
		VMDK: {"", "subformat=streamOptimized", "compat6", "zeroed_grain=on"},
		VDI:  {"", "static=on"},
		VHDX: {"", "subformat=fixed", "block_size=1M", "block_size=256M"},
		VPC:  {"force_size=on", "subformat=fixed,force_size=on"},
	} {
		for _, o := range options {
			name := string(format) + "-" + strings.NewReplacer("=", "-", ",", "-").Replace(o)
			args := []string{"convert", "-q", "-f", "raw", "-O", string(format)}
			if o != "" {
				args = append(args, "-o", o)
			}
			run(t, dir, "qemu-img", append(slices.Clone(args), "data", name)...)
			all[name] = Info{format, 9 * mib}
			if o == "compression_type=zstd" {
				run(t, dir, "qemu-img", append(args, "-c", "data", name+"-c")...)
				all[name+"-c"] = Info{format, 9 * mib}
			}
		}
	}
	for _, f := range []Format{Qcow2, VMDK, VDI, VHDX, VPC, Raw} {
		gib := 2040
		if f == VDI {
			gib = 100
		}
		name := "large-" + string(f)
		run(t, dir, "qemu-img", "create", "-q", "-f", string(f), name, fmt.Sprintf("%dG", gib))
		all[name] = Info{f, int64(gib) << 30}
	}
	run(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "snapshots", "1G")
	for _, s := range []string{"one", "two", "three"} {
		run(t, dir, "qemu-img", "snapshot", "-c", s, "snapshots")
	}
	run(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "bitmaps", "1G")
	for _, s := range []string{"one", "two"} {
		run(t, dir, "qemu-img", "bitmap", "--add", "bitmaps", s)
	}
	all["snapshots"], all["bitmaps"] = Info{Qcow2, 1 << 30}, Info{Qcow2, 1 << 30}
	return all
}

func TestImagesOfQEMUAreAccepted(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img")
	dir := t.TempDir()
	for name, want := range goodImages(t, dir) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Inspect(f, st.Size()); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
		}
	}
}

// QEMU refuses a malformed image, so the hostile images are well formed except for
// their one change.
func TestQEMUAcceptsTheGoodImages(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img")
	dir := t.TempDir()
	for format, good := range map[Format]func() []byte{
		Qcow2: goodQcow2,
		VMDK:  goodVMDK,
		VDI:   goodVDI,
		VHDX:  goodVHDX,
		VPC:   goodVPC,
	} {
		name := filepath.Join(dir, string(format))
		if err := os.WriteFile(name, good(), 0o600); err != nil {
			t.Fatal(err)
		}
		out := run(t, dir, "qemu-img", "info", "-f", string(format), name)
		if !bytes.Contains(out, []byte("file format: "+string(format))) {
			t.Errorf("%s: %s", format, out)
		}
	}
}

func TestImagesCompressedByTheToolsAreImported(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img", "xz", "zstd", "gzip", "bzip2")
	dir := t.TempDir()
	run(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "image", "10G")
	i, store := testImporter(t, Options{})
	var want Content
	for _, c := range []string{
		"",
		"gzip -9",
		"xz", "xz -9 -C sha256", "xz -0 -C crc32", "xz -C none", "xz -T2 --block-size=64KiB",
		"xz --x86 --lzma2=preset=9", "xz --arm --delta=dist=4 --lzma2=preset=0", "xz --powerpc --lzma2",
		"bzip2", "bzip2 -1",
		"zstd", "zstd -19", "zstd --ultra -22 --long=27",
	} {
		b, err := os.ReadFile(filepath.Join(dir, "image"))
		if err != nil {
			t.Fatal(err)
		}
		if c != "" {
			b = run(t, dir, "sh", "-c", c+" -q -c < image 2>/dev/null || "+c+" -c < image")
		}
		got, err := i.Import(t.Context(), bytes.NewReader(b), Want{})
		if err != nil {
			t.Errorf("%s: %v", c, err)
			continue
		}
		if want.SHA256 == "" {
			want = got
		}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", c, got, want)
		}
	}
	wantFiles(t, store, want.SHA256)
}
