package server

import (
	"strings"
	"testing"

	"vmand/openapi"
)

func TestSizesAreGivenAndShownInBytesToo(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	d := into[openapi.Disk](t, a.want(t, 201, "POST", "/disks", `{"size_bytes":1610612736}`))
	if d.Size != 1.5 || d.SizeBytes != 1610612736 {
		t.Errorf("%+v", d)
	}
	d = into[openapi.Disk](t, a.want(t, 200, "PATCH", "/disks/"+d.ID, `{"size_bytes":2147483648}`))
	if d.Size != 2 || d.SizeBytes != 2<<30 {
		t.Errorf("%+v", d)
	}
	a.want(t, 201, "POST", "/templates", smallTemplate)
	v := into[openapi.VM](t, a.want(t, 201, "POST", "/vms", `{"template_name":"small","root_disk_size_bytes":3221225472}`))
	if v.RootDiskSize != 3 || v.RootDiskSizeBytes != 3<<30 {
		t.Errorf("%+v", v)
	}
	for _, c := range []struct{ method, path, body, field, says string }{
		{"POST", "/disks", `{"size":1,"size_bytes":1073741824}`, "/size_bytes", "together with size"},
		{"POST", "/disks", `{"size_bytes":1073741825}`, "/size_bytes", "the nearest allowed values are 1073741824 and 1074790400"},
		{"POST", "/disks", `{"size_bytes":1}`, "/size_bytes", ""},
		{"POST", "/disks", `{}`, "/size", "is missing"},
		{"PATCH", "/disks/" + d.ID, `{}`, "/size", "size or size_bytes"},
		{"PATCH", "/disks/" + d.ID, `{"size_bytes":1073741824}`, "/size", "cannot shrink"},
		{"POST", "/vms", `{"template_name":"small","root_disk_size":1,"root_disk_size_bytes":1073741824}`, "/root_disk_size_bytes", "together"},
	} {
		p := a.want(t, 400, c.method, c.path, c.body).problem(t)
		if len(p.Errors) == 0 || p.Errors[0].Field != c.field || !strings.Contains(p.Errors[0].Detail, c.says) {
			t.Errorf("%s: %+v", c.body, p.Errors)
		}
	}
}
