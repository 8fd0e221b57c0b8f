package qemu

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"
)

// imageInfo is the part of the output of "qemu-img info" that the tests check.
type imageInfo struct {
	Size    int64  `json:"virtual-size"`
	Format  string `json:"format"`
	Backing string `json:"backing-filename"`
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

func TestProbeBaseReturnsTheExactSize(t *testing.T) {
	path := t.TempDir() + "/raw"
	must(t, os.WriteFile(path, make([]byte, mib+512), 0o600))
	if format, size, err := ProbeBase(path); format != formatRaw || size != mib+512 || err != nil {
		t.Errorf("got %s, %d bytes, %v; want raw, %d bytes", format, size, err, mib+512)
	}
}
