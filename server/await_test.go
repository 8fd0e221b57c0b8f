package server

import (
	"context"
	"errors"
	"strings"
	"sync"
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

func TestGetWaitsForARunningVM(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	probed := make(chan struct{}, 100)
	var open atomic.Bool
	a.network.Hook = func(_ context.Context, method, _ string) error {
		if method == "Probe" {
			probed <- struct{}{}
		}
		if method == "Probe" && !open.Load() {
			return errors.New("refused")
		}
		return nil
	}
	for _, request := range [][2]string{
		{"GET", "/vms/web-1?wait_for=port:22"}, {"POST", "/vms/web-1/actions/start?wait_for=port:22"},
	} {
		open.Store(false)
		done := make(chan reply, 1)
		go func() { done <- a.ask(t, request[0], request[1], "", "Prefer", "wait=30") }()
		<-probed
		open.Store(true)
		r := <-done
		if v := into[openapi.VM](t, r); r.StatusCode != 200 || v.Boot.FirstTCPAt == nil ||
			r.Header.Get("Preference-Applied") != "wait" || (r.Header.Get("Etag") == "") != (request[0] == "POST") {
			t.Errorf("%s: status %d, %v, %s", request[1], r.StatusCode, r.Header, r.body)
		}
		open.Store(false)
		r = a.want(t, 202, request[0], request[1], "", "Prefer", "wait=1")
		if v := into[openapi.VM](t, r); v.State != "running" || r.Header.Get("Preference-Applied") != "" {
			t.Errorf("%s: %v, %s", request[1], r.Header, r.body)
		}
	}
	// A repeated request with a key waits again: it has no operation.
	open.Store(true)
	for range 2 {
		a.want(t, 200, "POST", "/vms/web-1/actions/start?wait_for=port:22", "", "Prefer", "wait=30", headerKey, "k")
	}
	etag := a.want(t, 200, "GET", "/vms/web-1", "").Header.Get("Etag")
	a.want(t, 304, "GET", "/vms/web-1?wait_for=port:22", "", "Prefer", "wait=1", "If-None-Match", etag)
}

func TestWaitGoesOnOverARestart(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	stopping, stop := make(chan struct{}), make(chan struct{})
	var probes atomic.Int32
	a.driver.Hook = hook("Shutdown", func(context.Context) error { close(stopping); <-stop; return nil })
	a.network.Hook = func(_ context.Context, method, _ string) error {
		if method == "Probe" {
			probes.Add(1)
		}
		return nil
	}
	restart := a.want(t, 202, "POST", "/vms/web-1/actions/restart", "")
	<-stopping
	for _, request := range [][2]string{ // the guest of the last run would answer
		{"GET", "/vms/web-1?wait_for=port:22"}, {"POST", "/vms/web-1/actions/start?wait_for=port:22"},
	} {
		r := a.want(t, 202, request[0], request[1], "", "Prefer", "wait=1")
		if request[0] == "POST" && r.Header.Get("Location") != restart.Header.Get("Location") {
			t.Errorf("location is %s", r.Header.Get("Location"))
		}
	}
	if n := probes.Load(); n != 0 {
		t.Errorf("%d probes while the VM stops", n)
	}
	done := make(chan reply, 2)
	go func() { done <- a.ask(t, "GET", "/vms/web-1?wait_for=port:22", "", "Prefer", "wait=30") }()
	go func() { done <- a.ask(t, "POST", "/vms/web-1/actions/start?wait_for=port:22", "", "Prefer", "wait=30") }()
	close(stop)
	for range 2 {
		r := <-done
		if v := into[openapi.VM](t, r); r.StatusCode != 200 || v.State != "running" {
			t.Errorf("status %d, %s", r.StatusCode, r.body)
		}
	}
}

// A VM that stops because the host shuts down is to run after the next boot. It does not restart.
func TestWaitForAVMThatStopsIsRefused(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{"host shutdown": `{"reason":"host-shutdown"}`, "requested": `{}`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t).withVM(t)
			a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
			stopping, stop := make(chan struct{}), make(chan struct{})
			defer close(stop)
			a.driver.Hook = hook("Shutdown", func(context.Context) error { close(stopping); <-stop; return nil })
			a.want(t, 202, "POST", "/vms/web-1/actions/stop", body)
			<-stopping
			a.want(t, 409, "POST", "/vms/web-1/actions/start?wait_for=port:22", "", "Prefer", "wait=30")
			a.wantCode(t, 409, "invalid-state", "GET", "/vms/web-1?wait_for=port:22", "", "Prefer", "wait=30")
		})
	}
}

