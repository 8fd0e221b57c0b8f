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

// mountState gives the daemon a file system of its own for its state. It is
// unmounted when the daemon and its VMs have ended.
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

// unmountState ends the VMs and unmounts: a process that was killed takes a
// moment to close its files.
func unmountState(d *harness.Daemon) {
	d.T.Helper()
	d.KillVMs()
	harness.Eventually(d.T, 10*time.Second, "the file system to be unmounted", func() error { return unix.Unmount(d.StateDir, 0) })
}

func tmpfs(mib int) func(string) error {
	return func(dir string) error {
		return unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0711", mib))
	}
}

// fillFileSystem leaves no room on the daemon's file system but so many MiB, and returns
// what makes room again.
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

// assertConsistent fails the test if nothing is settled after two passes.
func assertConsistent(d *harness.Daemon) {
	d.T.Helper()
	d.WaitPasses(2)
	for _, v := range d.Violations() {
		if !strings.Contains(v, "filler") {
			d.T.Error(v)
		}
	}
}

// TestEveryRequestOnAFullFileSystem makes each kind of request when there is no
// room for a byte. What it answers is either done or clearly not, and once there
// is room all of it can be done, by the same daemon.
func TestEveryRequestOnAFullFileSystem(t *testing.T) {
	d := harness.NewDaemon(t)
	mountState(d, tmpfs(24))
	d.Start()
	d.CreateTemplate()
	x, y := target{vm: "runs"}, target{vm: "stands"}
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
		{"POST", "/templates", map[string]any{"name": "new", "cpu_count": 1, "ram_amount": 64}, func() bool { return d.Call("GET", "/templates/new", nil).Status == 200 }},
		{"PATCH", "/vms/stands", map[string]any{"description": "new"}, func() bool { return d.VM("stands").Description == "new" }},
		{"POST", "/disks/" + y.disk + "/attach", map[string]any{"vm_id": "runs"}, func() bool { return diskIs("attached")(d, y) }},
		{"POST", "/vms/stands/actions/start", nil, func() bool { return is("running")(d, y) }},
		{"POST", "/vms/runs/actions/pause", nil, func() bool { return is("paused")(d, x) }},
		{"POST", "/vms/runs/actions/stop", map[string]any{"force": true}, func() bool { return is("stopped")(d, x) }},
		{"DELETE", "/disks/" + y.disk, nil, func() bool { return gone(diskPath)(d, y) }},
	}
	for _, r := range requests {
		before := r.done()
		a := d.Call(r.method, r.path, r.body, harness.Wait)
		switch after := r.done(); {
		case a.Status < 300 && after:
		case a.Status == 409 && !after: // what it needs was not done
		case (a.Status == 507 || a.Status == 503) && after == before:
			if p := harness.As[openapi.Problem](a); a.Status == 503 && !strings.Contains(p.Detail, d.StateDir) {
				t.Errorf("%s: the problem does not say where: %+v", a.Request, p)
			}
		default:
			t.Errorf("%s answered %d, done: %t\n%s", a.Request, a.Status, after, a.Body)
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
			t.Errorf("with room again, %s answered %d\n%s", a.Request, a.Status, a.Body)
		}
	}
	assertConsistent(d)
	d.DeleteAll()
	d.AssertEmpty()
}

// TestAnOutcomeThatFindsNoRoom fills the file system while a guest is being
// asked to stop.
func TestAnOutcomeThatFindsNoRoom(t *testing.T) {
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
			return fmt.Errorf("its process is %d", pid)
		}
		return nil
	})
	d.WaitPasses(1)
	free()
	assertConsistent(d)
	if v := d.VM("a"); v.State != "stopped" || harness.Deref(v.StateReason) != "requested" {
		t.Errorf("the VM is %s (%s)", v.State, harness.Deref(v.StateReason))
	}
	if op := d.Operation(a); op.State != "succeeded" {
		t.Errorf("the stop is %+v", op)
	}
}

// writer is a boot sector that writes to its disk, 32 KiB in every 64, from its
// beginning to its end, again and again: INT 13h, function 43h, over a disk
// address packet at 0x7c28.
const writer = "\x31\xc0\x8e\xd8" +
	"\xc7\x06\x30\x7c\x80\x00\xc7\x06\x32\x7c\x00\x00" + // from sector 128 on
	"\xbe\x28\x7c\xb8\x00\x43\xcd\x13\x72\xea" + // write; anew when there is none of this number
	"\x81\x06\x30\x7c\x80\x00\x83\x16\x32\x7c\x00\xeb\xe9\x00" + // 128 further
	"\x10\x00\x40\x00\x00\x80\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00"

