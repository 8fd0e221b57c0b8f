package crash

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

// failFlush makes a flush of a disk fail. QEMU then lets no flush of the disk succeed until
// it is restarted, because it does not know which writes were lost. The guest must keep
// the data that it has flushed before, and must not see the failed flush succeed.
func failFlush(d *harness.Daemon, guest *harness.Shell, f *faults, file, block string) {
	d.T.Helper()
	sum := guest.Run("dd if=/dev/%s bs=1M count=8 2>/dev/null | md5sum", block)
	f.set(failing(file, "fsync"))
	over := guest.Start("dd if=/run/data of=/dev/%s bs=1M seek=16 conv=fsync 2>&1", block)
	v := d.WaitVM("a", "paused", "io-error", 60*time.Second)
	if detail := harness.Deref(v.StateReasonDetail); !strings.Contains(detail, filepath.Join(d.StateDir, file)) {
		d.T.Errorf("the detail %q does not contain %s", detail, file)
	}
	if f.mend() == 0 {
		d.T.Error("no access has failed")
	}
	d.Action("a", "resume")
	d.WaitVM("a", "paused", "io-error", 20*time.Second)
	d.Call("POST", "/vms/a/actions/restart", map[string]any{"force": true}, harness.Wait).Want(200)
	if out, err := over(); err == nil {
		d.T.Errorf("the failed flush succeeded in the guest: %s", out)
	}
	guest = d.Shell("a")
	if now := guest.Run("dd if=/dev/%s bs=1M count=8 2>/dev/null | md5sum", block); now != sum {
		d.T.Errorf("the checksum in the guest is %s, want %s", now, sum)
	}
	guest.Run("dd if=/dev/zero of=/dev/%s bs=1M seek=16 count=1 conv=fsync", block)
}

// A request changes something. done reports whether it has.
type request struct {
	method, path string
	body         any
	done         func() bool
}

// everyRequest returns one request of each kind: for a running VM with a disk, for a
// stopped VM and a disk, and for a VM and a disk to delete.
func everyRequest(d *harness.Daemon, runs, stands, doomed target) []request {
	sees := func(path string) func() bool {
		return func() bool { return d.Call("GET", path, nil).Status == 200 }
	}
	misses := func(path string) func() bool {
		return func() bool { return d.Call("GET", path, nil).Status == 404 }
	}
	return []request{
		{"POST", "/templates", map[string]any{"name": "new", "cpu_count": 1, "ram_amount": 64}, sees("/templates/new")},
		{"POST", "/vms", map[string]any{"name": "new", "template_name": "small"}, sees("/vms/new")},
		{"POST", "/disks", map[string]any{"size": 0.25}, func() bool { return len(d.Census().Disks) > 3 }},
		{"PATCH", "/vms/stands", map[string]any{"description": "new"}, func() bool { return d.VM("stands").Description == "new" }},
		{"PATCH", diskPath(stands), map[string]any{"size": 0.5}, func() bool { return grown(d, stands) }},
		{"POST", diskPath(stands) + "/attach", map[string]any{"vm_id": "runs"}, func() bool { return diskIs("attached")(d, stands) }},
		{"POST", diskPath(runs) + "/detach", nil, func() bool { return diskIs("available")(d, runs) }},
		{"POST", "/vms/stands/actions/start", nil, func() bool { return is("running")(d, stands) }},
		{"POST", "/vms/runs/actions/pause", nil, func() bool { return is("paused")(d, runs) }},
		{"POST", "/vms/runs/actions/stop", map[string]any{"force": true}, func() bool { return is("stopped")(d, runs) }},
		{"DELETE", diskPath(doomed), nil, misses(diskPath(doomed))},
		{"DELETE", "/vms/doomed", nil, misses("/vms/doomed")},
	}
}

// newFaultyDaemon starts a daemon whose state directory is a file system that fails on
// demand.
func newFaultyDaemon(t *testing.T, env ...string) (*harness.Daemon, *faults) {
	t.Helper()
	d, f := harness.NewDaemon(t, env...), &faults{}
	mountState(d, f.mount(t))
	d.Start()
	d.CreateTemplate()
	return d, f
}

