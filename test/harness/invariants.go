package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmand/openapi"
)

// AssertEmpty fails the test if there is a trace of any VM or disk.
func (d *Daemon) AssertEmpty() {
	d.T.Helper()
	for _, list := range []string{"/vms", "/disks", "/templates"} {
		if a := d.Call("GET", list, nil).Want(200); strings.TrimSpace(string(a.Body)) != "[]" {
			d.T.Errorf("%s: %s", list, a.Body)
		}
	}
	for _, dir := range []string{filepath.Join(d.StateDir, "vms"), filepath.Join(d.StateDir, "disks")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			d.T.Error(err)
		}
		for _, e := range entries {
			d.T.Errorf("%s is left in %s", e.Name(), dir)
		}
	}
	entries, err := os.ReadDir(d.RuntimeDir)
	if err != nil {
		d.T.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "vmand.sock" && e.Name() != "vmand.lock" {
			d.T.Errorf("%s is left in the runtime directory", e.Name())
		}
	}
}

// Violations compares what the API says with the host, and returns in words what
// must never be so once everything is settled: an operation without an end, a
// state that is none to stay in, a process or a file that no record accounts
// for, a record without its process or its file. Resources named in orphans,
// such as "vms/a", are expected to be there without a record.
func (d *Daemon) Violations(orphans ...string) []string {
	d.T.Helper()
	c := d.Census()
	var found []string
	for _, state := range []string{"pending", "running"} {
		for _, op := range As[[]openapi.Operation](d.Call("GET", "/operations?state="+state, nil).Want(200)) {
			found = append(found, fmt.Sprintf("operation %s of %s is still %s", op.Kind, op.Resource, op.State))
		}
	}
	found = append(found, d.wrongVMs(c, orphans)...)
	found = append(found, d.wrongDisks(c, orphans)...)
	found = append(found, d.wrongImages(c, orphans)...)
	found = append(found, d.wrongNICs(c)...)
	if d.Host != nil {
		found = append(found, d.wrongNetworks(c)...)
	}
	return append(found, d.wrongFiles(c, orphans)...)
}

// wrongVMs compares the VMs with the processes.
func (d *Daemon) wrongVMs(c Census, orphans []string) (found []string) {
	pids := d.QEMUs()
	for id, v := range c.VMs {
		pid := d.VMPID(id)
		pids = slices.DeleteFunc(pids, func(p int) bool { return p == pid })
		switch alive := pid != 0; {
		case v.State == "starting" || v.State == "stopping":
			found = append(found, fmt.Sprintf("VM %s is %s", id, v.State))
		case alive != (v.State == "running" || v.State == "paused"):
			found = append(found, fmt.Sprintf("VM %s is %s (%s), and its process is %d", id, v.State, Deref(v.StateReason), pid))
		}
	}
	for _, r := range orphans {
		if id, ok := strings.CutPrefix(r, "vms/"); ok {
			pid := d.VMPID(id)
			pids = slices.DeleteFunc(pids, func(p int) bool { return p == pid })
		}
	}
	for _, pid := range pids {
		found = append(found, fmt.Sprintf("QEMU %d is nobody's", pid))
	}
	return found
}

// wrongDisks looks for disks that are in no state to stay in, or on no VM.
func (d *Daemon) wrongDisks(c Census, orphans []string) (found []string) {
	for id, disk := range c.Disks {
		switch vmID := Deref(disk.VMID); {
		case disk.State != "available" && disk.State != "attached":
			found = append(found, fmt.Sprintf("disk %s is %s", id, disk.State))
		case (disk.State == "attached") != (vmID != ""):
			found = append(found, fmt.Sprintf("disk %s is %s, on VM %q", id, disk.State, vmID))
		case vmID != "" && c.VMs[vmID].ID == "":
			found = append(found, fmt.Sprintf("disk %s is on VM %s, which is not there", id, vmID))
		}
	}
	return found
}

// wrongImages compares the images with the files of their content.
func (d *Daemon) wrongImages(c Census, orphans []string) (found []string) {
	want := map[string]bool{}
	for name, i := range c.Images {
		switch i.State {
		case "available":
			want[*i.SHA256] = true
		case "uploading": // a file for what has come, and one that says how much of it is durable
			want[".upload-"+name+".part"], want[".upload-"+name+".offset"] = false, false
		default:
			found = append(found, fmt.Sprintf("image %s is %s", name, i.State))
		}
	}
	for _, r := range orphans {
		if sum, ok := strings.CutPrefix(r, "images/"); ok {
			want[sum] = true
		}
	}
	for _, name := range d.FileNames(filepath.Join(d.StateDir, "images")) {
		if _, ok := want[name]; !ok {
			found = append(found, "images/"+name+" is nobody's")
		}
		delete(want, name)
	}
	for name, needed := range want {
		if needed {
			found = append(found, "images/"+name+" is missing")
		}
	}
	return found
}

// wrongFiles compares what is recorded with the files.
func (d *Daemon) wrongFiles(c Census, orphans []string) (found []string) {
	want := map[string]bool{}
	for id := range c.VMs {
		want[filepath.Join("vms", id)] = true
	}
	for id := range c.Disks {
		want[filepath.Join("disks", id+".qcow2")] = true
	}
	for _, r := range orphans {
		if id, ok := strings.CutPrefix(r, "disks/"); ok {
			r = filepath.Join("disks", id+".qcow2")
		}
		if !strings.HasPrefix(r, "images/") {
			want[r] = true
		}
	}
	for _, dir := range []string{"vms", "disks"} {
		for _, name := range d.FileNames(filepath.Join(d.StateDir, dir)) {
			if file := filepath.Join(dir, name); !want[file] {
				found = append(found, file+" is nobody's")
			} else {
				delete(want, file)
			}
		}
	}
	for file := range want {
		found = append(found, file+" is missing")
	}
	for id := range c.VMs {
		for _, name := range d.FileNames(filepath.Join(d.StateDir, "vms", id)) {
			if strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") {
				found = append(found, fmt.Sprintf("%s is left in the directory of VM %s", name, id))
			}
		}
	}
	for _, name := range d.FileNames(d.RuntimeDir) {
		id, _, _ := strings.Cut(name, ".")
		if of, ok := strings.CutPrefix(id, "passt-"); ok {
			id = of[:max(0, strings.LastIndexByte(of, '-'))]
		}
		if v := c.VMs[id]; name != "vmand.sock" && name != "vmand.lock" && !slices.Contains(orphans, "vms/"+id) &&
			(v.ID == "" || v.State == "stopped") {
			found = append(found, fmt.Sprintf("%s is left in the runtime directory, and the VM is %q", name, v.State))
		}
	}
	return found
}

// FileNames lists a directory; one that is not there is empty.
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
