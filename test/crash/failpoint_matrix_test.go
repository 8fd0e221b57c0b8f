package crash

import (
	"os"
	"path/filepath"
	"strings"

	"vmand/openapi"
	"vmand/test/harness"
)

// The seams inside the acts, in the order in which they are reached.
var (
	imageSeams = []string{"image.temp-made", "image.created", "image.renamed"}
	startSeams = []string{"network.connected", "run.prepared", "qemu.spawned", "monitor.connected", "guest.continued"}
	endSeams   = []string{"stop.quit", "stop.exited", "run.removed"}
	stopSeams  = join([]string{"stop.pressed"}, endSeams)
)

func join(lists ...[]string) (all []string) {
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}

// operations are all kinds of changes, each in the situations that differ in
// what is done for it.
var operations = []operation{
	{name: "vm.restart", inner: join(stopSeams, []string{"vm.restart.between"}, startSeams), prepare: running,
		request: act("restart", gently), status: 200, done: another, untold: true},
	{name: "vm.start", inner: startSeams, prepare: stopped,
		request: act("start", nil), status: 200, done: is("running"), refused: 409, why: "already running"},
	{name: "vm.stop", inner: stopSeams, prepare: running,
		request: act("stop", gently), status: 200, done: is("stopped"), refused: 409, why: "not running"},
	{name: "vm.stop, by force", inner: endSeams, prepare: running,
		request: act("stop", map[string]any{"force": true}), status: 200, done: is("stopped"), refused: 409, why: "not running"},
	{name: "vm.pause", prepare: running,
		request: act("pause", nil), status: 200, done: is("paused"), refused: 409, why: "already paused"},
	{name: "vm.resume", prepare: paused,
		request: act("resume", nil), status: 200, done: is("running"), refused: 409, why: "already running"},
	{name: "vm.reset", inner: []string{"guest.reset"}, prepare: running,
		request: act("reset", nil), status: 200, untold: true},
	{name: "vm.reset, paused", inner: []string{"guest.reset"}, prepare: paused,
		request: act("reset", nil), status: 200, done: is("running"), untold: true},
	{name: "vm.nmi", prepare: running,
		request: act("nmi", nil), status: 200, untold: true},
	{name: "vm.update", once: true, prepare: stopped,
		request: func(x target) (string, string, any) {
			return "PATCH", "/vms/" + x.vm, map[string]any{"description": "new"}
		}, status: 200,
		done: func(d *harness.Daemon, x target) bool { return d.VM(x.vm).Description == "new" }},
	{name: "vm.create", inner: join([]string{"dir.made"}, imageSeams, []string{"image.synced"}),
		request: func(x target) (string, string, any) {
			return "POST", "/vms", map[string]any{"name": x.vm, "template_name": "small"}
		}, status: 201, done: there(vmPath), refused: 409, why: "already exists"},
	{name: "vm.delete", inner: []string{"run.removed", "vm.delete.row-gone", "files.removed"}, prepare: both(stopped, attached),
		request: remove(vmPath), status: 204, done: gone(vmPath), refused: 404},
	{name: "vm.delete, running", inner: join(endSeams, []string{"vm.delete.row-gone", "files.removed"}), prepare: both(running, attached),
		request: remove(vmPath), status: 204, done: gone(vmPath), refused: 404},
	{name: "vm.adopt", prepare: stopped, behind: forgotten,
		request: orphanage("adopt", "vms", map[string]any{"template_name": "small"}), status: 200, done: there(vmPath), refused: 409, why: "is recorded", orphan: orphanVM},
	{name: "vm.adopt, running", prepare: running, behind: forgotten,
		request: orphanage("adopt", "vms", map[string]any{"template_name": "small"}), status: 200, done: there(vmPath), refused: 409, why: "is recorded", orphan: orphanVM},

	{name: "disk.create", inner: imageSeams,
		request: func(target) (string, string, any) { return "POST", "/disks", map[string]any{"size": 0.25} }, status: 201,
		done: func(d *harness.Daemon, _ target) bool { return len(d.Census().Disks) > 0 }},
	{name: "disk.delete", inner: []string{"files.removed"}, prepare: disk,
		request: remove(diskPath), status: 204, done: gone(diskPath), refused: 404},
	{name: "disk.attach", prepare: both(stopped, disk),
		request: attach, status: 200, done: diskIs("attached"), refused: 409, why: "already attached"},
	{name: "disk.attach, running", inner: []string{"plug.node-added", "plug.device-added"}, prepare: both(running, disk),
		request: attach, status: 200, done: diskIs("attached"), refused: 409, why: "already attached"},
	{name: "disk.detach", prepare: both(stopped, attached),
		request: detach, status: 200, done: diskIs("available"), refused: 409, why: "not attached"},
	{name: "disk.detach, running", inner: []string{"unplug.device-deleted", "unplug.node-deleted"}, prepare: both(running, attached),
		request: detach, status: 200, done: diskIs("available"), refused: 409, why: "not attached"},
	{name: "disk.resize", inner: []string{"resize.grown"}, prepare: disk,
		request: resize, status: 200, done: grown, untold: true},
	{name: "disk.resize, attached", inner: []string{"resize.grown"}, prepare: both(stopped, attached),
		request: resize, status: 200, done: grown, untold: true},
	{name: "disk.resize, running", inner: []string{"resize.grown"}, prepare: both(running, attached),
		request: resize, status: 200, done: grown, untold: true},
	{name: "disk.adopt", prepare: disk, behind: forgotten,
		request: orphanage("adopt", "disks", nil), status: 200, done: there(diskPath), refused: 409, why: "is recorded", orphan: orphanDisk},

	{name: "template.create", once: true,
		request: func(x target) (string, string, any) {
			return "POST", "/templates", map[string]any{"name": x.vm, "cpu_count": 1, "ram_amount": 128}
		}, status: 201, done: there(templatePath), refused: 409, why: "already exists"},
	{name: "template.delete", once: true,
		prepare: func(d *harness.Daemon, x *target) {
			d.Call("POST", "/templates", map[string]any{"name": x.vm, "cpu_count": 1, "ram_amount": 128}).Want(201)
		},
		request: remove(templatePath), status: 204, done: gone(templatePath), refused: 404},
	{name: "orphan.terminate", inner: endSeams, prepare: running, behind: forgotten,
		request: orphanage("terminate", "vms", nil), status: 200, untold: true, refused: 409, why: "no process", orphan: orphanVM,
		done: func(d *harness.Daemon, x target) bool { return d.VMPID(x.vm) == 0 }},
	{name: "orphan.delete", inner: []string{"files.removed"}, prepare: stopped, behind: forgotten,
		request: orphanage("delete", "vms", nil), status: 200, untold: true, refused: 404, orphan: orphanVM,
		done: func(d *harness.Daemon, x target) bool { return absent(d, "vms", x.vm) }},
	{name: "orphan.delete, a disk", inner: []string{"files.removed"}, prepare: disk, behind: forgotten,
		request: orphanage("delete", "disks", nil), status: 200, untold: true, refused: 404, orphan: orphanDisk,
		done: func(d *harness.Daemon, x target) bool { return absent(d, "disks", x.disk+".qcow2") }},
}