// TestDiskErrorPausesTheGuestWithoutLoss makes the files of disks fail with EIO
// while a Linux guest reads and writes them.
func TestDiskErrorPausesTheGuestWithoutLoss(t *testing.T) {
	d, f := newFaultyDaemon(t, harness.BootDisk("net"))
	d.CreateVM("a")
	disk := d.CreateDisk(0.25)
	d.AttachDisk(disk.ID, "a")
	d.Action("a", "start")
	guest := d.Shell("a")
	block := guest.Run("ls /sys/block | grep sd")
	data := filepath.Join("disks", disk.ID+".qcow2")
	const mib8 = "dd if=/dev/urandom of=/run/data bs=1M count=8 2>/dev/null; md5sum </run/data | cut -c1-32"
	root := filepath.Join("vms", "a", "root.qcow2")
	for _, c := range []struct{ name, op, file, words, command string }{
		{
			name:    "writes of a data disk",
			op:      "write",
			file:    data,
			words:   "data disk " + disk.ID,
			command: "dd if=/run/data of=/dev/" + block + " bs=1M conv=fsync 2>&1",
		},
		{
			name:    "reads of a data disk",
			op:      "read",
			file:    data,
			words:   "data disk " + disk.ID,
			command: "dd if=/dev/" + block + " of=/dev/null bs=1M count=8 2>&1",
		},
		{
			name:    "writes of the root disk",
			op:      "write",
			file:    root,
			words:   "the root disk",
			command: "dd if=/run/data of=/dev/vda bs=1M seek=24 conv=fsync 2>&1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			sum := guest.Run(mib8)
			guest.Run("echo 3 >/proc/sys/vm/drop_caches")
			f.set(failing(c.file, c.op))
			over := guest.Start("%s", c.command)
			v := d.WaitVM("a", "paused", "io-error", 60*time.Second)
			detail := harness.Deref(v.StateReasonDetail)
			for _, want := range []string{filepath.Join(d.StateDir, c.file), c.words} {
				if !strings.Contains(detail, want) {
					t.Errorf("the detail %q does not contain %q", detail, want)
				}
			}
			d.Action("a", "resume") // while the disk still fails
			d.WaitVM("a", "paused", "io-error", 20*time.Second)
			if f.mend() == 0 {
				t.Error("no access has failed")
			}
			d.WaitPasses(2)
			if v := d.VM("a"); v.State != "paused" {
				t.Errorf("without a request to resume, the VM is %s, want paused", v.State)
			}
			d.Action("a", "resume")
			if out, err := over(); err != nil {
				t.Errorf("the guest saw the error: %v %s", err, out)
			}
			guest.Run("sync; echo 3 >/proc/sys/vm/drop_caches")
			from := "/dev/" + block
			if strings.Contains(c.command, "/dev/vda") {
				from = "/dev/vda skip=24"
			}
			if c.op != "read" {
				if now := guest.Run("dd if=%s bs=1M count=8 2>/dev/null | md5sum | cut -c1-32", from); now != sum {
					t.Errorf("the checksum in the guest is %s, want %s", now, sum)
				}
			}
		})
	}
	assertConsistent(d)
	t.Run("flushes of a data disk", func(t *testing.T) { failFlush(d, guest, f, data, block) })
	d.ForceStop("a")
	for _, file := range []string{data, root} {
		// Exit status 3 of qemu-img check: leaked clusters, which cancelled writes may leave.
		cmd := exec.Command("qemu-img", "check", "-q", "-f", "qcow2", filepath.Join(d.StateDir, file))
		if out, err := cmd.CombinedOutput(); err != nil && cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("qemu-img check %s: %v\n%s", file, err, out)
		}
	}
}

// TestDatabaseWriteAndFlushErrors sends requests of each kind while the files of
// the database fail with EIO.
func TestDatabaseWriteAndFlushErrors(t *testing.T) {
	flushes := 0
	for name, c := range map[string]struct {
		fails  func(op, path string) bool
		always bool // no change can be recorded
	}{
		"writes of the log":       {failing("vman.db-wal", "write"), true},
		"flushes of the log":      {failing("vman.db-wal", "fsync"), true},
		"all of the database":     {failing("vman.db", "write", "fsync"), true},
		"every file":              {failing("", "write", "fsync", "create"), true},
		"the database's own file": {func(op, path string) bool { return path == "vman.db" && op != "read" }, false},
		"every other flush": {func(op, path string) bool {
			if op != "fsync" || !strings.HasPrefix(path, "vman.db") {
				return false
			}
			flushes++
			return flushes%2 == 0
		}, false},
	} {
		t.Run(name, func(t *testing.T) { requestsWhile(t, c.fails, c.always) })
	}
}

