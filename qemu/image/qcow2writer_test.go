package image

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmand/test/need"
)

// imageInfo is the part of the output of "qemu-img info" that the tests compare.
type imageInfo struct {
	Size     int64  `json:"virtual-size"`
	Format   string `json:"format"`
	Cluster  int64  `json:"cluster-size"`
	Backing  string `json:"backing-filename"`
	Kind     string `json:"backing-filename-format"`
	Specific struct {
		Data struct {
			Compat  string `json:"compat"`
			Bits    int    `json:"refcount-bits"`
			Corrupt bool   `json:"corrupt"`
			Lazy    bool   `json:"lazy-refcounts"`
			L2      bool   `json:"extended-l2"`
			Packing string `json:"compression-type"`
		} `json:"data"`
	} `json:"format-specific"`
}

func infoOf(t testing.TB, path string) (i imageInfo) {
	t.Helper()
	out, err := exec.Command("qemu-img", "info", "--output=json", "-U", path).Output()
	if err == nil {
		err = json.Unmarshal(out, &i)
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func img(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v: %s", args, err, out)
	}
}

func TestWriteQcow2MatchesQEMUImg(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img")
	dir := t.TempDir()
	base := filepath.Join(dir, "base, with a comma=.raw")
	if err := os.WriteFile(base, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, backing := range map[string][2]string{
		"alone":          {},
		"on raw":         {base, string(Raw)},
		"on vmdk":        {"/no/such/file", string(VMDK)},
		"on a long path": {"/" + strings.Repeat("a", maxNameBytes-1), string(Qcow2)},
	} {
		for _, size := range []int64{mib, 511 * mib, 512 * mib, 513 * mib, 10 << 30, maxVirtual} {
			ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
			f, err := os.Create(ours)
			if err != nil {
				t.Fatal(err)
			}
			if err := WriteQcow2(f, size, backing[0], backing[1]); err != nil {
				t.Fatal(err)
			}
			args := []string{"create", "-q", "-f", "qcow2"}
			if backing[0] != "" {
				args = append(args, "-u", "-F", backing[1], "-b", backing[0])
			}
			f.Close()
			img(t, append(args, theirs, jsonNumber(size))...)
			got, want := infoOf(t, ours), infoOf(t, theirs)
			if got != want || got.Size != size || got.Backing != backing[0] {
				t.Errorf("%s, %d bytes: got\n%+v\nwant\n%+v", name, size, got, want)
			}
			if backing[0] == "" || backing[0] == base {
				img(t, "check", "-q", ours)
			} else { // check opens the backing file
				img(t, "rebase", "-q", "-u", "-f", "qcow2", "-b", "", ours)
				img(t, "check", "-q", ours)
			}
		}
	}
}

func jsonNumber(n int64) string { b, _ := json.Marshal(n); return string(b) }

func TestTheImageOfWriteQcow2CanBeFilled(t *testing.T) {
	t.Parallel()
	need.Programs(t, "qemu-img")
	dir := t.TempDir()
	ours, data := filepath.Join(dir, "ours"), filepath.Join(dir, "data")
	f, err := os.Create(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(64 * mib)
	if err := WriteQcow2(f, size, "", ""); err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i / 4096)
	}
	if err := os.WriteFile(data, content, 0o600); err != nil {
		t.Fatal(err)
	}
	img(t, "convert", "-n", "-f", "raw", "-O", "qcow2", data, ours)
	img(t, "compare", "-f", "raw", "-F", "qcow2", data, ours)
	img(t, "resize", "-q", "-f", "qcow2", ours, "2T")
	img(t, "check", "-q", ours)
}

func TestWriteQcow2RefusesABadBackingFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string][2]string{
		"no format":   {"/base", ""},
		"no name":     {"", string(Raw)},
		"a long name": {"/" + strings.Repeat("a", maxNameBytes), string(Raw)},
	} {
		if _, err := qcow2Head(mib, c[0], c[1]); err == nil {
			t.Errorf("%s: the header is written", name)
		}
	}
}

func BenchmarkEmptyImage(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "image"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	content := "/var/lib/vman/images/" + strings.Repeat("0a", 32)
	for b.Loop() {
		if err := f.Truncate(0); err != nil {
			b.Fatal(err)
		}
		if err := WriteQcow2(f, 16<<30, content, string(Qcow2)); err != nil {
			b.Fatal(err)
		}
	}
}
