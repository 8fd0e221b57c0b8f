package qemu

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/qemu/qmp/qmptest"
	"vmand/test/need"
	"vmand/vm"
)

// smallDisk mounts a file system of a size in bytes on a directory, and returns a
// function that grows it. It needs root.
func smallDisk(t *testing.T, dir string, bytes int) (grow func(bytes int)) {
	t.Helper()
	size := func(n int) string { return fmt.Sprintf("size=%d,mode=0711", n) }
	if err := unix.Mount("none", dir, "tmpfs", 0, size(bytes)); err != nil {
		need.Privilege(t, err)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return func(bytes int) {
		t.Helper()
		must(t, unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT, size(bytes)))
	}
}

func TestGuestWithAFullDiskWaitsAndContinues(t *testing.T) {
	h := newHost(t)
	grow := smallDisk(t, h.layout.inState(vmsDir), 1*mib)
	h.start("web", guestWrites)
	h.awaitStatus("web", statusIOError)
	path := h.layout.inState(vmRootDisk("web"))
	isFull := func() {
		t.Helper()
		o := h.Observe(t.Context(), "web")
		if !o.NoSpace || o.FreeMiB != 0 || vm.Settle(vm.Running, vm.ReasonRequested, o).Reason != vm.ReasonDiskFull {
			t.Errorf("Observe returns %+v", o)
		}
		for _, words := range []string{"the root disk", path, "full", "bytes are free"} {
			if !strings.Contains(o.Trouble, words) {
				t.Errorf("%q does not name %q", o.Trouble, words)
			}
		}
	}
	isFull()
	must(t, h.Resume(t.Context(), "web")) // without effect
	h.awaitStatus("web", statusIOError)
	isFull()
	h.reopen()
	isFull()

	grow(64 * mib)
	seen, err := h.Survey(t.Context())
	must(t, err)
	if o := seen.VMs["web"]; !o.NoSpace || o.FreeMiB < vm.ResumeFreeMiB {
		t.Errorf("with room again Observe returns %+v", o)
	}
	must(t, h.Resume(t.Context(), "web"))
	h.awaitSerial("web", "done\n")
	if o := h.Observe(t.Context(), "web"); o.Status != vm.StatusRunning || o.NoSpace || o.Trouble != "" {
		t.Errorf("at the end Observe returns %+v", o)
	}
	if st, err := os.Stat(path); err != nil || st.Size() < guestWritesBytes {
		t.Errorf("the disk has %d bytes, %v", st.Size(), err)
	}
}

// block returns a disk in the answer to query-block.
func block(qdev, status string) any {
	return map[string]any{"qdev": qdev, "io-status": status, "inserted": map[string]any{"node-name": "n"}}
}

func TestAnIOErrorNamesTheDisk(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{
		"query-status": func(string, qmptest.Args) (any, error) { return map[string]string{"status": "io-error"}, nil },
		"query-block": func(string, qmptest.Args) (any, error) {
			return []any{
				block("/machine/peripheral/root/virtio-backend", "ok"), block("disk-data", "failed"), block("disk-more", "failed"),
				map[string]any{"qdev": "cd0", "removable": true},
			}, nil
		},
	}))
	o := f.Observe(t.Context(), "web")
	want := "data disk data had an I/O error: " + f.layout.inState(dataDisk("data")) +
		"; data disk more had an I/O error: " + f.layout.inState(dataDisk("more"))
	if o.Trouble != want || o.NoSpace || vm.Settle(vm.Running, "", o).Reason != vm.ReasonIOError {
		t.Errorf("Observe returns %+v\nwant %s", o, want)
	}
}

func TestTheFullestFileSystemCounts(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{
		"query-status": func(string, qmptest.Args) (any, error) { return map[string]string{"status": "io-error"}, nil },
		"query-block": func(string, qmptest.Args) (any, error) {
			return []any{block("/machine/peripheral/root/virtio-backend", "nospace"), block("strange", "nospace")}, nil
		},
	}))
	o := f.Observe(t.Context(), "web") // the root disk has no file, so its free space is unknown
	if !o.NoSpace || o.FreeMiB != 0 || !strings.Contains(o.Trouble, "the root disk") || !strings.Contains(o.Trouble, `the disk "strange"`) {
		t.Errorf("Observe returns %+v", o)
	}
}

func TestOnlyAGuestWithAnIOErrorIsAskedForItsDisks(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(nil))
	for range 3 {
		f.awaitStatus("web", vm.StatusRunning)
	}
	asked := 0
	for _, c := range f.server.Commands() {
		if c == "query-block" {
			asked++
		}
	}
	if asked > 1 { // once for each connection
		t.Errorf("QEMU was asked %d times", asked)
	}
}

