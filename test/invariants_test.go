package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmand/openapi"
)

// A census is what the API says there is.
type census struct {
	vms      map[string]openapi.VM
	disks    map[string]openapi.Disk
	networks map[string]bool
	images   map[string]openapi.Image
}

func (d *daemon) census() census {
	d.t.Helper()
	c := census{map[string]openapi.VM{}, map[string]openapi.Disk{}, map[string]bool{}, map[string]openapi.Image{}}
	for _, n := range as[[]openapi.Network](d.call("GET", "/networks", nil).want(200)) {
		c.networks[n.Name] = true
	}
	for _, i := range as[[]openapi.Image](d.call("GET", "/images", nil).want(200)) {
		c.images[i.Name] = i
	}
	for _, v := range as[[]openapi.VM](d.call("GET", "/vms", nil).want(200)) {
		c.vms[v.ID] = v
	}
	for _, disk := range as[[]openapi.Disk](d.call("GET", "/disks", nil).want(200)) {
		c.disks[disk.ID] = disk
	}
	return c
}

// violations compares what the API says with the host, and returns in words what
// must never be so once everything is settled: an operation without an end, a
// state that is none to stay in, a process or a file that no record accounts
// for, a record without its process or its file. Resources named in orphans,
// such as "vms/a", are expected to be there without a record.
func (d *daemon) violations(orphans ...string) []string {
	d.t.Helper()
	c := d.census()
	var found []string
	for _, state := range []string{"pending", "running"} {
		for _, op := range as[[]openapi.Operation](d.call("GET", "/operations?state="+state, nil).want(200)) {
			found = append(found, fmt.Sprintf("operation %s of %s is still %s", op.Kind, op.Resource, op.State))
		}
	}
	found = append(found, d.wrongVMs(c, orphans)...)
	found = append(found, d.wrongDisks(c, orphans)...)
	found = append(found, d.wrongImages(c, orphans)...)
	found = append(found, d.wrongNICs(c)...)
	if d.host != nil {
		found = append(found, d.wrongNetworks(c)...)
	}
	return append(found, d.wrongFiles(c, orphans)...)
}

// wrongVMs compares the VMs with the processes.
func (d *daemon) wrongVMs(c census, orphans []string) (found []string) {
	pids := d.qemus()
	for id, v := range c.vms {
		pid := d.pid(id)
		pids = slices.DeleteFunc(pids, func(p int) bool { return p == pid })
		switch alive := pid != 0; {
		case v.State == "starting" || v.State == "stopping":
			found = append(found, fmt.Sprintf("VM %s is %s", id, v.State))
		case alive != (v.State == "running" || v.State == "paused"):
			found = append(found, fmt.Sprintf("VM %s is %s (%s), and its process is %d", id, v.State, word(v.StateReason), pid))
		}
	}
	for _, r := range orphans {
		if id, ok := strings.CutPrefix(r, "vms/"); ok {
			pid := d.pid(id)
			pids = slices.DeleteFunc(pids, func(p int) bool { return p == pid })
		}
	}
	for _, pid := range pids {
		found = append(found, fmt.Sprintf("QEMU %d is nobody's", pid))
	}
	return found
}

// wrongDisks looks for disks that are in no state to stay in, or on no VM.
func (d *daemon) wrongDisks(c census, orphans []string) (found []string) {
	for id, disk := range c.disks {
		switch vmID := word(disk.VMID); {
		case disk.State != "available" && disk.State != "attached":
			found = append(found, fmt.Sprintf("disk %s is %s", id, disk.State))
		case (disk.State == "attached") != (vmID != ""):
			found = append(found, fmt.Sprintf("disk %s is %s, on VM %q", id, disk.State, vmID))
		case vmID != "" && c.vms[vmID].ID == "":
			found = append(found, fmt.Sprintf("disk %s is on VM %s, which is not there", id, vmID))
		}
	}
	return found
}

// wrongImages compares the images with the files of their content.
func (d *daemon) wrongImages(c census, orphans []string) (found []string) {
	want := map[string]bool{}
	for name, i := range c.images {
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
	for _, name := range d.names(filepath.Join(d.state, "images")) {
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
func (d *daemon) wrongFiles(c census, orphans []string) (found []string) {
	want := map[string]bool{}
	for id := range c.vms {
		want[filepath.Join("vms", id)] = true
	}
	for id := range c.disks {
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
		for _, name := range d.names(filepath.Join(d.state, dir)) {
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
	for id := range c.vms {
		for _, name := range d.names(filepath.Join(d.state, "vms", id)) {
			if strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".tmp") {
				found = append(found, fmt.Sprintf("%s is left in the directory of VM %s", name, id))
			}
		}
	}
	for _, name := range d.names(d.runtime) {
		id, _, _ := strings.Cut(name, ".")
		if of, ok := strings.CutPrefix(id, "passt-"); ok {
			id = of[:max(0, strings.LastIndexByte(of, '-'))]
		}
		if v := c.vms[id]; name != "vmand.sock" && name != "vmand.lock" && !slices.Contains(orphans, "vms/"+id) &&
			(v.ID == "" || v.State == "stopped") {
			found = append(found, fmt.Sprintf("%s is left in the runtime directory, and the VM is %q", name, v.State))
		}
	}
	return found
}

// names lists a directory; one that is not there is empty.
func (d *daemon) names(dir string) (names []string) {
	d.t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		d.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// passes waits until the observer has ended n passes that it had not when it was
// asked first.
func (d *daemon) passes(n int) {
	d.t.Helper()
	var last time.Time
	for seen := 0; seen < n+1; seen++ {
		eventually(d.t, 30*time.Second, "the observer's next pass", func() error {
			at := as[openapi.ObserverStatus](d.call("GET", "/observer/status", nil).want(200)).LastRunAt
			if at == nil && seen > 0 || at != nil && at.Time.Equal(last) {
				return fmt.Errorf("the last ended at %s", last)
			}
			if at != nil {
				last = at.Time
			}
			return nil
		})
	}
}

// word returns what a nullable word is, empty if it is null.
func word[T ~string](s *T) string {
	if s == nil {
		return ""
	}
	return string(*s)
}
