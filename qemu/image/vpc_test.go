package image

import (
	"bytes"
	"encoding/json"
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
