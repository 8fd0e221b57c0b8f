package server

import (
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

func TestOrphansAreAdoptedTerminatedAndDeletedOnRequest(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	for _, id := range []string{"disk-1", "disk-2"} {
		if err := a.driver.CreateDisk(t.Context(), id, vm.DiskFile{SizeMiB: 512}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"ghost-1", "ghost-2"} {
		a.driver.AddVMFiles(id)
		a.driver.Set(id, vm.StatusRunning)
	}
	o := into[openapi.Operation](t, a.want(t, 200, "POST", "/observer/orphans/disks:disk-1/adopt", ""))
	if o.Kind != "disk.adopt" || o.Resource != "disks/disk-1" || o.State != "succeeded" ||
		o.RequestedBy != "token:admin" {
		t.Errorf("%+v", o)
	}
	if d := into[openapi.Disk](t, a.want(t, 200, "GET", "/disks/disk-1", "")); d.State != "available" || d.Size != 0.5 {
		t.Errorf("%+v", d)
	}
	o = into[openapi.Operation](t,
		a.want(t, 200, "POST", "/observer/orphans/vms:ghost-1/adopt", `{"template_name":"small"}`))
	if v := into[openapi.VM](t, a.want(t, 200, "GET", "/vms/ghost-1", "")); o.Kind != "vm.adopt" ||
		v.State != "running" || v.VMTemplate.Name != "small" {
		t.Errorf("%+v: %+v", o, v)
	}
	p := a.want(t, 409, "POST", "/observer/orphans/vms:ghost-2/delete", "").problem(t)
	if p.Code != "invalid-state" || !strings.Contains(p.Detail, "process") {
		t.Errorf("%+v", p)
	}
	o = into[openapi.Operation](t, a.want(t, 200, "POST", "/observer/orphans/vms:ghost-2/terminate", "{}"))
	if o.Kind != "orphan.terminate" {
		t.Errorf("%+v", o)
	}
	a.wantCode(t, 409, "invalid-state", "POST", "/observer/orphans/vms:ghost-2/terminate", "")
	for _, id := range []string{"vms:ghost-2", "disks:disk-2"} {
		if o = into[openapi.Operation](t, a.want(t, 200, "POST", "/observer/orphans/"+id+
			"/delete", "")); o.Kind != "orphan.delete" {
			t.Errorf("%+v", o)
		}
		a.want(t, 404, "POST", "/observer/orphans/"+id+"/delete", "")
	}
	if a.driver.Processes() != 1 {
		t.Errorf("%d processes", a.driver.Processes())
	}
}

func TestResourcesThatAreNotOrphansAreUnchanged(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	for _, verb := range []string{"adopt", "terminate", "delete"} {
		body := ""
		if verb == "adopt" {
			body = `{"template_name":"small"}`
		}
		a.want(t, 409, "POST", "/observer/orphans/vms:web-1/"+verb, body)
		a.want(t, 404, "POST", "/observer/orphans/vms:nobody/"+verb, body)
	}
	if len(a.driver.Calls()) != 2 || a.driver.Processes() != 1 {
		t.Errorf("calls %v", a.driver.Calls())
	}
	for path, body := range map[string]string{
		"vms:ghost/adopt":        "",
		"disks:disk-1/adopt":     `{"template_name":"small"}`,
		"disks:disk-1/terminate": "",
		"ghost/adopt":            "",
		"templates:small/delete": "",
	} {
		if p := a.want(t, 400, "POST", "/observer/orphans/"+path, body).problem(t); len(p.Errors) != 1 {
			t.Errorf("%s: %+v", path, p)
		}
	}
	a.driver.AddVMFiles("ghost")
	p := a.want(t, 400, "POST", "/observer/orphans/vms:ghost/adopt", `{"template_name":"none"}`).problem(t)
	if p.Errors != nil && p.Errors[0].Field != "/template_name" {
		t.Errorf("%+v", p)
	}
}
