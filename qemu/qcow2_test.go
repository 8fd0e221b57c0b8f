package qemu

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestABootImageIsProbedWithoutTrust(t *testing.T) {
	needQEMU(t)
	dir := t.TempDir()
	img := func(args ...string) {
		t.Helper()
		cmd := exec.Command("qemu-img", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
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
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, format string
		size         int64
		err          string
	}{
		{"plain", formatQcow2, 1000, ""},
		{"old", formatQcow2, 10, ""},
		{"modern", formatQcow2, 10, ""},
		{"raw", formatRaw, 2, ""},
		{"backed", "", 0, "backing file"},
		{"external", "", 0, "another file"},
		{"vmdk", "", 0, "vmdk image"},
		{"vdi", "", 0, "vdi image"},
		{"vhdx", "", 0, "vhdx image"},
		{"vpc", "", 0, "vpc image"},
		{"empty", "", 0, "0 bytes"},
		{"fifo", "", 0, "neither a file nor"},
		{".", "", 0, "neither a file nor"},
		{"gone", "", 0, "no such file"},
	} {
		format, size, err := ProbeBase(filepath.Join(dir, c.name))
		if format != c.format || size != c.size || !strings.Contains(errorText(err), c.err) || (err == nil) != (c.err == "") {
			t.Errorf("%s: got %q, %d MiB, %v; want %q, %d MiB, %q", c.name, format, size, err, c.format, c.size, c.err)
		}
	}
}

// header returns a valid qcow2 header of version 3 for 1 GiB.
func header(change func([]byte)) []byte {
	h := make([]byte, 512)
	copy(h, qcow2Magic)
	be := binary.BigEndian
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], 16)
	be.PutUint64(h[24:], 1<<30)
	be.PutUint32(h[100:], qcow2V3Header)
	change(h)
	return h
}

func TestAHeaderThatLiesIsRefused(t *testing.T) {
	be := binary.BigEndian
	if h, err := readQcow2Header(bytes.NewReader(header(func([]byte) {}))); err != nil || h.size != 1<<30 {
		t.Fatalf("the header to begin with: %+v, %v", h, err)
	}
	for name, change := range map[string]func([]byte){
		"version":              func(h []byte) { be.PutUint32(h[4:], 4) },
		"cluster size":         func(h []byte) { be.PutUint32(h[20:], 60) },
		"no size":              func(h []byte) { be.PutUint64(h[24:], 0) },
		"a size below zero":    func(h []byte) { be.PutUint64(h[24:], 1<<63) },
		"features":             func(h []byte) { be.PutUint64(h[72:], 1<<40) },
		"header length":        func(h []byte) { be.PutUint32(h[100:], 8) },
		"endless extensions":   func(h []byte) { be.PutUint32(h[104:], 7); be.PutUint32(h[108:], 1<<30) },
		"header beyond itself": func(h []byte) { be.PutUint32(h[100:], 1<<31) },
	} {
		if got, err := readQcow2Header(bytes.NewReader(header(change))); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
	for name, change := range map[string]func([]byte){
		"by feature":   func(h []byte) { be.PutUint64(h[72:], incompatData) },
		"by extension": func(h []byte) { be.PutUint32(h[104:], 7); be.PutUint32(h[108:], 3); be.PutUint32(h[120:], extExternal) },
	} {
		if h, err := readQcow2Header(bytes.NewReader(header(change))); err != nil || !h.external {
			t.Errorf("data in another file %s: %+v, %v", name, h, err)
		}
	}
}

func FuzzQcow2Header(f *testing.F) {
	f.Add(header(func([]byte) {}))
	f.Add([]byte(qcow2Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readQcow2Header(bytes.NewReader(b))
		if err == nil && h.size <= 0 {
			t.Errorf("accepted with a size of %d", h.size)
		}
	})
}
