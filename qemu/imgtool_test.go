package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmand/vm"
)

// toolDir names the directory that the child of a test works in.
const toolDir = "VMAN_TEST_TOOL_DIR"

func TestQEMUImgEndsWithVmand(t *testing.T) {
	pidOf := func(dir string) string {
		b, _ := os.ReadFile(filepath.Join(dir, "pid"))
		return strings.TrimSpace(string(b))
	}
	if dir := os.Getenv(toolDir); dir != "" {
		d := newDriver(t, Options{ImgBinary: fakeTool(t, fmt.Sprintf("echo $$ >%s/pid; exec sleep 1000", dir))})
		must(t, d.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: 16}, nil, nil))
		_ = d.ResizeDisk(t.Context(), vm.Disk{ID: "data"}, 32)
		t.Fatal("qemu-img has ended by itself")
	}
	dir := tempDir(t)
	must(t, os.Chmod(dir, 0o777)) // the tool runs as another user
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), toolDir+"="+dir, "TMPDIR="+dir)
	must(t, child.Start())
	await(t, "the tool runs", func() bool { return pidOf(dir) != "" })
	tool := "/proc/" + pidOf(dir)
	if _, err := os.Stat(tool); err != nil {
		t.Errorf("the tool: %v", err)
	}
	must(t, child.Process.Kill())
	child.Wait()
	await(t, "the tool has ended", func() bool {
		status, err := os.ReadFile(tool + "/status")
		return err != nil || strings.Contains(string(status), "\nState:\tZ")
	})
}
