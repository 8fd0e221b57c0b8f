package server

import (
	"context"
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

func TestADiskIsCreatedAttachedGrownDetachedAndDeleted(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	r := a.want(t, 201, "POST", "/disks", `{"size":0.5,"mount_point":"/dev/sdc"}`)
	d := into[openapi.Disk](t, r)
	if d.Size != 0.5 || d.State != "available" || d.VMID != nil || d.MountPoint == nil || *d.MountPoint != "/dev/sdc" {
		t.Errorf("created %+v", d)
	}
	path := "/disks/" + d.ID
	if r.Header.Get("Location") != path {
		t.Errorf("Location %q", r.Header.Get("Location"))
	}
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	r = a.want(t, 200, "POST", path+"/attach", `{"vm_id":"web-1"}`, "Prefer", "wait=5")
	d = into[openapi.Disk](t, r)
	if d.State != "attached" || d.VMID == nil || *d.VMID != "web-1" || d.GuestDevice == nil ||
		r.Header.Get("Preference-Applied") != "wait" {
		t.Errorf("attached %+v", d)
	}
	if p := a.want(t, 409, "POST", path+"/attach", `{"vm_id":"web-1"}`).problem(t); !strings.Contains(p.Detail,
		"already attached") {
		t.Errorf("problem %+v", p)
	}
	if p := a.want(t, 409, "DELETE", path, "").problem(t); p.Code != "in-use" ||
		!strings.Contains(p.Detail, "attached") {
		t.Errorf("problem %+v", p)
	}
	for query, n := range map[string]int{
		"?vm_id=web-1":     1,
		"?vm_id=web-2":     0,
		"?state=attached":  1,
		"?state=available": 0,
	} {
		if got := len(into[[]openapi.Disk](t, a.want(t, 200, "GET", "/disks"+query, ""))); got != n {
			t.Errorf("%s: %d disks, want %d", query, got, n)
		}
	}
	a.want(t, 400, "PATCH", path, `{"size":0.25}`)
	etag := a.want(t, 200, "GET", path, "").Header.Get("ETag")
	r = a.want(t, 200, "PATCH", path, `{"size":16384}`, "If-Match", etag)
	if got := into[openapi.Disk](t, r).Size; got != 16384 {
		t.Errorf("size %v", got)
	}
	a.want(t, 412, "PATCH", path, `{"size":16384}`, "If-Match", etag)
	a.want(t, 304, "GET", path, "", "If-None-Match", r.Header.Get("ETag"))
	d = into[openapi.Disk](t, a.want(t, 200, "POST", path+"/detach", "{}"))
	if d.State != "available" || d.VMID != nil || d.MountPoint != nil || d.GuestDevice != nil {
		t.Errorf("detached %+v", d)
	}
	if p := a.want(t, 409, "POST", path+"/detach", "").problem(t); !strings.Contains(p.Detail, "not attached") {
		t.Errorf("problem %+v", p)
	}
	a.want(t, 204, "DELETE", path, "", "If-Match", "*")
	a.want(t, 404, "GET", path, "")
}

func TestAttachingNamesAMissingVM(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	d := into[openapi.Disk](t, a.want(t, 201, "POST", "/disks", `{"size":1}`))
	a.want(t, 404, "POST", "/disks/"+d.ID+"/attach", `{"vm_id":"web-9"}`)
	p := a.want(t, 400, "POST", "/disks/"+d.ID+"/attach", `{}`).problem(t)
	if len(p.Errors) != 1 || p.Errors[0].Field != "/vm_id" || p.Errors[0].Detail != "is missing" {
		t.Errorf("problem %+v", p)
	}
}

func TestADiskThatTheGuestDoesNotReleaseStaysDetaching(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	d := into[openapi.Disk](t, a.want(t, 201, "POST", "/disks", `{"size":1}`))
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	a.want(t, 200, "POST", "/disks/"+d.ID+"/attach", `{"vm_id":"web-1"}`)
	a.driver.Hook = hook("DetachDisk", func(context.Context) error {
		return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "the guest has not released it"}
	})
	r := a.want(t, 202, "POST", "/disks/"+d.ID+"/detach", "", "Prefer", "wait=1")
	if got := into[openapi.Disk](t, r).State; got != "detaching" {
		t.Errorf("state %s", got)
	}
	a.want(t, 200, "GET", r.Header.Get("Location"), "")
}

func TestAFullHostIs507(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.driver.Hook = hook("CreateDisk", func(context.Context) error {
		return &vm.Fault{Code: vm.CodeInsufficientStorage, Detail: "no space left"}
	})
	if p := a.want(t, 507, "POST", "/disks", `{"size":1}`).problem(t); p.Code != "insufficient-storage" ||
		p.OperationID == "" {
		t.Errorf("problem %+v", p)
	}
}
