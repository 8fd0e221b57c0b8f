package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/openapi"
	"vmand/test/harness"
)

// mountState mounts a file system at the daemon's state directory, until the test ends.
func mountState(d *harness.Daemon, mount func(dir string) error) {
	d.T.Helper()
	if err := os.MkdirAll(d.StateDir, 0o711); err != nil {
		d.T.Fatal(err)
	}
	if err := mount(d.StateDir); err != nil {
		d.T.Fatal(err)
	}
	d.T.Cleanup(func() {
		d.Kill()
		unmountState(d)
	})
	if err := os.Chmod(d.StateDir, 0o711); err != nil {
		d.T.Fatal(err)
	}
}

// unmountState kills the VMs and unmounts the state directory. It retries, because a killed
// process closes its files a moment later.
func unmountState(d *harness.Daemon) {
	d.T.Helper()
	d.KillVMs()
	harness.Eventually(d.T, 10*time.Second, "the file system to be unmounted", func() error {
		return unix.Unmount(d.StateDir, 0)
	})
}

// tmpfs returns a function that mounts a tmpfs.
func tmpfs(mib int) func(string) error {
	return func(dir string) error {
		return unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0711", mib))
	}
}

// fillFileSystem fills the file system of the state directory up to a number of MiB, and
// returns a function that frees the space.
func fillFileSystem(d *harness.Daemon, leave int) (free func()) {
	d.T.Helper()
	filler := filepath.Join(d.StateDir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		d.T.Fatal(err)
	}
	defer f.Close()
	if leave > 0 {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			d.T.Fatal(err)
		}
		if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-int64(leave)<<20); err != nil {
			d.T.Fatal(err)
		}
	} else {
		block := make([]byte, 1<<16)
		for ; len(block) > 0; block = block[:len(block)/2] {
			for err == nil {
				_, err = f.Write(block)
			}
			if !errors.Is(err, syscall.ENOSPC) {
				d.T.Fatal(err)
			}
			err = nil
		}
	}
	return func() {
		d.T.Helper()
		if err := os.Remove(filler); err != nil {
			d.T.Fatal(err)
		}
	}
}

// assertConsistent fails the test if there are violations after two passes of the observer.
func assertConsistent(d *harness.Daemon) {
	d.T.Helper()
	d.WaitPasses(2)
	for _, v := range d.Violations() {
		d.T.Error(v)
	}
}

// TestEveryRequestOnAFullFileSystem sends requests of each kind while the file system has no
// free byte. Each must take effect or fail clearly. With free space, the same daemon must
// carry out all of them.
func TestEveryRequestOnAFullFileSystem(t *testing.T) {
	d := harness.NewDaemon(t)
	mountState(d, tmpfs(24))
	d.Start()
	d.CreateTemplate()
	x, y := target{vm: "runs"}, target{vm: "stands"} // running and stopped
	running(d, &x)
	stopped(d, &y)
	attached(d, &x)
	disk(d, &y)
	free := fillFileSystem(d, 0)
	requests := []struct {
		method, path string
		body         any
		done         func() bool
	}{
		{"POST", "/disks", map[string]any{"size": 1}, func() bool { return len(d.Census().Disks) > 2 }},
		{"POST", "/vms", map[string]any{"name": "new", "template_name": "small"}, func() bool { return len(d.Census().VMs) > 2 }},
		{"POST", "/templates", map[string]any{"name": "new", "cpu_count": 1, "ram_amount": 64},
			func() bool { return d.Call("GET", "/templates/new", nil).Status == 200 }},
		{"PATCH", "/vms/stands", map[string]any{"description": "new"}, func() bool { return d.VM("stands").Description == "new" }},
		{"POST", "/disks/" + y.disk + "/attach", map[string]any{"vm_id": "runs"}, func() bool { return diskIs("attached")(d, y) }},
		{"POST", "/vms/stands/actions/start", nil, func() bool { return is("running")(d, y) }},
		{"POST", "/vms/runs/actions/pause", nil, func() bool { return is("paused")(d, x) }},
		{"POST", "/vms/runs/actions/stop", map[string]any{"force": true}, func() bool { return is("stopped")(d, x) }},
		{"DELETE", "/disks/" + y.disk, nil, func() bool { return isGone(diskPath)(d, y) }},
	}
	for _, r := range requests {
		before := r.done()
		a := d.Call(r.method, r.path, r.body, harness.Wait)
		switch after := r.done(); {
		case a.Status < 300 && after:
		case a.Status == 409 && !after: // it needs the effect of a request that failed
		case (a.Status == 507 || a.Status == 503) && after == before:
			if p := harness.As[openapi.Problem](a); a.Status == 503 && !strings.Contains(p.Detail, d.StateDir) {
				t.Errorf("%s answered a problem without the directory: %+v", a.Request, p)
			}
		default:
			t.Errorf("%s answered %d; effect: %t\n%s", a.Request, a.Status, after, a.Body)
		}
		t.Logf("%s answered %d", a.Request, a.Status)
	}
	d.Call("POST", "/disks", map[string]any{"size": 1}).Problem(507, "insufficient-storage")
	free()
	assertConsistent(d)
	for _, r := range requests {
		if r.done() {
			continue
		}
		if a := d.Call(r.method, r.path, r.body, harness.Wait); a.Status >= 300 && a.Status != 409 {
			t.Errorf("with free space, %s answered %d\n%s", a.Request, a.Status, a.Body)
		}
	}
	assertConsistent(d)
	d.DeleteAll()
	d.AssertEmpty()
}

