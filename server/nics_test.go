package server

import (
	"context"
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

func TestAVMIsCreatedWithTheRequestedNICs(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	a.want(t, 201, "POST", "/networks",
		`{"name":"lab","mode":"isolated","subnet":"10.9.0.0/24","ipv6_subnet":"fd00:9::/64"}`)
	r := a.want(t, 201, "POST", "/vms", `{"template_name":"small","name":"web-1","nics":[
		{"network":"lab","ip":"10.9.0.77","mac":"52:00:00:AA:00:01","model":"e1000e",
		"rate_in":100,"rate_out":200,"link":"down"},{}]}`)
	v := into[openapi.VM](t, r)
	if len(v.NICs) != 2 || len(v.PortForwards) != 0 || *v.LocalIP != "10.9.0.77" || v.Boot.SpawnedAt != nil {
		t.Fatalf("%s", r.body)
	}
	n := v.NICs[0]
	if n.Slot != 0 || n.Network != "lab" || n.Mode != "isolated" || n.MAC != "52:00:00:aa:00:01" ||
		n.Model != "e1000e" || *n.IP != "10.9.0.77" ||
		*n.IPv6 != "fd00:9::4d" || n.RateIn != 100 || n.RateOut != 200 || n.Link != "down" ||
		n.State != "attached" || n.Reason != nil {
		t.Errorf("%+v", n)
	}
	n = v.NICs[1]
	if n.Slot != 1 || n.Network != "vman0" || n.Model != "virtio" || *n.IP != "192.168.100.2" || n.IPv6 != nil ||
		n.Link != "up" || n.RateIn != 0 {
		t.Errorf("%+v", n)
	}
	list := a.want(t, 200, "GET", "/vms/web-1/nics", "")
	if got := into[[]openapi.NIC](t, list); len(got) != 2 || got[0].MAC != v.NICs[0].MAC {
		t.Errorf("%s", list.body)
	}
	v = into[openapi.VM](t, a.want(t, 201, "POST", "/vms", `{"template_name":"small","nics":[]}`))
	if len(v.NICs) != 0 || v.LocalIP != nil || v.ReachableFromHost {
		t.Errorf("without NICs: %+v", v)
	}
	for body, want := range map[string][2]string{
		`[{"network":"lab","ip":"10.9.0.77"}]`:  {"in-use", "/nics/0/ip"},
		`[{},{"ip":"10.9.0.78"}]`:               {"invalid-request", "/nics/1/ip"},
		`[{"network":"none"}]`:                  {"invalid-request", "/nics/0/network"},
		`[{"network":"lab","ip":"10.9.0.1"}]`:   {"invalid-request", "/nics/0/ip"},
		`[{"network":"lab","ip":"10.9.0.255"}]`: {"invalid-request", "/nics/0/ip"},
		`[{},{"mac":"53:00:00:00:00:01"}]`:      {"invalid-request", "/nics/1/mac"},
		`[{"mac":"00:00:00:00:00:00"}]`:         {"invalid-request", "/nics/0/mac"},
	} {
		status := 400
		if want[0] == "in-use" {
			status = 409
		}
		p := a.want(t, status, "POST", "/vms", `{"template_name":"small","nics":`+body+`}`).problem(t)
		if string(p.Code) != want[0] || len(p.Errors) != 1 || p.Errors[0].Field != want[1] {
			t.Errorf("%s: %+v", body, p)
		}
	}
}

func TestANICIsAttachedChangedAndDetached(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"running", "stopped"} {
		t.Run(state, func(t *testing.T) {
			a := newAPI(t).withVM(t)
			if state == "running" {
				a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
			}
			r := a.want(t, 201, "POST", "/vms/web-1/nics", `{"ip":"192.168.100.50"}`)
			n := into[openapi.NIC](t, r)
			if n.Slot != 1 || *n.IP != "192.168.100.50" || n.State != "attached" ||
				r.Header.Get("Location") != "/vms/web-1/nics/1" {
				t.Errorf("%v %s", r.Header, r.body)
			}
			got := a.want(t, 200, "GET", "/vms/web-1/nics/1", "")
			if string(got.body) != string(r.body) || got.Header.Get("ETag") != r.Header.Get("ETag") {
				t.Errorf("%v %s", got.Header, got.body)
			}
			old := got.Header.Get("ETag")
			a.want(t, 304, "GET", "/vms/web-1/nics/1", "", "If-None-Match", old)
			n = into[openapi.NIC](t,
				a.want(t, 200, "PATCH", "/vms/web-1/nics/1", `{"rate_in":1000,"link":"down"}`, "If-Match", old))
			if n.RateIn != 1000 || n.RateOut != 0 || n.Link != "down" {
				t.Errorf("%+v", n)
			}
			n = into[openapi.NIC](t,
				a.want(t, 200, "PATCH", "/vms/web-1/nics/1", `{"rate_in":0,"rate_out":7,"link":"up"}`))
			if n.RateIn != 0 || n.RateOut != 7 || n.Link != "up" {
				t.Errorf("%+v", n)
			}
			n = into[openapi.NIC](t, a.want(t, 200, "PATCH", "/vms/web-1/nics/1",
				`{"extra_addresses":["192.168.100.200","192.168.100.224/28"]}`))
			if got := strings.Join(n.ExtraAddresses, " "); got != "192.168.100.200/32 192.168.100.224/28" || n.RateOut != 7 {
				t.Errorf("%+v", n)
			}
			n = into[openapi.NIC](t, a.want(t, 200, "PATCH", "/vms/web-1/nics/1", `{"extra_addresses":[]}`))
			if n.ExtraAddresses == nil || len(n.ExtraAddresses) != 0 {
				t.Errorf("%+v", n)
			}
			a.want(t, 412, "PATCH", "/vms/web-1/nics/1", `{"rate_in":1}`, "If-Match", old)
			a.want(t, 412, "DELETE", "/vms/web-1/nics/1", "", "If-Match", old)
			a.want(t, 400, "DELETE", "/vms/web-1/nics/1", "", "If-Match", "x")
			a.want(t, 400, "PATCH", "/vms/web-1/nics/1", `{"rate_in":1}`, "If-Match", "x")
			a.want(t, 204, "DELETE", "/vms/web-1/nics/1", "", "If-Match",
				a.want(t, 200, "GET", "/vms/web-1/nics/1", "").Header.Get("ETag"))
			for _, method := range []string{"GET", "DELETE"} {
				a.want(t, 404, method, "/vms/web-1/nics/1", "")
				a.want(t, 404, method, "/vms/web-2/nics/0", "")
			}
			a.want(t, 404, "PATCH", "/vms/web-1/nics/1", `{"rate_in":1}`)
			a.want(t, 404, "POST", "/vms/web-2/nics", `{}`)
			a.want(t, 404, "GET", "/vms/web-2/nics", "")
		})
	}
}

func TestInvalidNICsAreRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 201, "POST", "/networks", `{"name":"alone","mode":"user"}`)
	for body, want := range map[string][2]string{
		`{"ip":"192.168.100.2"}`:                              {"in-use", "/ip"},
		`{"network":"none"}`:                                  {"invalid-request", "/network"},
		`{"mac":"01:00:5e:00:00:01"}`:                         {"invalid-request", "/mac"},
		`{"network":"alone","ip":"10.0.2.99"}`:                {"invalid-request", "/ip"},
		`{"network":"alone","extra_addresses":["10.0.2.99"]}`: {"invalid-request", "/extra_addresses"},
		`{"extra_addresses":["192.168.100.1"]}`:               {"invalid-request", "/extra_addresses/0"},
	} {
		status := 400
		if want[0] == "in-use" {
			status = 409
		}
		p := a.want(t, status, "POST", "/vms/web-1/nics", body).problem(t)
		if string(p.Code) != want[0] || len(p.Errors) != 1 || p.Errors[0].Field != want[1] {
			t.Errorf("%s: %+v", body, p)
		}
	}
	for body, field := range map[string]string{
		`{}`:                                    "",
		`{"rate_in":-1}`:                        "/rate_in",
		`{"rate_out":1.5}`:                      "/rate_out",
		`{"link":"sideways"}`:                   "/link",
		`{"ip":"192.168.100.3"}`:                "/ip",
		`{"link":null}`:                         "/link",
		`{"extra_addresses":["192.168.100.1"]}`: "/extra_addresses/0",
		`{"extra_addresses":["192.168.100.9","10.0.0.1"]}`:                                    "/extra_addresses/1",
		`{"extra_addresses":["192.168.100.8/29","192.168.100.9"]}`:                            "/extra_addresses/1",
		`{"extra_addresses":["192.168.100.9/29"]}`:                                            "/extra_addresses/0",
		`{"extra_addresses":["fd00::1"]}`:                                                     "/extra_addresses/0",
		`{"extra_addresses":[` + strings.Repeat(`"192.168.100.9",`, 16) + `"192.168.100.9"]}`: "/extra_addresses",
		`{"extra_addresses":null}`:                                                            "/extra_addresses",
	} {
		p := a.want(t, 400, "PATCH", "/vms/web-1/nics/0", body).problem(t)
		if len(p.Errors) != 1 || p.Errors[0].Field != field {
			t.Errorf("%s: %+v", body, p)
		}
	}
	for _, slot := range []string{"8", "-1", "x", "1.5", "999999999999999999999"} {
		if p := a.want(t, 400, "GET", "/vms/web-1/nics/"+slot, "").problem(t); len(p.Errors) != 1 ||
			p.Errors[0].Field != "slot" {
			t.Errorf("%s: %+v", slot, p)
		}
	}
	for range 7 {
		a.want(t, 201, "POST", "/vms/web-1/nics", `{}`)
	}
	a.wantCode(t, 409, "limit-reached", "POST", "/vms/web-1/nics", `{}`)
}

