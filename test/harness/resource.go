package harness

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"vmand/openapi"
)

// CreateTemplate creates the template "small": one vCPU, 128 MiB.
func (d *Daemon) CreateTemplate() {
	d.T.Helper()
	d.Call("POST", "/templates", map[string]any{"name": "small", "cpu_count": 1, "ram_amount": 128}).Want(201)
}

// CreateVM creates a VM of the template "small".
func (d *Daemon) CreateVM(id string) openapi.VM {
	d.T.Helper()
	return d.CreateVMWith(id, nil)
}

// CreateVMWith creates a VM of the template "small" with more properties.
func (d *Daemon) CreateVMWith(id string, more map[string]any) openapi.VM {
	d.T.Helper()
	body := map[string]any{"template_name": "small", "name": id}
	maps.Copy(body, more)
	return As[openapi.VM](d.Call("POST", "/vms", body).Want(201))
}

// VM returns a VM.
func (d *Daemon) VM(id string) openapi.VM {
	d.T.Helper()
	return Get[openapi.VM](d, "/vms/"+id)
}

// Action runs an action of a VM to its end and returns the VM.
func (d *Daemon) Action(id, action string) openapi.VM {
	d.T.Helper()
	return As[openapi.VM](d.Call("POST", "/vms/"+id+"/actions/"+action, nil, Wait).Want(200))
}

// ForceStop stops a VM without asking its guest.
func (d *Daemon) ForceStop(id string) {
	d.T.Helper()
	d.Call("POST", "/vms/"+id+"/actions/stop", map[string]any{"force": true}, Wait).Want(200)
}

// WaitVM waits until a VM is in a state for a reason.
func (d *Daemon) WaitVM(id, state, reason string, timeout time.Duration) openapi.VM {
	d.T.Helper()
	var v openapi.VM
	Eventually(d.T, timeout, fmt.Sprintf("VM %s to be %s (%s)", id, state, reason), func() error {
		v = d.VM(id)
		if now := Deref(v.StateReason); string(v.State) != state || now != reason {
			return fmt.Errorf("it is %s (%s)", v.State, now)
		}
		return nil
	})
	return v
}

// CreateDisk creates a data disk.
func (d *Daemon) CreateDisk(gib float64) openapi.Disk {
	d.T.Helper()
	return As[openapi.Disk](d.Call("POST", "/disks", map[string]any{"size": gib}).Want(201))
}

// AttachDisk attaches a data disk to a VM.
func (d *Daemon) AttachDisk(disk, vm string) openapi.Disk {
	d.T.Helper()
	return As[openapi.Disk](d.Call("POST", "/disks/"+disk+"/attach", map[string]any{"vm_id": vm}).Want(200))
}

// Operation returns the operation that the Location of an answer names.
func (d *Daemon) Operation(a Answer) openapi.Operation {
	d.T.Helper()
	path := a.Header.Get("Location")
	if !strings.HasPrefix(path, "/operations/") {
		d.T.Fatalf("%s answered the Location %q, want an operation", a.Request, path)
	}
	return Get[openapi.Operation](d, path)
}

// Exec runs a shell command through the agent of a guest, ends the test if it fails, and
// returns its output.
func (d *Daemon) Exec(id, command string) string {
	d.T.Helper()
	return d.ExecWithin(id, command, 60)
}

// ExecWithin is Exec with a limit on the seconds that the command may take.
func (d *Daemon) ExecWithin(id, command string, seconds int) string {
	d.T.Helper()
	body := map[string]any{"command": []string{"/bin/sh", "-c", command}, "timeout_seconds": seconds}
	r := As[openapi.ExecResult](d.Call("POST", "/vms/"+id+"/exec", body).Want(200))
	if r.ExitCode == nil || *r.ExitCode != 0 {
		d.T.Fatalf("VM %s: %q ended with %+v", id, command, r)
	}
	return strings.TrimSpace(Deref(r.Stdout))
}

// Suspend has the guest of a VM, which needs an agent, suspend itself, and waits until the VM
// shows that.
func (d *Daemon) Suspend(id string) {
	d.T.Helper()
	d.Exec(id, "(sleep 0.3; echo mem >/sys/power/state) </dev/null >/dev/null 2>&1 &")
	d.WaitVM(id, "paused", "suspended", 30*time.Second)
}

// DeleteAll deletes every VM, disk, template and network, except the default network.
func (d *Daemon) DeleteAll() {
	d.T.Helper()
	c := d.Census()
	for id := range c.VMs {
		d.Call("DELETE", "/vms/"+id, nil).Want(204)
	}
	for id := range c.Disks {
		d.Call("DELETE", "/disks/"+id, nil).Want(204)
	}
	for _, template := range Get[[]openapi.Template](d, "/templates") {
		d.Call("DELETE", "/templates/"+template.Name, nil).Want(204)
	}
	for name := range c.Networks {
		if name != "vman0" {
			d.Call("DELETE", "/networks/"+name, nil).Want(204)
		}
	}
}

// WaitAgent waits until the guest agent of a VM is in a state.
func (d *Daemon) WaitAgent(id, state string) {
	d.T.Helper()
	Eventually(d.T, time.Minute, fmt.Sprintf("the agent of VM %s to be %s", id, state), func() error {
		if now := d.VM(id).Agent.State; string(now) != state {
			return fmt.Errorf("it is %s", now)
		}
		return nil
	})
}