// A viewer must not make the host connect to a guest, or run a program in it.
func TestConditionsThatReachTheGuestNeedTheRoleOperator(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	var reached atomic.Int32
	a.network.Hook = func(_ context.Context, method, _ string) error {
		if method == "Probe" {
			reached.Add(1)
		}
		return nil
	}
	a.driver.Run = func(string, vm.GuestCommand) vm.GuestResult {
		reached.Add(1)
		return vm.GuestResult{Exited: true, Stdout: []byte("absent")}
	}
	secret, hash := NewToken()
	if err := a.store.PutToken(t.Context(), vm.Token{Name: "v", Role: vm.RoleViewer, Hash: hash}); err != nil {
		t.Fatal(err)
	}
	if err := a.ReloadTokens(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin := a.token
	for _, condition := range []string{"port:22", "cloud-init"} {
		a.token = secret
		p := a.want(t, 403, "GET", "/vms/web-1?wait_for="+condition, "", "Prefer", "wait=1").problem(t)
		if p.Detail != "wait_for=port:N and wait_for=cloud-init need the role operator" || reached.Load() != 0 {
			t.Errorf("%s: the guest was reached %d times; %+v", condition, reached.Load(), p)
		}
	}
	a.want(t, 202, "GET", "/vms/web-1?wait_for=ip", "", "Prefer", "wait=1")
	a.token = admin
	a.want(t, 200, "GET", "/vms/web-1?wait_for=port:22", "", "Prefer", "wait=30")
}

func TestWaitEndsWithTheVM(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end    func(a *api)
		status int
		code   string
		detail string
	}{
		"stop": {func(a *api) {
			a.want(t, 200, "POST", "/vms/web-1/actions/stop", `{"force":true}`, "Prefer", "wait=30")
		}, 409, "invalid-state", "ended while a request waited"},
		"crash": {func(a *api) {
			a.driver.Set("web-1", "gone")
			if _, err := a.manager.Settle(context.Background(), vm.VMResource("web-1")); err != nil {
				t.Error(err)
			}
		}, 409, "invalid-state", "error (crashed)"},
		"power-off": {func(a *api) {
			a.driver.Set("web-1", vm.StatusShutdown)
			if _, err := a.manager.Settle(context.Background(), vm.VMResource("web-1")); err != nil {
				t.Error(err)
			}
		}, 409, "invalid-state", "stopped (guest-shutdown)"},
		"delete": {func(a *api) { a.want(t, 204, "DELETE", "/vms/web-1", "") }, 0, "", "while a request waited"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t).withVM(t)
			a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
			waits := make(chan struct{})
			once := sync.OnceFunc(func() { close(waits) })
			a.network.Hook = func(_ context.Context, method, _ string) error {
				if method != "Probe" {
					return nil
				}
				once()
				return errors.New("refused")
			}
			done := make(chan reply, 1)
			go func() { done <- a.ask(t, "GET", "/vms/web-1?wait_for=port:22", "", "Prefer", "wait=300") }()
			<-waits
			test.end(a)
			r := <-done
			p := r.problem(t)
			if test.status != 0 && (r.StatusCode != test.status || p.Code != openapi.ProblemCode(test.code)) ||
				!strings.Contains(p.Detail, test.detail) {
				t.Errorf("status %d, %+v", r.StatusCode, p)
			}
		})
	}
}

func TestWaitForAVMThatDoesNotRunIsRefused(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	p := a.want(t, 409, "GET", "/vms/web-1?wait_for=agent", "", "Prefer", "wait=30").problem(t)
	if p.Hint != "start it first" || !strings.Contains(p.Detail, "VM web-1 is not running: it is stopped") {
		t.Errorf("%+v", p)
	}
	a.wantCode(t, 404, "not-found", "GET", "/vms/none?wait_for=agent", "", "Prefer", "wait=30")
	a.wantCode(t, 400, "invalid-request", "GET", "/vms/web-1?wait_for=agent", "")
	a.wantCode(t, 400, "invalid-request", "GET", "/vms/web-1?wait_for=dns", "", "Prefer", "wait=30")
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	a.want(t, 200, "POST", "/vms/web-1/actions/pause", "", "Prefer", "wait=30")
	a.wantCode(t, 409, "invalid-state", "POST", "/vms/web-1/actions/start?wait_for=agent", "", "Prefer", "wait=30")
	a.wantCode(t, 409, "invalid-state", "POST", "/vms/web-1/actions/start", "")
}
