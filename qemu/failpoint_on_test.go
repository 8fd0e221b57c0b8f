//go:build failpoints

package qemu

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

// failPointDir names the directory of the host that a test's child works on.
const failPointDir = "VMAN_TEST_FAILPOINT_DIR"

// failPointDisc is the content of a drive.
var failPointDisc = make([]byte, mib)

// pass reaches every fail point on a host.
func pass(t *testing.T, h *testHost) {
	s := h.create("web", guestObeys)
	must(t, h.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: 16}, nil, nil))
	disk := vm.Disk{ID: "data", VMID: "web", MountPoint: "/dev/sdb", DiskFile: vm.DiskFile{SizeMiB: 16}}
	h.startSpec(s)
	must(t, h.AttachDisk(t.Context(), disk))
	must(t, h.ResizeDisk(t.Context(), disk, 24))
	must(t, h.DetachDisk(t.Context(), disk))
	disc := []vm.CDROM{{ID: "cd-1", Image: "disc", SHA256: h.content(failPointDisc)}}
	must(t, h.SetCDROMs(t.Context(), "web", disc))
	must(t, h.SetCDROMs(t.Context(), "web", nil))
	must(t, h.Reset(t.Context(), "web"))
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Timeout: time.Minute}, nil))
	must(t, h.DeleteVM(t.Context(), "web"))
	must(t, h.DeleteDisk(t.Context(), "data"))
	h.start("net", guestEjects)
	must(t, h.AttachNIC(t.Context(), "net", userPort(1)))
	must(t, h.DetachNIC(t.Context(), "net", 1))
	must(t, h.Shutdown(t.Context(), "net", vm.StopOptions{Force: true}, nil))
	must(t, h.DeleteVM(t.Context(), "net"))
}

func TestEveryFailPointIsReached(t *testing.T) {
	if dir := os.Getenv(failPointDir); dir != "" {
		h := &testHost{t: t, dir: dir, news: make(map[string]int)}
		h.open()
		pass(t, h)
		return
	}
	var all []string
	for _, names := range FailPoints {
		all = append(all, names...)
	}
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			must(t, h.Close())
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+strings.Split(t.Name(), "/")[0]+"$", "-test.v")
			child.Env = append(os.Environ(), failPointDir+"="+h.dir, "VMAN_FAILPOINT="+name)
			out, _ := child.CombinedOutput()
			h.open() // the next vmand
			if got := child.ProcessState.String(); got != "signal: killed" {
				t.Fatalf("the child ended with %s\n%s", got, out)
			}
			for _, id := range []string{"web", "net"} {
				must(t, h.Shutdown(t.Context(), id, vm.StopOptions{Force: true}, nil))
				must(t, h.DeleteVM(t.Context(), id))
			}
			must(t, h.DeleteDisk(t.Context(), "data"))
			must(t, h.DeleteImage(t.Context(), fmt.Sprintf("%x", sha256.Sum256(failPointDisc))))
			if left := filesBelow(t, h.Driver); len(left) != 0 {
				t.Errorf("files are left: %q", left)
			}
			if left, err := os.ReadDir(h.layout.run); err != nil || len(left) != 0 {
				t.Errorf("left in the runtime directory: %v, %v", left, err)
			}
		})
	}
}