// TestOutcomeOnAFullFileSystem fills the file system while a VM is stopping.
func TestOutcomeOnAFullFileSystem(t *testing.T) {
	d := harness.NewDaemon(t)
	mountState(d, tmpfs(24))
	d.Start()
	d.CreateTemplate()
	x := target{vm: "a"}
	running(d, &x)
	a := d.Call("POST", "/vms/a/actions/stop", map[string]any{"timeout_seconds": 2}).Want(202)
	free := fillFileSystem(d, 0)
	harness.Eventually(t, 20*time.Second, "the VM to end", func() error {
		if pid := d.VMPID("a"); pid != 0 {
			return fmt.Errorf("process %d runs", pid)
		}
		return nil
	})
	d.WaitPasses(1)
	free()
	assertConsistent(d)
	if v := d.VM("a"); v.State != "stopped" || harness.Deref(v.StateReason) != "requested" {
		t.Errorf("the VM is %s (%s), want stopped (requested)", v.State, harness.Deref(v.StateReason))
	}
	if op := d.Operation(a); op.State != "succeeded" {
		t.Errorf("the stop is %+v, want succeeded", op)
	}
}

// writer is a boot sector that writes to its disk forever: 32 KiB in every 64 KiB, from the
// first to the last. It uses INT 13h, function 43h, with a disk address packet at 0x7c28.
const writer = "\x31\xc0\x8e\xd8" +
	"\xc7\x06\x30\x7c\x80\x00\xc7\x06\x32\x7c\x00\x00" + // from sector 128 on
	"\xbe\x28\x7c\xb8\x00\x43\xcd\x13\x72\xea" + // write; start again after an error
	"\x81\x06\x30\x7c\x80\x00\x83\x16\x32\x7c\x00\xeb\xe9\x00" + // 128 further
	"\x10\x00\x40\x00\x00\x80\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00"

