package harness

import (
	"fmt"
	"strings"
	"time"

	"vmand/openapi"
)

// CreateTemplate makes the template "small".
func (d *Daemon) CreateTemplate() {
	d.T.Helper()
	d.Call("POST", "/templates", map[string]any{"name": "small", "cpu_count": 1, "ram_amount": 128}).Want(201)
}

// CreateVM makes a VM of the template "small".
func (d *Daemon) CreateVM(id string) openapi.VM {
	d.T.Helper()
	return As[openapi.VM](d.Call("POST", "/vms", map[string]any{"template_name": "small", "name": id}).Want(201))
}

// Action runs an action to its end and returns the VM.
func (d *Daemon) Action(id, action string) openapi.VM {
	d.T.Helper()
	return As[openapi.VM](d.Call("POST", "/vms/"+id+"/actions/"+action, nil, Wait).Want(200))
}

// VM returns a VM.
func (d *Daemon) VM(id string) openapi.VM {
	d.T.Helper()
	return As[openapi.VM](d.Call("GET", "/vms/"+id, nil).Want(200))
}

// CreateDisk makes a data disk.
func (d *Daemon) CreateDisk(gib float64) openapi.Disk {
	d.T.Helper()
	return As[openapi.Disk](d.Call("POST", "/disks", map[string]any{"size": gib}).Want(201))
}

// AttachDisk attaches a disk to the VM of an id.
func (d *Daemon) AttachDisk(disk, id string) openapi.Disk {
	d.T.Helper()
	return As[openapi.Disk](d.Call("POST", "/disks/"+disk+"/attach", map[string]any{"vm_id": id}).Want(200))
}

// Operation returns the operation an answer's Location names.
func (d *Daemon) Operation(a Answer) openapi.Operation {
	d.T.Helper()
	path := a.Header.Get("Location")
	if !strings.HasPrefix(path, "/operations/") {
		d.T.Fatalf("%s: Location is %q", a.Request, path)
	}
	return As[openapi.Operation](d.Call("GET", path, nil).Want(200))
}

// WaitVM waits until the VM is in a state for a reason.
func (d *Daemon) WaitVM(id, state, reason string, patience time.Duration) openapi.VM {
	d.T.Helper()
	var v openapi.VM
	Eventually(d.T, patience, fmt.Sprintf("VM %s to be %s/%s", id, state, reason), func() error {
		v = d.VM(id)
		why := ""
		if v.StateReason != nil {
			why = string(*v.StateReason)
		}
		if string(v.State) != state || why != reason {
			return fmt.Errorf("it is %s/%s", v.State, why)
		}
		return nil
	})
	return v
}

// ForceStop stops a VM by force.
func (d *Daemon) ForceStop(id string) {
	d.T.Helper()
	d.Call("POST", "/vms/"+id+"/actions/stop", map[string]any{"force": true}, Wait).Want(200)
}

// DeleteAll deletes every VM, disk and template.
func (d *Daemon) DeleteAll() {
	d.T.Helper()
	for _, v := range As[[]openapi.VM](d.Call("GET", "/vms", nil).Want(200)) {
		d.Call("DELETE", "/vms/"+v.ID, nil).Want(204)
	}
	for _, disk := range As[[]openapi.Disk](d.Call("GET", "/disks", nil).Want(200)) {
		d.Call("DELETE", "/disks/"+disk.ID, nil).Want(204)
	}
	for _, tmpl := range As[[]openapi.Template](d.Call("GET", "/templates", nil).Want(200)) {
		d.Call("DELETE", "/templates/"+tmpl.Name, nil).Want(204)
	}
	for name := range d.Census().Networks {
		if name != "vman0" {
			d.Call("DELETE", "/networks/"+name, nil).Want(204)
		}
	}
}

// Exec runs a shell command in a guest with an agent and returns what it wrote.
func (d *Daemon) Exec(id, command string) string {
	d.T.Helper()
	r := As[openapi.ExecResult](d.Call("POST", "/vms/"+id+"/exec", map[string]any{"command": []string{"/bin/sh", "-c", command}, "timeout_seconds": 60}).Want(200))
	if r.ExitCode == nil || *r.ExitCode != 0 {
		d.T.Fatalf("%s ended with %+v", command, r)
	}
	return strings.TrimSpace(Deref(r.Stdout))
}

// CreateVMWith makes a VM of the template "small" with more properties.
func (d *Daemon) CreateVMWith(id string, more map[string]any) openapi.VM {
	d.T.Helper()
	body := map[string]any{"template_name": "small", "name": id}
	for k, v := range more {
		body[k] = v
	}
	return As[openapi.VM](d.Call("POST", "/vms", body).Want(201))
}
