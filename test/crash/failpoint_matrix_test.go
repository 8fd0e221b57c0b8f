package crash

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmand/openapi"
	"vmand/test/harness"
)

// The fail points inside of acts, in the order in which they are reached.
var (
	imageSeams = []string{"image.temp-made", "image.created", "image.renamed"}
	startSeams = []string{
		"network.connected",
		"run.prepared",
		"qemu.spawned",
		"monitor.connected",
		"guest.continued",
	}
	endSeams  = []string{"stop.quit", "stop.exited", "run.removed"}
	stopSeams = slices.Concat([]string{"stop.pressed"}, endSeams)
)

// operations are the changes of VMs, disks, templates and orphans, each in the situations
// that need different steps.
var operations = []operation{
	{
		name:    "vm.start",
		inner:   startSeams,
		prepare: stopped,
		request: vmAction("start", nil),
		status:  200,
		done:    is("running"),
		refused: 409,
		refusal: "already running",
	},
	{
		name:    "vm.stop",
		inner:   stopSeams,
		prepare: running,
		request: vmAction("stop", gentleStop),
		status:  200,
		done:    is("stopped"),
		refused: 409,
		refusal: "not running",
	},
	{
		name:    "vm.stop, with the host",
		inner:   stopSeams,
		prepare: running,
		request: vmAction("stop", map[string]any{"timeout_seconds": 1, "reason": "host-shutdown"}),
		status:  200,
		done:    stoppedWithHost,
		refused: 409,
		refusal: "not running",
	},
	{
		name:    "vm.stop, by force",
		inner:   endSeams,
		prepare: running,
		request: vmAction("stop", map[string]any{"force": true}),
		status:  200,
		done:    is("stopped"),
		refused: 409,
		refusal: "not running",
	},
	{
		name:    "vm.pause",
		prepare: running,
		request: vmAction("pause", nil),
		status:  200,
		done:    is("paused"),
		refused: 409,
		refusal: "already paused",
	},
	{
		name:    "vm.resume",
		prepare: paused,
		request: vmAction("resume", nil),
		status:  200,
		done:    is("running"),
		refused: 409,
		refusal: "already running",
	},
	{
		name:    "vm.reset",
		inner:   []string{"guest.reset"},
		prepare: running,
		request: vmAction("reset", nil),
		status:  200,
		vague:   true,
	},
	{
		name:    "vm.reset, paused",
		inner:   []string{"guest.reset"},
		prepare: paused,
		request: vmAction("reset", nil),
		status:  200,
		done:    is("running"),
		vague:   true,
	},
	{
		name:    "vm.stop, suspended",
		guest:   "agent",
		inner:   stopSeams,
		prepare: suspended,
		request: vmAction("stop", map[string]any{"timeout_seconds": 100}),
		status:  200,
		done:    is("stopped"),
		refused: 409,
		refusal: "not running",
	},
	{
		name:    "vm.restart, suspended",
		guest:   "agent",
		inner:   slices.Concat(stopSeams, []string{"vm.restart.between"}, startSeams),
		prepare: suspended,
		request: vmAction("restart", map[string]any{"timeout_seconds": 100}),
		status:  200,
		done:    runsOnNewQEMU,
		vague:   true,
	},
	{
		name:    "vm.resume, suspended",
		guest:   "agent",
		prepare: suspended,
		request: vmAction("resume", nil),
		status:  200,
		done:    is("running"),
		refused: 409,
		refusal: "already running",
	},
	{
		name:    "vm.reset, suspended",
		guest:   "agent",
		inner:   []string{"guest.reset"},
		prepare: suspended,
		request: vmAction("reset", nil),
		status:  200,
		done:    is("running"),
		vague:   true,
	},
	{
		name:    "vm.nmi",
		prepare: running,
		request: vmAction("nmi", nil),
		status:  200,
		vague:   true,
	},
	{
		name:    "vm.update",
		single:  true,
		prepare: stopped,
		request: func(x target) (string, string, any) {
			return "PATCH", "/vms/" + x.vm, map[string]any{"description": "new"}
		},
		status: 200,
		done:   func(d *harness.Daemon, x target) bool { return d.VM(x.vm).Description == "new" },
	},
	{
		name:  "vm.create",
		inner: slices.Concat([]string{"dir.made"}, imageSeams, []string{"image.synced"}),
		request: func(x target) (string, string, any) {
			return "POST", "/vms", map[string]any{"name": x.vm, "template_name": "small"}
		},
		status:  201,
		done:    exists(vmPath),
		refused: 409,
		refusal: "already exists",
	},
	{
		name:    "vm.delete",
		inner:   []string{"run.removed", "vm.delete.row-gone", "files.removed"},
		prepare: inOrder(stopped, attached),
		request: deleteRequest(vmPath),
		status:  204,
		done:    isGone(vmPath),
		refused: 404,
	},
	{
		name:    "vm.delete, running",
		inner:   slices.Concat(endSeams, []string{"vm.delete.row-gone", "files.removed"}),
		prepare: inOrder(running, attached),
		request: deleteRequest(vmPath),
		status:  204,
		done:    isGone(vmPath),
		refused: 404,
	},
	{
		name:    "vm.adopt",
		prepare: stopped,
		tamper:  deleteRecords,
		request: orphanRequest("adopt", "vms", map[string]any{"template_name": "small"}),
		status:  200,
		done:    exists(vmPath),
		refused: 409,
		refusal: "is recorded",
		orphan:  orphanVM,
	},
	{
		name:    "vm.adopt, running",
		prepare: running,
		tamper:  deleteRecords,
		request: orphanRequest("adopt", "vms", map[string]any{"template_name": "small"}),
		status:  200,
		done:    exists(vmPath),
		refused: 409,
		refusal: "is recorded",
		orphan:  orphanVM,
	},

	{
		name:    "disk.create",
		inner:   imageSeams,
		request: func(target) (string, string, any) { return "POST", "/disks", map[string]any{"size": 0.25} },
		status:  201,
		done:    func(d *harness.Daemon, _ target) bool { return len(d.Census().Disks) > 0 },
	},
	{
		name:    "disk.delete",
		inner:   []string{"files.removed"},
		prepare: disk,
		request: deleteRequest(diskPath),
		status:  204,
		done:    isGone(diskPath),
		refused: 404,
	},
	{
		name:    "disk.attach",
		prepare: inOrder(stopped, disk),
		request: attach,
		status:  200,
		done:    diskIs("attached"),
		refused: 409,
		refusal: "already attached",
	},
	{
		name:    "disk.attach, running",
		inner:   []string{"plug.node-added", "plug.device-added"},
		prepare: inOrder(running, disk),
		request: attach,
		status:  200,
		done:    diskIs("attached"),
		refused: 409,
		refusal: "already attached",
	},
	{
		name:    "disk.detach",
		prepare: inOrder(stopped, attached),
		request: detach,
		status:  200,
		done:    diskIs("available"),
		refused: 409,
		refusal: "not attached",
	},
	{
		name:    "disk.detach, running",
		inner:   []string{"unplug.device-deleted", "unplug.node-deleted"},
		prepare: inOrder(running, attached),
		request: detach,
		status:  200,
		done:    diskIs("available"),
		refused: 409,
		refusal: "not attached",
	},
	{
		name:    "disk.resize",
		inner:   []string{"resize.grown"},
		prepare: disk,
		request: resizeDisk,
		status:  200,
		done:    grown,
		vague:   true,
	},
	{
		name:    "disk.resize, attached",
		inner:   []string{"resize.grown"},
		prepare: inOrder(stopped, attached),
		request: resizeDisk,
		status:  200,
		done:    grown,
		vague:   true,
	},
	{
		name:    "disk.resize, running",
		inner:   []string{"resize.grown"},
		prepare: inOrder(running, attached),
		request: resizeDisk,
		status:  200,
		done:    grown,
		vague:   true,
	},
	{
		name:    "disk.adopt",
		prepare: disk,
		tamper:  deleteRecords,
		request: orphanRequest("adopt", "disks", nil),
		status:  200,
		done:    exists(diskPath),
		refused: 409,
		refusal: "is recorded",
		orphan:  orphanDisk,
	},

	{
		name:   "template.create",
		single: true,
		request: func(x target) (string, string, any) {
			return "POST", "/templates", map[string]any{"name": x.vm, "cpu_count": 1, "ram_amount": 128}
		},
		status:  201,
		done:    exists(templatePath),
		refused: 409,
		refusal: "already exists",
	},
	{
		name:   "template.delete",
		single: true,
		prepare: func(d *harness.Daemon, x *target) {
			d.Call("POST", "/templates", map[string]any{"name": x.vm, "cpu_count": 1, "ram_amount": 128}).Want(201)
		},
		request: deleteRequest(templatePath),
		status:  204,
		done:    isGone(templatePath),
		refused: 404,
	},
	{
		name:    "orphan.terminate",
		inner:   endSeams,
		prepare: running,
		tamper:  deleteRecords,
		request: orphanRequest("terminate", "vms", nil),
		status:  200,
		vague:   true,
		refused: 409,
		refusal: "no process",
		orphan:  orphanVM,
		done:    func(d *harness.Daemon, x target) bool { return d.VMPID(x.vm) == 0 },
	},
	{
		name:    "orphan.delete",
		inner:   []string{"files.removed"},
		prepare: stopped,
		tamper:  deleteRecords,
		request: orphanRequest("delete", "vms", nil),
		status:  200,
		vague:   true,
		refused: 404,
		orphan:  orphanVM,
		done:    func(d *harness.Daemon, x target) bool { return absent(d, "vms", x.vm) },
	},
	{
		name:    "orphan.delete, a disk",
		inner:   []string{"files.removed"},
		prepare: disk,
		tamper:  deleteRecords,
		request: orphanRequest("delete", "disks", nil),
		status:  200,
		vague:   true,
		refused: 404,
		orphan:  orphanDisk,
		done:    func(d *harness.Daemon, x target) bool { return absent(d, "disks", x.disk+".qcow2") },
	},
}

