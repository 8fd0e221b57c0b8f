package server

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

func TestAStartIsHeldUntilTheGuestHasItsAddress(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	done := make(chan reply, 1)
	go func() { done <- a.ask(t, "POST", "/vms/web-1/actions/start?wait_for=ip", "", "Prefer", "wait=30") }()
	for {
		next := a.manager.NextEvent() // before the read, or an event can be missed
		if into[openapi.VM](t, a.want(t, 200, "GET", "/vms/web-1", "")).State == "running" {
			break
		}
		<-next
	}
	select {
	case r := <-done:
		t.Fatalf("answered too early: %s", r.body)
	case <-time.After(20 * time.Millisecond):
	}
	a.manager.Guests.Mark("web-1", vm.BootDHCP, time.Now())
	r := <-done
	v := into[openapi.VM](t, r)
	if r.StatusCode != 200 || v.Boot.DHCPAckAt == nil || r.Header.Get("Preference-Applied") != "wait" {
		t.Errorf("status %d, %v, %s", r.StatusCode, r.Header, r.body)
	}
}

func TestAStartIsHeldUntilAPortAnswers(t *testing.T) {
	t.Parallel()
	for _, action := range []string{"start", "restart"} {
		t.Run(action, func(t *testing.T) {
			a := newAPI(t).withVM(t)
			if action == "restart" {
				a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
			}
			var probes atomic.Int32
			a.network.Hook = func(_ context.Context, method, _ string) error {
				if method == "Probe" && probes.Add(1) < 3 {
					return errors.New("refused")
				}
				return nil
			}
			r := a.want(t, 200, "POST", "/vms/web-1/actions/"+action+"?wait_for=port:22", "", "Prefer", "wait=30")
			if v := into[openapi.VM](t, r); v.Boot.FirstTCPAt == nil || probes.Load() != 3 ||
				r.Header.Get("Preference-Applied") != "wait" {
				t.Errorf("%d probes; %s", probes.Load(), r.body)
			}
		})
	}
}

func TestUnfinishedWaitIsAccepted(t *testing.T) {
	t.Parallel()
	records := &forgetful{}
	a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records }).withVM(t)
	for range 2 { // the second answer is built from the operation
		r := a.want(t, 202, "POST", "/vms/web-1/actions/start?wait_for=ip", "", "Prefer", "wait=1", headerKey, "k")
		if v := into[openapi.VM](t, r); v.State != "running" || r.Header.Get("Preference-Applied") != "" {
			t.Errorf("%v %s", r.Header, r.body)
		}
		if o := a.operation(t, r); o.State != "succeeded" {
			t.Errorf("%+v", o)
		}
	}
}

func TestWaitingForAnImpossibleConditionIsAProblem(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 201, "POST", "/networks", `{"name":"alone","mode":"user"}`)
	a.want(t, 201, "POST", "/vms", `{"template_name":"small","name":"web-2","nics":[{"network":"alone"}]}`)
	p := a.want(t, 400, "POST", "/vms/web-2/actions/start?wait_for=ip", "", "Prefer", "wait=30").problem(t)
	if len(p.Errors) != 1 || p.Errors[0].Field != "wait_for" {
		t.Errorf("%+v", p)
	}
	a.network.Hook = func(_ context.Context, method, id string) error {
		if method == "Probe" {
			a.driver.Set(id, "gone")
			if _, err := a.manager.Settle(context.Background(), vm.VMResource(id)); err != nil {
				return err
			}
			return errors.New("refused")
		}
		return nil
	}
	a.wantCode(t, 409, "invalid-state", "POST", "/vms/web-1/actions/start?wait_for=port:22", "", "Prefer", "wait=30")
}

func TestInvalidWaitForIsRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	for query, prefer := range map[string]string{
		"ip":             "",
		"port:22":        "wait=0",
		"port:0":         "wait=1",
		"port:65536":     "wait=1",
		"port":           "wait=1",
		"port:022":       "wait=1",
		"dns":            "wait=1",
		"ip&wait_for=ip": "wait=1",
		"":               "wait=1",
	} {
		header := []string{}
		if prefer != "" {
			header = []string{"Prefer", prefer}
		}
		for _, action := range []string{"start", "restart"} {
			p := a.want(t, 400, "POST", "/vms/web-1/actions/"+action+"?wait_for="+query, "", header...).problem(t)
			if len(p.Errors) != 1 || p.Errors[0].Field != "wait_for" {
				t.Errorf("%s: %+v", query, p)
			}
		}
	}
	a.want(t, 400, "POST", "/vms/web-1/actions/stop?wait_for=ip", "", "Prefer", "wait=1")
	if v := into[openapi.VM](t, a.want(t, 200, "GET", "/vms/web-1", "")); v.State != "stopped" {
		t.Errorf("the VM was started: %s", v.State)
	}
}
