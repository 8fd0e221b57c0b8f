package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmand/openapi"
)

// Violations compares the API with the host and returns what must never be once
// everything is settled: an operation that has not ended, a state that does not last, a
// process or a file without a record, a record without its process or its file.
// Resources named in orphans, such as "vms/a", are expected to exist without a record.
func (d *Daemon) Violations(orphans ...string) []string {
	d.T.Helper()
	i := &inspection{Daemon: d, census: d.Census(), orphans: orphans}
	for _, state := range []string{"pending", "running"} {
		for _, op := range Get[[]openapi.Operation](d, "/operations?state="+state) {
			i.report("operation %s of %s is %s", op.Kind, op.Resource, op.State)
		}
	}
	i.inspectVMs()
	i.inspectDisks()
	i.inspectImages()
	i.inspectNICs()
	if d.Host != nil {
		i.inspectNetworks()
	}
	i.inspectFiles()
	return i.found
}

// An inspection collects violations.
type inspection struct {
	*Daemon
	census  Census
	orphans []string
	found   []string
}

func (i *inspection) report(format string, args ...any) {
	i.found = append(i.found, fmt.Sprintf(format, args...))
}

// orphaned returns the ids of the orphans of a kind, such as "vms".
func (i *inspection) orphaned(kind string) (ids []string) {
	for _, r := range i.orphans {
		if id, ok := strings.CutPrefix(r, kind+"/"); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// inspectVMs compares the VMs with the processes.
func (i *inspection) inspectVMs() {
	pids := i.QEMUs()
	remove := func(pid int) {
		pids = slices.DeleteFunc(pids, func(p int) bool { return p == pid })
	}
	for id, v := range i.census.VMs {
		pid := i.VMPID(id)
		remove(pid)
		switch alive := pid != 0; {
		case v.State == "starting" || v.State == "stopping":
			i.report("VM %s is %s", id, v.State)
		case alive != (v.State == "running" || v.State == "paused"):
			i.report("VM %s is %s (%s), and its process id is %d", id, v.State, Deref(v.StateReason), pid)
		}
	}
	for _, id := range i.orphaned("vms") {
		remove(i.VMPID(id))
	}
	for _, pid := range pids {
		i.report("QEMU process %d belongs to no VM", pid)
	}
}

// inspectDisks reports disks in states that do not last, and disks of missing VMs.
func (i *inspection) inspectDisks() {
	for id, disk := range i.census.Disks {
		switch vm := Deref(disk.VMID); {
		case disk.State != "available" && disk.State != "attached":
			i.report("disk %s is %s", id, disk.State)
		case (disk.State == "attached") != (vm != ""):
			i.report("disk %s is %s, and its VM is %q", id, disk.State, vm)
		case vm != "" && i.census.VMs[vm].ID == "":
			i.report("disk %s is attached to VM %s, which does not exist", id, vm)
		}
	}
}

// inspectImages compares the images with the files of their content.
func (i *inspection) inspectImages() {
	required := map[string]bool{}
	for name, image := range i.census.Images {
		switch image.State {
		case "available":
			required[*image.SHA256] = true
		case "uploading": // the content so far, and how much of it is durable
			required[".upload-"+name+".part"] = false
			required[".upload-"+name+".offset"] = false
		default:
			i.report("image %s is %s", name, image.State)
		}
	}
	for _, sum := range i.orphaned("images") {
		required[sum] = true
	}
	for _, name := range i.FileNames(filepath.Join(i.StateDir, "images")) {
		if _, ok := required[name]; !ok {
			i.report("images/%s belongs to no image", name)
		}
		delete(required, name)
	}
	for name, missing := range required {
		if missing {
			i.report("images/%s is missing", name)
		}
	}
}

// inspectFiles compares VMs and disks with the files of the state directory and of the
// runtime directory.
func (i *inspection) inspectFiles() {
	want := map[string]bool{}
	for id := range i.census.VMs {
		want[filepath.Join("vms", id)] = true
	}
	for id := range i.census.Disks {
		want[filepath.Join("disks", id+".qcow2")] = true
	}
	for _, id := range i.orphaned("vms") {
		want[filepath.Join("vms", id)] = true
	}
	for _, id := range i.orphaned("disks") {
		want[filepath.Join("disks", id+".qcow2")] = true
	}
	for _, dir := range []string{"vms", "disks"} {
		for _, name := range i.FileNames(filepath.Join(i.StateDir, dir)) {
			file := filepath.Join(dir, name)
			if !want[file] {
				i.report("%s belongs to no record", file)
			}
			delete(want, file)
		}
	}
	for file := range want {
		i.report("%s is missing", file)
	}
	for id := range i.census.VMs {
		for _, name := range i.FileNames(filepath.Join(i.StateDir, "vms", id)) {
			if strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") {
				i.report("the directory of VM %s contains the temporary file %s", id, name)
			}
		}
	}
	i.inspectRuntimeDir()
}

// inspectRuntimeDir reports files of VMs that do not run.
func (i *inspection) inspectRuntimeDir() {
	for _, name := range i.FileNames(i.RuntimeDir) {
		id, _, _ := strings.Cut(name, ".")
		if rest, ok := strings.CutPrefix(id, "passt-"); ok { // passt-<vm>-<slot>
			id = rest[:max(0, strings.LastIndexByte(rest, '-'))]
		}
		if name == "vmand.sock" || name == "vmand.lock" || slices.Contains(i.orphans, "vms/"+id) {
			continue
		}
		if v := i.census.VMs[id]; v.ID == "" || v.State == "stopped" {
			i.report("the runtime directory contains %s, and the state of the VM is %q", name, v.State)
		}
	}
}

// AssertEmpty fails the test if a VM, a disk, a template or a file of any is left.
func (d *Daemon) AssertEmpty() {
	d.T.Helper()
	for _, list := range []string{"/vms", "/disks", "/templates"} {
		if a := d.Call("GET", list, nil).Want(200); strings.TrimSpace(string(a.Body)) != "[]" {
			d.T.Errorf("%s is not empty: %s", list, a.Body)
		}
	}
	for _, dir := range []string{filepath.Join(d.StateDir, "vms"), filepath.Join(d.StateDir, "disks"), d.RuntimeDir} {
		for _, name := range d.FileNames(dir) {
			if name != "vmand.sock" && name != "vmand.lock" {
				d.T.Errorf("%s is left", filepath.Join(dir, name))
			}
		}
	}
}

// FileNames returns the names of the files in a directory, none if it does not exist.
func (d *Daemon) FileNames(dir string) (names []string) {
	d.T.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		d.T.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
