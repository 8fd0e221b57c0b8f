package server

import (
	"context"
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

func TestACDROMIsAttachedAndEjected(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"running", "stopped"} {
		t.Run(state, func(t *testing.T) {
			a := newAPI(t).withVM(t)
			a.upload(t, "netinst", "iso 1")
			a.upload(t, "disk", "raw")
			if state == "running" {
				a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
			}
			a.want(t, 201, "POST", "/vms/web-1/cdroms", `{"image":"netinst"}`)
			r := a.want(t, 201, "POST", "/vms/web-1/cdroms", `{"image":"netinst","boot_index":5}`)
			c := into[openapi.CDROM](t, r)
			if c.ID != "cd-2" || *c.Image != "netinst" || *c.BootIndex != 5 ||
				r.Header.Get("Location") != "/vms/web-1/cdroms/cd-2" {
				t.Errorf("%v %s", r.Header, r.body)
			}
			got := a.want(t, 200, "GET", "/vms/web-1/cdroms/cd-2", "")
			if string(got.body) != string(r.body) || got.Header.Get("ETag") != r.Header.Get("ETag") {
				t.Errorf("%v %s", got.Header, got.body)
			}
			a.want(t, 304, "GET", "/vms/web-1/cdroms/cd-2", "", "If-None-Match", r.Header.Get("ETag"))
			list := into[[]openapi.CDROM](t, a.want(t, 200, "GET", "/vms/web-1/cdroms", ""))
			if len(list) != 2 || list[0].ID != "cd-1" || list[0].BootIndex != nil || list[1].ID != "cd-2" {
				t.Errorf("%+v", list)
			}
			if v := into[openapi.VM](t, a.want(t, 200, "GET", "/vms/web-1", "")); len(v.CDROMs) != 2 ||
				*v.CDROMs[1].BootIndex != 5 {
				t.Errorf("%+v", v.CDROMs)
			}
			a.wantCode(t, 409, "in-use", "DELETE", "/images/netinst", "")
			for body, field := range map[string]string{
				`{"image":"none"}`:                    "/image",
				`{"image":"disk"}`:                    "/image",
				`{"image":"netinst","boot_index":5}`:  "/boot_index",
				`{"image":"netinst","boot_index":10}`: "/boot_index",
				`{"image":"netinst","boot_index":0}`:  "/boot_index",
				`{}`:                                  "/image",
			} {
				if p := a.want(t, 400, "POST", "/vms/web-1/cdroms", body).problem(t); len(p.Errors) != 1 ||
					p.Errors[0].Field != field {
					t.Errorf("%s: %+v", body, p)
				}
			}
			a.want(t, 412, "DELETE", "/vms/web-1/cdroms/cd-1", "", "If-Match", `"9999-1"`)
			a.want(t, 204, "DELETE", "/vms/web-1/cdroms/cd-1", "", "If-Match", r.Header.Get("ETag"))
			a.want(t, 412, "DELETE", "/vms/web-1/cdroms/cd-2", "", "If-Match", r.Header.Get("ETag"))
			for _, method := range []string{"GET", "DELETE"} {
				a.want(t, 404, method, "/vms/web-1/cdroms/cd-1", "")
				a.want(t, 404, method, "/vms/none/cdroms/cd-1", "")
				a.want(t, 400, method, "/vms/web-1/cdroms/cd-5", "")
			}
			a.want(t, 404, "POST", "/vms/none/cdroms", `{"image":"netinst"}`)
			a.want(t, 404, "GET", "/vms/none/cdroms", "")
			for range 3 {
				a.want(t, 201, "POST", "/vms/web-1/cdroms", `{"image":"netinst"}`)
			}
			a.wantCode(t, 409, "limit-reached", "POST", "/vms/web-1/cdroms", `{"image":"netinst"}`)
		})
	}
}

func TestACDROMThatQEMURefusesIsNotRecorded(t *testing.T) {
	t.Parallel()
	a := running(t)
	a.upload(t, "netinst", "iso")
	a.driver.Hook = hook("SetCDROMs", func(context.Context) error {
		return &vm.Fault{
			Code:   vm.CodeOperationFailed,
			Detail: "refused",
		}
	})
	a.wantCode(t, 503, "operation-failed", "POST", "/vms/web-1/cdroms", `{"image":"netinst"}`)
	if list := a.want(t, 200, "GET", "/vms/web-1/cdroms", ""); strings.TrimSpace(string(list.body)) != "[]" {
		t.Errorf("%s", list.body)
	}
}