// gently asks the guest, which is the firmware and deaf, before it forces it.
var gently = map[string]any{"timeout_seconds": 1}

func both(f, g func(*harness.Daemon, *target)) func(*harness.Daemon, *target) {
	return func(d *harness.Daemon, x *target) { f(d, x); g(d, x) }
}

func stopped(d *harness.Daemon, x *target) { d.CreateVM(x.vm) }

func running(d *harness.Daemon, x *target) {
	d.CreateVM(x.vm)
	d.Action(x.vm, "start")
	x.pid = d.VMPID(x.vm)
}

func paused(d *harness.Daemon, x *target) { running(d, x); d.Action(x.vm, "pause") }

func disk(d *harness.Daemon, x *target) { x.disk = d.CreateDisk(0.25).ID }

func attached(d *harness.Daemon, x *target) {
	disk(d, x)
	d.AttachDisk(x.disk, x.vm)
}

// forgotten takes the record of what was made away, as a database does that is
// older.
func forgotten(d *harness.Daemon, x target) {
	d.SQL(`DELETE FROM vms WHERE id = '` + x.vm + `'`)
	d.SQL(`DELETE FROM disks WHERE id = '` + x.disk + `'`)
}

func vmPath(x target) string { return "/vms/" + x.vm }

func diskPath(x target) string { return "/disks/" + x.disk }

func templatePath(x target) string { return "/templates/" + x.vm }

func orphanVM(x target) string { return "vms/" + x.vm }

func orphanDisk(x target) string { return "disks/" + x.disk }

func act(action string, body any) func(target) (string, string, any) {
	return func(x target) (string, string, any) { return "POST", "/vms/" + x.vm + "/actions/" + action, body }
}

func remove(path func(target) string) func(target) (string, string, any) {
	return func(x target) (string, string, any) { return "DELETE", path(x), nil }
}

func orphanage(verb, kind string, body any) func(target) (string, string, any) {
	return func(x target) (string, string, any) {
		id := x.vm
		if kind == "disks" {
			id = x.disk
		}
		return "POST", "/observer/orphans/" + kind + ":" + id + "/" + verb, body
	}
}

func attach(x target) (string, string, any) {
	return "POST", "/disks/" + x.disk + "/attach", map[string]any{"vm_id": x.vm}
}

func detach(x target) (string, string, any) { return "POST", "/disks/" + x.disk + "/detach", nil }

func resize(x target) (string, string, any) {
	return "PATCH", "/disks/" + x.disk, map[string]any{"size": 0.5}
}

func there(path func(target) string) func(*harness.Daemon, target) bool {
	return func(d *harness.Daemon, x target) bool { return d.Call("GET", path(x), nil).Status == 200 }
}

func gone(path func(target) string) func(*harness.Daemon, target) bool {
	return func(d *harness.Daemon, x target) bool { return d.Call("GET", path(x), nil).Status == 404 }
}

func is(state string) func(*harness.Daemon, target) bool {
	return func(d *harness.Daemon, x target) bool { return string(d.VM(x.vm).State) == state }
}

// another reports whether the VM runs on another QEMU than the one prepared.
func another(d *harness.Daemon, x target) bool {
	pid := d.VMPID(x.vm)
	return pid != 0 && pid != x.pid && d.VM(x.vm).State == "running"
}

func diskIs(state string) func(*harness.Daemon, target) bool {
	return func(d *harness.Daemon, x target) bool {
		return string(harness.As[openapi.Disk](d.Call("GET", diskPath(x), nil).Want(200)).State) == state
	}
}

func grown(d *harness.Daemon, x target) bool {
	return harness.As[openapi.Disk](d.Call("GET", diskPath(x), nil).Want(200)).Size == 0.5
}

// absent reports whether a file under the state directory is not there.
func absent(d *harness.Daemon, elem ...string) bool {
	d.T.Helper()
	_, err := os.Stat(filepath.Join(d.StateDir, strings.Join(elem, "/")))
	if err != nil && !os.IsNotExist(err) {
		d.T.Fatal(err)
	}
	return err != nil
}