func TestANICThatTheGuestDoesNotReleaseStaysDetaching(t *testing.T) {
	t.Parallel()
	records := &forgetful{}
	a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records }).withVM(t)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	a.driver.Hook = hook("DetachNIC", func(context.Context) error {
		return &vm.Fault{
			Code:   vm.CodeQEMUUnresponsive,
			Detail: "not yet",
		}
	})
	first := a.want(t, 202, "DELETE", "/vms/web-1/nics/0", "", headerKey, "k")
	if n := into[openapi.NIC](t, first); n.State != "detaching" ||
		!strings.HasPrefix(first.Header.Get("Location"), "/operations/") {
		t.Errorf("%v %s", first.Header, first.body)
	}
	a.want(t, 200, "GET", first.Header.Get("Location"), "")
	same(t, "detach, with the answer lost", first, a.ask(t, "DELETE", "/vms/web-1/nics/0", "", headerKey, "k"))
	a.driver.Hook = nil
	if _, err := a.manager.Settle(t.Context(), vm.VMResource("web-1")); err != nil {
		t.Fatal(err)
	}
	a.want(t, 404, "GET", "/vms/web-1/nics/0", "")
	a.want(t, 204, "DELETE", "/vms/web-1/nics/0", "", headerKey, "k")
}

// slow answers before the guest has taken a NIC.
type slow struct{ NICs }

func (s slow) Attach(ctx context.Context, id string, n vm.NewNIC) (vm.NIC, vm.Operation, error) {
	nic, o, err := s.NICs.Attach(ctx, id, n)
	nic.State = vm.NICAttaching
	return nic, o, err
}

func TestUnfinishedAttachOfANICIsAccepted(t *testing.T) {
	a := newAPI(t, func(f *fixture) { f.d.NICs = slow{f.d.NICs} }).withVM(t)
	r := a.want(t, 202, "POST", "/vms/web-1/nics", `{}`)
	if into[openapi.NIC](t, r).State != "attaching" {
		t.Errorf("%s", r.body)
	}
	if o := a.operation(t, r); o.Kind != "nic.attach" {
		t.Errorf("%+v", o)
	}
}

func TestAFailedAttachIsRepeated(t *testing.T) {
	t.Parallel()
	records := &forgetful{}
	a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records }).withVM(t)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	a.driver.Hook = hook("AttachNIC", func(context.Context) error {
		return &vm.Fault{
			Code:   vm.CodeOperationFailed,
			Detail: "refused",
		}
	})
	for range 2 {
		p := a.want(t, 503, "POST", "/vms/web-1/nics", `{}`, headerKey, "k").problem(t)
		if p.Code != "operation-failed" || p.OperationID == "" {
			t.Errorf("%+v", p)
		}
	}
	if n := len(into[[]openapi.NIC](t, a.want(t, 200, "GET", "/vms/web-1/nics", ""))); n != 1 {
		t.Errorf("%d NICs", n)
	}
}