func TestADamagedImageIsRemembered(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(nil))
	f.awaitStatus("web", vm.StatusRunning)
	report := func(node string, fatal bool) {
		t.Helper()
		news := f.newsOf("web")
		f.server.Event("BLOCK_IMAGE_CORRUPTED", map[string]any{
			"device":    "",
			"node-name": node,
			"msg":       "L2 entry " + strings.Repeat("x", 1000),
			"fatal":     fatal,
		})
		await(t, "the driver nudges", func() bool { return f.newsOf("web") > news })
	}
	report(rootNode, true)
	report(diskNode("data"), false)
	report(diskNode("data"), true)
	trouble := func() string { return f.Observe(t.Context(), "web").Trouble }
	for _, words := range []string{
		"the image of the root disk is damaged, QEMU no longer uses it: " + f.layout.inState(vmRootDisk("web")), "L2 entry",
		"the image of data disk data is damaged, QEMU no longer uses it: " + f.layout.inState(dataDisk("data")),
	} {
		if got := trouble(); !strings.Contains(got, words) {
			t.Errorf("%q does not contain %q", got, words)
		}
	}
	f.sess.setMute(true)
	seen, err := f.Survey(t.Context())
	must(t, err)
	if got := seen.VMs["web"].Trouble; !strings.Contains(got, "root disk") {
		t.Errorf("while QEMU is mute: %q", got)
	}
	await(t, "QEMU answers again", func() bool { return !f.sess.isMute() })

	f.sess.forgetDamage(diskDevice("data"))
	for i := range 100 {
		report(fmt.Sprintf("strange-%d", i), true)
	}
	if got := trouble(); strings.Contains(got, "data disk") || len(got) > 16<<10 {
		t.Errorf("at the end: %d bytes, %.300q", len(got), got)
	}
}

func TestADamagedDiskOfARealGuestIsSeen(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestWrites)
	damage(t, h.layout.inState(vmRootDisk("web")))
	h.startSpec(s)
	for _, restart := range []func(){func() {}, h.reopen} {
		restart()
		await(t, "the damage is seen", func() bool {
			return strings.Contains(h.Observe(t.Context(), "web").Trouble, "the image of the root disk is damaged, QEMU no longer uses it")
		})
	}
}

func TestEarlierDamageIsQueried(t *testing.T) {
	t.Parallel()
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{"query-block": func(string, qmptest.Args) (any, error) {
		corrupt := map[string]any{"image": map[string]any{"format-specific": map[string]any{"type": "qcow2", "data": map[string]any{"corrupt": true}}}}
		return []any{
			map[string]any{"qdev": "/machine/peripheral/root/virtio-backend", "inserted": corrupt}, map[string]any{"qdev": "disk-data"},
			block("disk-fine", "ok"), map[string]any{"qdev": "cd0", "removable": true},
		}, nil
	}}))
	f.awaitStatus("web", vm.StatusRunning)
	want := fmt.Sprintf("the image of data disk data is damaged, QEMU no longer uses it: %s (QEMU gives no details); "+
		"the image of the root disk is damaged, QEMU still uses it: %s (QEMU gives no details)",
		f.layout.inState(dataDisk("data")), f.layout.inState(vmRootDisk("web")))
	news := f.newsOf("web")
	await(t, "the driver nudges", func() bool { return f.newsOf("web") > news })
	if got := f.Observe(t.Context(), "web").Trouble; got != want {
		t.Errorf("the trouble is %q\nwant %q", got, want)
	}
}

// damage makes the first entry of the L1 table of a qcow2 image point between two
// clusters.
func damage(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	at := make([]byte, 8)
	if _, err := f.ReadAt(at, 40); err != nil { // the offset of the L1 table
		t.Fatal(err)
	}
	offset := int64(0)
	for _, b := range at {
		offset = offset<<8 | int64(b)
	}
	if _, err := f.WriteAt([]byte{0x80, 0, 0, 0, 0, 5, 2, 0}, offset); err != nil {
		t.Fatal(err)
	}
}

func TestWatchdogPausesTheGuest(t *testing.T) {
	h := newHost(t)
	h.start("web", guestStarvesWatchdog)
	h.awaitStatus("web", vm.RunStatus(vm.ReasonWatchdog))
	o := h.Observe(t.Context(), "web")
	if v := vm.Settle(vm.Running, vm.ReasonRequested, o); v.State != vm.Paused || v.Reason != vm.ReasonWatchdog {
		t.Errorf("it settles as %+v", v)
	}
	if h.newsOf("web") == 0 {
		t.Error("there was no nudge")
	}
	must(t, h.Resume(context.WithoutCancel(t.Context()), "web"))
	h.awaitStatus("web", vm.StatusRunning)
}