// requestsWhile sends requests of each kind while accesses fail, and again afterwards.
func requestsWhile(t *testing.T, fails func(op, path string) bool, always bool) {
	d, f := newFaultyDaemon(t)
	x, y, z := target{vm: "runs"}, target{vm: "stands"}, target{vm: "doomed"}
	running(d, &x)
	stopped(d, &y)
	stopped(d, &z)
	disk(d, &y)
	disk(d, &z)
	attached(d, &x)
	f.set(fails)
	requests := everyRequest(d, x, y, z)
	for _, r := range requests {
		before := r.done()
		a := d.Call(r.method, r.path, r.body, harness.Wait)
		after := r.done()
		switch {
		case a.Status < 300 && after && !always:
		case a.Status == 409 && !always:
		case a.Status == 503 || a.Status == 507:
			if after && !before && always { // otherwise only the record of the end may be missing
				t.Errorf("%s answered %d but took effect", a.Request, a.Status)
			}
		default:
			t.Errorf("%s answered %d; effect: %t, before: %t\n%s", a.Request, a.Status, after, before, a.Body)
		}
		if a.Status >= 300 && harness.As[openapi.Problem](a).Code == "internal" {
			t.Errorf("%s answered an internal error: %s", a.Request, a.Body)
		}
		t.Logf("%s answered %d", a.Request, a.Status)
	}
	for _, path := range []string{"/vms", "/disks", "/templates", "/operations", "/events", "/observer/status"} {
		d.Call("GET", path, nil).Want(200)
	}
	if a := d.Call("GET", "/health", nil); always && (a.Status != 503 || harness.As[openapi.Health](a).Status != "degraded") {
		t.Errorf("GET /health answered %d, want 503 and degraded\n%s", a.Status, a.Body)
	}
	if hits := f.mend(); hits == 0 && always {
		t.Error("no access has failed")
	}
	harness.Eventually(t, 10*time.Second, "the daemon to be healthy", func() error {
		if a := d.Call("GET", "/health", nil); a.Status != 200 {
			return fmt.Errorf("GET /health answered %d: %s", a.Status, a.Body)
		}
		return nil
	})
	assertConsistent(d)
	for _, r := range requests {
		if r.done() {
			continue
		}
		if a := d.Call(r.method, r.path, r.body, harness.Wait); a.Status >= 300 && a.Status != 409 {
			t.Errorf("after the faults, %s answered %d\n%s", a.Request, a.Status, a.Body)
		}
	}
	assertConsistent(d)
	assertRestartKeepsRecords(d)
	d.DeleteAll()
	d.AssertEmpty()
}

// assertRestartKeepsRecords restarts the daemon and fails the test if that changes a
// record.
func assertRestartKeepsRecords(d *harness.Daemon) {
	d.T.Helper()
	before := records(d)
	d.Kill()
	d.Start()
	assertConsistent(d)
	if now := records(d); now != before {
		d.T.Errorf("after a restart the records are\n%s\nwant\n%s", now, before)
	}
}

// records returns the recorded state of all resources as text, without the parts that
// change without a request.
func records(d *harness.Daemon) string {
	d.T.Helper()
	var words []string
	c := d.Census()
	for id, v := range c.VMs {
		words = append(words, fmt.Sprintf("VM %s %s %s %q", id, v.State, v.DesiredState, v.Description))
	}
	for id, disk := range c.Disks {
		words = append(words, fmt.Sprintf("disk %s %s %v on %q", id, disk.State, disk.Size, harness.Deref(disk.VMID)))
	}
	for _, template := range harness.Get[[]openapi.Template](d, "/templates") {
		words = append(words, "template "+template.Name)
	}
	slices.Sort(words)
	return strings.Join(words, "\n")
}

// TestFailedImageCreationIsNotListed creates disks and VMs while one step of it fails
// with EIO.
func TestFailedImageCreationIsNotListed(t *testing.T) {
	d, f := newFaultyDaemon(t)
	for _, c := range []struct {
		op   string
		path string
		body map[string]any
	}{
		{"create", "/disks", map[string]any{"size": 1}},
		{"write", "/disks", map[string]any{"size": 1}},
		{"fsync", "/disks", map[string]any{"size": 1}},
		{"create", "/vms", map[string]any{"template_name": "small", "name": "new"}},
		{"write", "/vms", map[string]any{"template_name": "small", "name": "new"}},
		{"fsync", "/vms", map[string]any{"template_name": "small", "name": "new"}},
	} {
		f.set(failing(strings.TrimPrefix(c.path, "/")+"/", c.op))
		p := d.Call("POST", c.path, c.body).Problem(503, "operation-failed")
		if !strings.Contains(strings.ToLower(p.Detail), "input/output error") {
			t.Errorf("%s fails in POST %s: the detail %q does not contain the error", c.op, c.path, p.Detail)
		}
		if f.mend() == 0 {
			t.Errorf("%s in POST %s: no access has failed", c.op, c.path)
		}
		d.Call("DELETE", "/templates/small", nil).Want(204)
		d.AssertEmpty()
		d.CreateTemplate()
	}
	d.CreateDisk(1)
	d.CreateVM("new")
	assertConsistent(d)
}