// writerDisk returns the setting that makes VMs boot the writer.
func writerDisk(t *testing.T) string {
	t.Helper()
	image := make([]byte, 1<<20)
	copy(image, writer)
	image[510], image[511] = 0x55, 0xaa
	dir, err := os.MkdirTemp("", "writer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "writer.raw")
	if err := errors.Join(os.Chmod(dir, 0o711), os.WriteFile(file, image, 0o644)); err != nil {
		t.Fatal(err)
	}
	return "VMAN_DEFAULT_BOOT_DISK=" + file
}

// startWriter starts a VM that writes to a disk of 96 MiB.
func startWriter(d *harness.Daemon, id string) {
	d.T.Helper()
	d.CreateVMWith(id, map[string]any{"root_disk_size": 96.0 / 1024})
	d.Action(id, "start")
}

// writtenBytes returns the allocated size of the root disk of a VM.
func writtenBytes(d *harness.Daemon, id string) int64 {
	d.T.Helper()
	info, err := os.Stat(filepath.Join(d.StateDir, "vms", id, "root.qcow2"))
	if err != nil {
		d.T.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestGuestPausedByAFullFileSystemContinues(t *testing.T) {
	d := harness.NewDaemon(t, writerDisk(t))
	mountState(d, tmpfs(160))
	d.Start()
	d.CreateTemplate()
	free := fillFileSystem(d, 24)
	startWriter(d, "a")
	v := d.WaitVM("a", "paused", "disk-full", 60*time.Second)
	detail := harness.Deref(v.StateReasonDetail)
	for _, word := range []string{filepath.Join(d.StateDir, "vms", "a", "root.qcow2"), "bytes are free"} {
		if !strings.Contains(detail, word) {
			t.Errorf("the detail %q does not contain %q", detail, word)
		}
	}
	d.WaitPasses(2)
	pid, was := d.VMPID("a"), writtenBytes(d, "a")
	if v := d.VM("a"); v.State != "paused" {
		t.Errorf("without free space the VM is %s, want paused", v.State)
	}
	free()
	d.WaitVM("a", "running", "requested", 20*time.Second)
	harness.Eventually(t, 60*time.Second, "the guest to write the rest", func() error {
		if now := writtenBytes(d, "a"); now < 90<<20 {
			return fmt.Errorf("it has written %d bytes, before that %d", now, was)
		}
		return nil
	})
	assertConsistent(d)
	if v := d.VM("a"); v.State != "running" || d.VMPID("a") != pid {
		t.Errorf("the VM is %s with process %d, want running with process %d", v.State, d.VMPID("a"), pid)
	}
}

// ext4 makes a file system in a file and returns a function that mounts it on a loop device.
func ext4(t *testing.T) (mount func(dir string) error) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 256<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/sbin/mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return func(dir string) error {
		// A mount namespace that another program has just made, as passt does, keeps the
		// file system for a moment after it was unmounted here. Until it is gone, a mount
		// returns the same one, errors included.
		harness.Eventually(t, 10*time.Second, "the loop device of "+image+" to be freed", func() error {
			out, err := exec.Command("losetup", "--noheadings", "--associated", image).CombinedOutput()
			if err == nil && len(out) > 0 {
				err = errors.New(string(out))
			}
			return err
		})
		mount := exec.Command("mount", "-o", "loop,errors=remount-ro", image, dir)
		if out, err := mount.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// TestBrokenFileSystem breaks the file system below a daemon with VMs. It turns
// read-only, as ext4 does after an error, or fails with EIO, as without its disk.
func TestBrokenFileSystem(t *testing.T) {
	breaks := map[string]func(dir string) error{"read-only": turnReadOnly, "i-o errors": shutDown}
	for name, ruin := range breaks {
		t.Run(name, func(t *testing.T) {
			d := harness.NewDaemon(t, writerDisk(t))
			mount := ext4(t)
			mountState(d, mount)
			d.Start()
			d.CreateTemplate()
			x := target{vm: "stands"}
			stopped(d, &x)
			disk(d, &x)
			startWriter(d, "writes")
			if err := ruin(d.StateDir); err != nil {
				t.Fatal(err)
			}
			// That the guest is paused cannot be recorded. The API shows it as long as
			// the records can be read.
			harness.Eventually(t, 60*time.Second, "the guest to be paused", func() error {
				a := d.Call("GET", "/vms/writes/why", nil)
				body := string(a.Body)
				unreadable := a.Status == 503 && strings.Contains(body, "file system of "+d.StateDir)
				if unreadable || strings.Contains(body, "io-error") {
					return nil
				}
				return errors.New(body)
			})
			for _, r := range []struct {
				method, path string
				body         any
			}{
				{"POST", "/disks", map[string]any{"size": 1}},
				{"POST", "/vms", map[string]any{"name": "new", "template_name": "small"}},
				{"POST", "/vms/stands/actions/start", nil},
				{"PATCH", "/vms/stands", map[string]any{"description": "new"}},
				{"DELETE", "/disks/" + x.disk, nil},
			} {
				a := d.Call(r.method, r.path, r.body)
				p := harness.As[openapi.Problem](a)
				if a.Status != 503 && a.Status != 507 || !strings.Contains(p.Detail, d.StateDir) {
					t.Errorf("%s answered %d, want 503 or 507 and the directory: %s", a.Request, a.Status, a.Body)
				}
			}
			if a := d.Call("GET", "/health", nil); a.Status != 503 {
				t.Errorf("GET /health answered %d, want 503\n%s", a.Status, a.Body)
			}
			d.Kill()
			unmountState(d)
			if err := mount(d.StateDir); err != nil {
				t.Fatal(err)
			}
			d.Start()
			assertConsistent(d)
			if c := d.Census(); len(c.VMs) != 2 || len(c.Disks) != 1 || c.VMs["stands"].Description != "" {
				t.Errorf("the API lists %+v, want the VMs and the disk from before", c)
			}
			d.Action("stands", "start")
		})
	}
}

// turnReadOnly makes ext4 react as to an error.
func turnReadOnly(dir string) error {
	out, err := exec.Command("findmnt", "-n", "-o", "SOURCE", dir).Output()
	if err != nil {
		return err
	}
	device := filepath.Base(strings.TrimSpace(string(out)))
	return os.WriteFile(filepath.Join("/sys/fs/ext4", device, "trigger_fs_error"), []byte("a test"), 0)
}

// shutDown makes the file system fail with EIO from now on: EXT4_IOC_SHUTDOWN without a
// flush.
func shutDown(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const ioctlShutdown, noLogFlush = 0x8004587d, 2
	return unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, noLogFlush)
}