// gentleStop stops a VM by force after a second. The guest is a firmware, which ignores the
// power button.
var gentleStop = map[string]any{"timeout_seconds": 1}

// inOrder runs two preparations, one after the other.
func inOrder(first, second preparation) preparation {
	return func(d *harness.Daemon, x *target) {
		first(d, x)
		second(d, x)
	}
}

// stopped creates a VM.
func stopped(d *harness.Daemon, x *target) { d.CreateVM(x.vm) }

// running creates and starts a VM.
func running(d *harness.Daemon, x *target) {
	d.CreateVM(x.vm)
	started(d, x)
}

// started starts the VM.
func started(d *harness.Daemon, x *target) {
	d.Action(x.vm, "start")
	x.pid = d.VMPID(x.vm)
}

// paused creates, starts and pauses a VM.
func paused(d *harness.Daemon, x *target) {
	running(d, x)
	d.Action(x.vm, "pause")
}

// suspended creates and starts a VM with a guest agent, and has the guest suspend itself.
func suspended(d *harness.Daemon, x *target) {
	d.Call("POST", "/templates", map[string]any{"name": "agent", "cpu_count": 1, "ram_amount": 192}).Want(201)
	d.CreateVMWith(x.vm, map[string]any{"template_name": "agent"})
	d.Call("POST", "/vms/"+x.vm+"/actions/start?wait_for=agent", nil, harness.Wait).Want(200)
	x.pid = d.VMPID(x.vm)
	d.Suspend(x.vm)
}