func TestVMsAndDisksAreCreatedFromImages(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	a.upload(t, "debian", "raw")
	a.upload(t, "netinst", "iso")
	r := a.want(t, 201, "POST", "/vms",
		`{"template_name":"small","name":"web-1","image":"debian","cdroms":[{"image":"netinst","boot_index":1}],
		"cloud_init":{"hostname":"shop"}}`)
	v := into[openapi.VM](t, r)
	if *v.Image != "debian" || v.RootDiskSize != 16./1024 || len(v.CDROMs) != 2 || v.CDROMs[0].ID != "seed" ||
		v.CDROMs[0].Image != nil || *v.CDROMs[1].Image != "netinst" ||
		v.Boot.CloudInitAt != nil || v.Boot.CloudInitResult != nil {
		t.Errorf("%s", r.body)
	}
	v = into[openapi.VM](t, a.want(t, 201, "POST", "/vms",
		`{"template_name":"small","name":"web-2","image":"debian","full_clone":true,"root_disk_size":1}`))
	if *v.Image != "debian" || v.RootDiskSize != 1 {
		t.Errorf("%+v", v)
	}
	if v := into[openapi.VM](t, a.want(t, 201, "POST", "/vms", `{"template_name":"small"}`)); v.Image != nil ||
		len(v.CDROMs) != 0 {
		t.Errorf("%+v", v)
	}
	for body, field := range map[string]string{
		`"image":"none"`:    "/image",
		`"image":"netinst"`: "/image",
		`"full_clone":true`: "/full_clone",
		`"image":"debian","root_disk_size":0.0009765625`:    "/root_disk_size",
		`"cdroms":[{"image":"netinst"},{"image":"debian"}]`: "/cdroms/1/image",
		`"cloud_init":{"users":[{"name":"default"}]}`:       "/cloud_init/users/0/name",
		`"cloud_init":{"password_hash":"secret"}`:           "/cloud_init/password_hash",
	} {
		if p := a.want(t, 400, "POST", "/vms", `{"template_name":"small",`+body+
			`}`).problem(t); len(p.Errors) != 1 || p.Errors[0].Field != field {
			t.Errorf("%s: %+v", body, p)
		}
	}
	r = a.want(t, 201, "POST", "/disks", `{"image":"debian","mount_point":"/dev/sdc"}`)
	d := into[openapi.Disk](t, r)
	if *d.Image != "debian" || d.Size != 16./1024 || d.State != "available" || *d.MountPoint != "/dev/sdc" ||
		r.Header.Get("Location") != "/disks/"+d.ID {
		t.Errorf("%s", r.body)
	}
	r = a.want(t, 202, "POST", "/disks", `{"from_disk":"web-2"}`)
	if o := a.operation(t, r); o.Kind != "disk.create" || into[openapi.Disk](t, r).Size != 1 ||
		r.Header.Get("ETag") != "" {
		t.Errorf("%v %s: %+v", r.Header, r.body, o)
	}
	r = a.want(t, 201, "POST", "/disks", `{"from_disk":"`+d.ID+`","size":2}`, "Prefer", "wait=30")
	if c := into[openapi.Disk](t, r); c.State != "available" || c.Size != 2 ||
		r.Header.Get("Location") != "/disks/"+c.ID || r.Header.Get("Preference-Applied") != "wait" {
		t.Errorf("%v %s", r.Header, r.body)
	}
	for body, field := range map[string]string{
		`{}`:                                     "/size",
		`{"mount_point":"/dev/sdb"}`:             "/size",
		`{"image":"none"}`:                       "/image",
		`{"image":"debian","from_disk":"web-1"}`: "/from_disk",
		`{"from_disk":"none"}`:                   "/from_disk",
		`{"from_disk":"web-2","size":0.5}`:       "/size",
		`{"image":"debian","size":0.0009765625}`: "/size",
		`{"image":"netinst"}`:                    "/image",
	} {
		if p := a.want(t, 400, "POST", "/disks", body).problem(t); len(p.Errors) != 1 || p.Errors[0].Field != field {
			t.Errorf("%s: %+v", body, p)
		}
	}
	if p := a.want(t, 409, "DELETE", "/images/debian", "").problem(t); p.Code != "in-use" ||
		!strings.Contains(p.Detail, "1 VM(s)") {
		t.Errorf("%+v", p)
	}
}
