package server

import (
	"context"
	"testing"

	"vmand/openapi"
)

func TestASourceIsBusyUntilItsDeletionIsForced(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	reached := make(chan struct{})
	a.driver.Hook = func(ctx context.Context, method, _ string) error {
		if method != "ImageOfDisk" {
			return nil
		}
		close(reached)
		<-ctx.Done()
		return ctx.Err()
	}
	r := a.want(t, 202, "POST", "/images", `{"name":"golden","from_disk":"web-1"}`)
	<-reached
	p := a.want(t, 409, "DELETE", "/vms/web-1", "").problem(t)
	if p.Code != "busy" || "/operations/"+p.OperationID != r.Header.Get("Location") || p.Hint == "" {
		t.Errorf("the problem is %+v, want the operation of %v", p, r.Header)
	}
	a.want(t, 400, "DELETE", "/vms/web-1?force=perhaps", "")
	a.want(t, 204, "DELETE", "/vms/web-1?force=true", "")
	if o := a.operation(t, r); o.State != "cancelled" {
		t.Errorf("the operation is %+v, want it cancelled", o)
	}
	a.want(t, 404, "GET", "/images/golden", "")

	d := into[openapi.Disk](t, a.want(t, 201, "POST", "/disks", `{"size":1}`))
	a.want(t, 400, "PATCH", "/disks/"+d.ID, `{"size":2,"force":1}`)
	a.want(t, 200, "PATCH", "/disks/"+d.ID, `{"size":2,"force":true}`)
	a.want(t, 204, "DELETE", "/disks/"+d.ID+"?force=true", "")
}