// disk creates a data disk.
func disk(d *harness.Daemon, x *target) { x.disk = d.CreateDisk(0.25).ID }

// attached creates a data disk and attaches it to the VM.
func attached(d *harness.Daemon, x *target) {
	disk(d, x)
	d.AttachDisk(x.disk, x.vm)
}

// deleteRecords deletes the records of the VM and the disk, as if an older database had been
// restored.
func deleteRecords(d *harness.Daemon, x target) {
	d.SQL(`DELETE FROM vms WHERE id = '` + x.vm + `'`)
	d.SQL(`DELETE FROM disks WHERE id = '` + x.disk + `'`)
}

func vmPath(x target) string { return "/vms/" + x.vm }

func diskPath(x target) string { return "/disks/" + x.disk }

func templatePath(x target) string { return "/templates/" + x.vm }

func orphanVM(x target) string { return "vms/" + x.vm }

func orphanDisk(x target) string { return "disks/" + x.disk }

func vmAction(action string, body any) requester {
	return func(x target) (string, string, any) {
		return "POST", "/vms/" + x.vm + "/actions/" + action, body
	}
}

func deleteRequest(path func(target) string) requester {
	return func(x target) (string, string, any) { return "DELETE", path(x), nil }
}

func orphanRequest(verb, kind string, body any) requester {
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

func resizeDisk(x target) (string, string, any) {
	return "PATCH", "/disks/" + x.disk, map[string]any{"size": 0.5}
}

// exists returns a condition: the API shows the resource at a path.
func exists(path func(target) string) condition {
	return func(d *harness.Daemon, x target) bool { return d.Call("GET", path(x), nil).Status == 200 }
}

// isGone returns a condition: the API shows no resource at a path.
func isGone(path func(target) string) condition {
	return func(d *harness.Daemon, x target) bool { return d.Call("GET", path(x), nil).Status == 404 }
}

// is returns a condition: the VM has a state.
func is(state string) condition {
	return func(d *harness.Daemon, x target) bool { return string(d.VM(x.vm).State) == state }
}

// stoppedWithHost reports whether the VM is stopped and still wanted running.
func stoppedWithHost(d *harness.Daemon, x target) bool {
	v := d.VM(x.vm)
	return v.State == "stopped" && v.StateReason != nil && *v.StateReason == "host-shutdown" && v.DesiredState == "running"
}

// runsOnNewQEMU reports whether the VM runs with another process than before the request.
func runsOnNewQEMU(d *harness.Daemon, x target) bool {
	pid := d.VMPID(x.vm)
	return pid != 0 && pid != x.pid && d.VM(x.vm).State == "running"
}

// diskIs returns a condition: the disk has a state.
func diskIs(state string) condition {
	return func(d *harness.Daemon, x target) bool {
		return string(harness.Get[openapi.Disk](d, diskPath(x)).State) == state
	}
}

// grown reports whether the disk has the size of resizeDisk.
func grown(d *harness.Daemon, x target) bool {
	return harness.Get[openapi.Disk](d, diskPath(x)).Size == 0.5
}

// absent reports whether a file in the state directory does not exist.
func absent(d *harness.Daemon, elem ...string) bool {
	d.T.Helper()
	_, err := os.Stat(filepath.Join(d.StateDir, strings.Join(elem, "/")))
	if err != nil && !os.IsNotExist(err) {
		d.T.Fatal(err)
	}
	return err != nil
}
