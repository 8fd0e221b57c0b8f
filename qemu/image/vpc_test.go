package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"vmand/test/need"
)

// sizeInQEMU returns the size that QEMU gives the disk in a VHD.
func sizeInQEMU(t *testing.T, path string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	out := run(t, ".", "qemu-img", "info", "--output=json", "-f", "vpc", path)
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

// VirtualBox and Virtual PC are not among the programs that QEMU knows.
func TestVPCDiskHasItsRecordedSize(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img")
	dir := t.TempDir()
	data := noise(9 * mib)
	clear(data[mib : 7*mib])
	if err := os.WriteFile(filepath.Join(dir, "data"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{"force_size=on", "subformat=fixed,force_size=on"} {
		for creator, known := range map[string]bool{"win ": true, "vbox": false, "vpc ": false} {
			path := filepath.Join(dir, "vhd")
			run(t, dir, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, "data", path)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, footer := range [][]byte{b[:512], b[len(b)-512:]} {
				if bytes.HasPrefix(footer, []byte(vpcMagic)) {
					copy(footer[vpcCreatorAt:], creator)
					copy(footer[56:], []byte{1, 14, 4, 17}) // the geometry of 270*4*17 sectors
					be.PutUint32(footer[vpcChecksumAt:], vpcSum(footer, vpcChecksumAt))
				}
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := sizeInQEMU(t, path); (got == 9*mib) != known {
				t.Errorf("%s of %q: QEMU gives it %d bytes, known is %v", options, creator, got, known)
			}
			i, store := testImporter(t, Options{})
			sendPieces(t, i, "vhd", b, 3)
			uploaded, err := i.Finish(t.Context(), "vhd", Want{Sum: Sum{SHA256: sumOf(b)}})
			if err != nil {
				t.Errorf("%s of %q: %v", options, creator, err)
				continue
			}
			got, err := i.Import(t.Context(), bytes.NewReader(b), Want{Sum: Sum{SHA256: sumOf(b)}, Format: VPC})
			if err != nil || got.Info != (Info{VPC, 9 * mib}) || got != uploaded || (got.SHA256 == sumOf(b)) != known {
				t.Errorf("%s of %q: got %+v, %v, uploaded %+v", options, creator, got, err, uploaded)
				continue
			}
			stored := filepath.Join(store, got.SHA256)
			content, err := os.ReadFile(stored)
			if err != nil || sumOf(content) != got.SHA256 {
				t.Errorf("%s of %q: the content has the sum %s, %v", options, creator, sumOf(content), err)
			}
			if size := sizeInQEMU(t, stored); size != 9*mib {
				t.Errorf("%s of %q: QEMU gives the content %d bytes", options, creator, size)
			}
			run(t, dir, "qemu-img", "compare", "-f", "raw", "-F", "vpc", "data", stored)
		}
	}
}

// The checksum of an upload is that of its own bytes, also when vmand is killed between two steps of
// Finish.
func TestUploadedVPCIsFinishedAfterKill(t *testing.T) {
	t.Parallel()
	b := goodFixedVPC()
	footer := b[len(b)-sectorBytes:]
	copy(footer[vpcCreatorAt:], "vbox")
	copy(footer[56:], []byte{1, 14, 4, 17})
	be.PutUint32(footer[vpcChecksumAt:], vpcSum(footer, vpcChecksumAt))
	want := Want{Sum: Sum{SHA256: sumOf(b)}, Format: VPC}
	// dir is what a kill in a step left.
	finishes := func(step, dir string) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		i, err := NewImporter(root, Options{})
		if err != nil {
			t.Fatal(err)
		}
		at, err := i.Uploaded("vhd")
		if err != nil || at != 0 && at != int64(len(b)) {
			t.Fatalf("%s: %d bytes uploaded, %v", step, at, err)
		}
		if at == 0 {
			sendPieces(t, i, "vhd", b, 1)
		}
		c, err := i.Finish(t.Context(), "vhd", want)
		if err != nil || c.SHA256 == sumOf(b) {
			t.Errorf("killed at %s: %+v, %v", step, c, err)
			return
		}
		wantFiles(t, dir, c.SHA256)
	}
	killed := map[string]string{}
	kill := func(step, dir string) {
		killed[step] = filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(killed[step], os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	var dir string
	var i *Importer
	i, dir = testImporter(t, Options{Seal: func(*os.File) error {
		kill("seal", dir)
		return nil
	}})
	sendPieces(t, i, "vhd", b, 1)
	failed := errors.New("failed")
	w := want
	w.Ready = func(Content) error { return failed }
	if _, err := i.Finish(t.Context(), "vhd", w); !errors.Is(err, failed) {
		t.Error(err)
	}
	w.Ready = func(Content) error {
		kill("ready", dir)
		return nil
	}
	if _, err := i.Finish(t.Context(), "vhd", w); err != nil {
		t.Errorf("after a failure: %v", err)
	}
	if len(killed) != 2 {
		t.Errorf("killed at %v, want two steps", killed)
	}
	for step, dir := range killed {
		finishes(step, dir)
	}
}

// The last sector of an image may be the footer of a VHD that a guest has on its disk.
func TestVPCFooterInDataOfAnImageIsNoSecondFormat(t *testing.T) {
	t.Parallel()
	b := goodQcow2()
	fixed := goodFixedVPC()
	copy(b[len(b)-512:], fixed[mib:])
	if info, err := Inspect(bytes.NewReader(b), int64(len(b))); err != nil || info.Format != Qcow2 {
		t.Errorf("got %+v, %v; want a qcow2", info, err)
	}
}

func TestDifferencingVPCIsRefused(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Flaw{
		"vpc with a parent":                     Hostile,
		"vpc with the id of a parent":           Hostile,
		"vpc of fixed size that is a qcow2 too": Hostile,
		"vpc that is cut off":                   Damaged,
		"vpc of fixed size that is cut off":     Damaged,
		"vpc of type 9":                         Unsupported,
	} {
		for _, h := range hostileVPC() {
			if h.name != name {
				continue
			}
			_, err := Inspect(bytes.NewReader(h.content), int64(len(h.content)))
			if r, ok := err.(*Rejected); !ok || r.Flaw != want {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
	}
}