// writerDisk makes a boot disk of the writer, where QEMU's user can read it.
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

// startWriter starts a VM that fills its disk of 96 MiB.
func startWriter(d *harness.Daemon, id string) {
	d.T.Helper()
	d.Call("POST", "/vms", map[string]any{"template_name": "small", "name": id, "root_disk_size": 96.0 / 1024}).Want(201)
	d.Action(id, "start")
}

func writtenBytes(d *harness.Daemon, id string) int64 {
	d.T.Helper()
	info, err := os.Stat(filepath.Join(d.StateDir, "vms", id, "root.qcow2"))
	if err != nil {
		d.T.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestAGuestThatFindsTheFileSystemFullGoesOnWhenThereIsRoom(t *testing.T) {
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
			t.Errorf("the detail %q does not say %q", detail, word)
		}
	}
	d.WaitPasses(2)
	pid, was := d.VMPID("a"), writtenBytes(d, "a")
	if v := d.VM("a"); v.State != "paused" {
		t.Errorf("without room it is %s", v.State)
	}
	free()
	d.WaitVM("a", "running", "requested", 20*time.Second)
	harness.Eventually(t, 60*time.Second, "the guest to write the rest", func() error {
		if now := writtenBytes(d, "a"); now < 90<<20 {
			return fmt.Errorf("%d bytes; it had written %d", now, was)
		}
		return nil
	})
	assertConsistent(d)
	if v := d.VM("a"); v.State != "running" || d.VMPID("a") != pid {
		t.Errorf("afterwards it is %s, with process %d; it was %d", v.State, d.VMPID("a"), pid)
	}
}

// ext4 mounts a file system on a loop device of a file of its own, and returns
// the mount and the device's name.
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
		if out, err := exec.Command("mount", "-o", "loop,errors=remount-ro", image, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// TestAFileSystemThatBreaks takes the file system from under a daemon with VMs:
// it turns read-only, as ext4 does when it finds itself damaged, or answers EIO
// to everything, as when the disk is gone.
func TestAFileSystemThatBreaks(t *testing.T) {
	for name, ruin := range map[string]func(dir string) error{"read-only": turnReadOnly, "i-o errors": shutDown} {
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
			// It cannot be recorded any more that the guest waits. It can be seen, as
			// long as the records can be read.
			harness.Eventually(t, 60*time.Second, "the guest to be paused", func() error {
				a := d.Call("GET", "/vms/writes/why", nil)
				if a.Status == 503 && strings.Contains(string(a.Body), "file system of "+d.StateDir) || strings.Contains(string(a.Body), "io-error") {
					return nil
				}
				return errors.New(string(a.Body))
			})
			for _, r := range [][3]any{{"POST", "/disks", map[string]any{"size": 1}}, {"POST", "/vms", map[string]any{"name": "new", "template_name": "small"}},
				{"POST", "/vms/stands/actions/start", nil}, {"PATCH", "/vms/stands", map[string]any{"description": "new"}}, {"DELETE", "/disks/" + x.disk, nil}} {
				a := d.Call(r[0].(string), r[1].(string), r[2])
				if p := harness.As[openapi.Problem](a); a.Status != 503 && a.Status != 507 || !strings.Contains(p.Detail, d.StateDir) {
					t.Errorf("%s answered %d, and does not say what is wrong: %s", a.Request, a.Status, a.Body)
				}
			}
			if a := d.Call("GET", "/health", nil); a.Status != 503 {
				t.Errorf("health answered %d\n%s", a.Status, a.Body)
			}
			d.Kill()
			unmountState(d)
			if err := mount(d.StateDir); err != nil {
				t.Fatal(err)
			}
			d.Start()
			assertConsistent(d)
			if c := d.Census(); len(c.VMs) != 2 || len(c.Disks) != 1 || c.VMs["stands"].Description != "" {
				t.Errorf("there is %+v", c)
			}
			d.Action("stands", "start")
		})
	}
}

// turnReadOnly has ext4 do what it does when it finds an error.
func turnReadOnly(dir string) error {
	out, err := exec.Command("findmnt", "-n", "-o", "SOURCE", dir).Output()
	if err != nil {
		return err
	}
	device := filepath.Base(strings.TrimSpace(string(out)))
	return os.WriteFile(filepath.Join("/sys/fs/ext4", device, "trigger_fs_error"), []byte("a test"), 0)
}

// shutDown is EXT4_IOC_SHUTDOWN without flushing anything: from then on the file
// system answers EIO.
func shutDown(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const ioctlShutdown, noLogFlush = 0x8004587d, 2
	return unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, noLogFlush)
}
