package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmand/test/need"

	"golang.org/x/sys/unix"
)

func TestProbeBase(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img")
	dir := t.TempDir()
	img := func(args ...string) {
		t.Helper()
		run(t, dir, "qemu-img", args...)
	}
	img("create", "-f", "qcow2", "plain", "1000M")
	img("create", "-f", "qcow2", "-o", "compat=0.10", "old", "10M")
	img("create", "-f", "qcow2", "-o", "cluster_size=2M,extended_l2=on,compression_type=zstd", "modern", "10M")
	img("create", "-f", "qcow2", "-b", "plain", "-F", "qcow2", "backed")
	img("create", "-f", "qcow2", "-o", "data_file=secret", "external", "10M")
	img("create", "-f", "vmdk", "vmdk", "10M")
	img("create", "-f", "vdi", "vdi", "10M")
	img("create", "-f", "vhdx", "vhdx", "10M")
	img("create", "-f", "vpc", "vpc", "10M")
	img("create", "-f", "raw", "raw", "1500K")
	for name, b := range map[string][]byte{"empty": nil, "odd": make([]byte, 1001), "iso": goodISO()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		want Info
		err  string
	}{
		{"plain", Info{Qcow2, 1000 * mib}, ""},
		{"old", Info{Qcow2, 10 * mib}, ""},
		{"modern", Info{Qcow2, 10 * mib}, ""},
		{"raw", Info{Raw, 1500 << 10}, ""},
		{"odd", Info{Raw, 1024}, ""},
		{"iso", Info{Raw, 20 * isoSector}, ""},
		{"backed", Info{}, "backing file"},
		{"external", Info{}, "another file"},
		{"vmdk", Info{}, "vmdk: convert it"},
		{"vdi", Info{}, "vdi: convert it"},
		{"vhdx", Info{}, "vhdx: convert it"},
		{"vpc", Info{}, "vpc: convert it"},
		{"empty", Info{}, "0 bytes"},
		{"fifo", Info{}, "neither a file nor"},
		{".", Info{}, "neither a file nor"},
		{"gone", Info{}, "no such file"},
	} {
		got, err := ProbeBase(filepath.Join(dir, c.name))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %+v, %v; want an error with %q", c.name, got, err, c.err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
}

// header returns a valid qcow2 header of version 3 for 1 GiB, changed by change.
func header(change func([]byte)) []byte {
	h := goodQcow2()[:512]
	change(h)
	return h
}

func readHeader(b []byte) (Qcow2Header, error) {
	return ReadQcow2Header(bytes.NewReader(b), int64(len(b)))
}

func TestMalformedQcow2HeadersAreRefused(t *testing.T) {
	t.Parallel()
	if h, err := readHeader(header(func([]byte) {})); err != nil || h.VirtualBytes != 1<<30 {
		t.Fatalf("the unchanged header: %+v, %v", h, err)
	}
	for name, change := range map[string]func([]byte){
		"magic":                func(h []byte) { h[0] = 0 },
		"version":              put32be(4, 4),
		"cluster size":         put32be(20, 60),
		"no size":              put64be(24, 0),
		"a size below zero":    put64be(24, 1<<63),
		"features":             put64be(72, 1<<40),
		"header length":        put32be(100, 8),
		"endless extensions":   both(put32be(104, 7), put32be(108, 1<<30)),
		"header beyond itself": put32be(100, 1<<31),
		"backing file outside": both(put64be(8, 1024), put32be(16, 4)),
		"backing file name":    both(put64be(8, 256), put32be(16, 1024)),
	} {
		var unsafe *Rejected
		if got, err := readHeader(header(change)); !errors.As(err, &unsafe) {
			t.Errorf("%s: got %+v, %v; want a refusal", name, got, err)
		}
	}
}

func TestReadQcow2Header(t *testing.T) {
	t.Parallel()
	name := both(put64be(8, 256), put32be(16, 5), func(h []byte) { copy(h[256:], "/base") })
	backing := both(name, withExtension(extFormat, []byte("raw")))
	second := both(put32be(104, 7), put32be(108, 3), put32be(120, extData))
	full := both(put32be(104, 7), put32be(108, 512-112))
	for name, c := range map[string]struct {
		change func([]byte)
		want   Qcow2Header
	}{
		"plain":                        {func([]byte) {}, Qcow2Header{}},
		"a size in bytes":              {put64be(24, 12345), Qcow2Header{VirtualBytes: 12345}},
		"marked as corrupt":            {put64be(72, incompatCorrupt), Qcow2Header{}},
		"encrypted":                    {put32be(32, 1), Qcow2Header{Encrypted: true}},
		"external data by feature":     {put64be(72, incompatData), Qcow2Header{ExternalData: true}},
		"external data by extension":   {second, Qcow2Header{ExternalData: true}},
		"a backing file":               {backing, Qcow2Header{Backing: "/base", BackingFormat: "raw"}},
		"a backing file, version 2":    {both(put32be(4, 2), name), Qcow2Header{Backing: "/base"}},
		"an extension to the very end": {both(put32be(20, 9), full), Qcow2Header{}},
	} {
		if c.want.VirtualBytes == 0 {
			c.want.VirtualBytes = 1 << 30
		}
		h, err := readHeader(header(c.change))
		got := Qcow2Header{
			VirtualBytes:  h.VirtualBytes,
			Backing:       h.Backing,
			BackingFormat: h.BackingFormat,
			ExternalData:  h.ExternalData,
			Encrypted:     h.Encrypted,
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

func FuzzQcow2Header(f *testing.F) {
	f.Add(header(func([]byte) {}))
	f.Add([]byte(qcow2Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHeader(b)
		if err == nil && h.VirtualBytes <= 0 {
			t.Errorf("accepted with a size of %d", h.VirtualBytes)
		}
	})
}
