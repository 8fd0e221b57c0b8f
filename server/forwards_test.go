package server

import (
	"fmt"
	"testing"

	"vmand/openapi"
)

func TestPortsAreForwarded(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 201, "POST", "/networks", `{"name":"inside","mode":"isolated"}`)
	a.want(t, 201, "POST", "/vms/web-1/nics", `{"network":"inside"}`)
	r := a.want(t, 201, "POST", "/vms/web-1/port_forwards", `{"host_port":2222,"guest_port":22}`)
	f := into[openapi.PortForward](t, r)
	if f.NIC != 0 || f.Protocol != "tcp" || f.HostAddress != "0.0.0.0" || f.HostPort != 2222 || f.GuestPort != 22 || f.Ports != 1 ||
		r.Header.Get("Location") != "/vms/web-1/port_forwards/"+f.ID {
		t.Errorf("%v %s", r.Header, r.body)
	}
	got := a.want(t, 200, "GET", "/vms/web-1/port_forwards/"+f.ID, "")
	if string(got.body) != string(r.body) || got.Header.Get("ETag") != r.Header.Get("ETag") {
		t.Errorf("%v %s", got.Header, got.body)
	}
	a.want(t, 304, "GET", "/vms/web-1/port_forwards/"+f.ID, "", "If-None-Match", got.Header.Get("ETag"))
	a.want(t, 201, "POST", "/vms/web-1/port_forwards",
		`{"protocol":"udp","host_address":"127.0.0.1","host_port":2222,"guest_port":53,"nic":0}`)
	list := into[[]openapi.PortForward](t, a.want(t, 200, "GET", "/vms/web-1/port_forwards", ""))
	v := into[openapi.VM](t, a.want(t, 200, "GET", "/vms/web-1", ""))
	if len(list) != 2 || list[1].Protocol != "udp" || list[1].HostAddress != "127.0.0.1" ||
		fmt.Sprint(v.PortForwards) != fmt.Sprint(list) {
		t.Errorf("%+v, and in the VM %+v", list, v.PortForwards)
	}
	a.wantCode(t, 409, "in-use", "POST", "/vms/web-1/port_forwards", `{"host_port":2222,"guest_port":23}`)
	for body, field := range map[string]string{
		`{"host_port":1,"guest_port":1,"nic":7}`:                    "/nic",
		`{"host_port":1,"guest_port":1,"nic":1}`:                    "/nic",
		`{"host_port":1,"guest_port":1,"host_address":"224.0.0.1"}`: "/host_address",
		`{"host_port":1,"guest_port":1,"host_address":"::1"}`:       "/host_address",
		`{"host_port":1,"guest_port":1,"host_address":"::"}`:        "/host_address",
		`{"host_port":1,"guest_port":1,"host_address":"::%eth0"}`:   "/host_address",
		`{"host_port":1,"guest_port":1,"ports":0}`:                  "/ports",
		`{"host_port":1,"guest_port":1,"ports":1001}`:               "/ports",
		`{"host_port":65530,"guest_port":1,"ports":7}`:              "/ports",
	} {
		if p := a.want(t, 400, "POST", "/vms/web-1/port_forwards", body).problem(t); len(p.Errors) != 1 ||
			p.Errors[0].Field != field {
			t.Errorf("%s: %+v", body, p)
		}
	}
	many := into[openapi.PortForward](t, a.want(t, 201, "POST", "/vms/web-1/port_forwards",
		`{"host_port":3000,"guest_port":4000,"ports":1000}`))
	if many.Ports != 1000 {
		t.Errorf("%+v", many)
	}
	for body, code := range map[string]string{
		`{"host_port":3999,"guest_port":1}`:             "in-use",
		`{"host_port":2900,"guest_port":1,"ports":101}`: "in-use",
	} {
		a.wantCode(t, 409, code, "POST", "/vms/web-1/port_forwards", body)
	}
	a.want(t, 412, "DELETE", "/vms/web-1/port_forwards/"+f.ID, "", "If-Match", `"0-0"`)
	a.want(t, 204, "DELETE", "/vms/web-1/port_forwards/"+f.ID, "")
	for _, method := range []string{"GET", "DELETE"} {
		a.want(t, 404, method, "/vms/web-1/port_forwards/"+f.ID, "")
		a.want(t, 404, method, "/vms/web-2/port_forwards/"+f.ID, "")
	}
	a.want(t, 404, "GET", "/vms/web-2/port_forwards", "")
	a.want(t, 404, "POST", "/vms/web-2/port_forwards", `{"host_port":1,"guest_port":1}`)
}
