package server

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

func TestAStartIsHeldUntilTheAgentAnswers(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	beforeStart := time.Now().Add(-time.Hour)
	a.driver.SetAgent("web-1", vm.Agent{State: vm.AgentConnected, LastSeenAt: beforeStart})
	started := make(chan struct{})
	a.driver.Hook = hook("Start", func(context.Context) error { close(started); return nil })
	go func() {
		<-started
		a.driver.SetAgent("web-1", vm.Agent{State: vm.AgentConnected, LastSeenAt: time.Now().Add(time.Hour)})
	}()
	r := a.want(t, 200, "POST", "/vms/web-1/actions/start?wait_for=agent", "", "Prefer", "wait=30")
	if v := into[openapi.VM](t, r); v.State != "running" || v.Agent.State != "connected" ||
		r.Header.Get("Preference-Applied") != "wait" {
		t.Errorf("%s", r.body)
	}
}

func TestWaitWithoutAnAgentEndsInTime(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	for _, condition := range []string{"agent", "cloud-init"} {
		a.driver.SetAgent("web-1", vm.Agent{State: vm.AgentAbsent})
		begun := time.Now()
		a.want(t, 202, "POST", "/vms/web-1/actions/start?wait_for="+condition, "", "Prefer", "wait=1")
		if took := time.Since(begun); took < time.Second || took > 15*time.Second {
			t.Errorf("%s: took %v", condition, took)
		}
		a.want(t, 200, "POST", "/vms/web-1/actions/stop", `{"force":true}`, "Prefer", "wait=30")
	}
}

func TestAStartIsHeldUntilCloudInitIsDone(t *testing.T) {
	t.Parallel()
	prints := func(word, rest string) vm.GuestResult {
		return vm.GuestResult{Exited: true, Stdout: []byte(word + "\n" + rest)}
	}
	for name, test := range map[string]struct {
		results []vm.GuestResult // of the first calls; the last one repeats
		status  int
		detail  string
	}{
		"done at once": {
			[]vm.GuestResult{prints("result", `{"v1":{"datasource":"DataSourceNoCloud","errors":[]}}`)},
			200, "",
		},
		"done later": {
			[]vm.GuestResult{
				prints("running", `{"v1":{"stage":"init"}}`),
				prints("result", `{"v1":{"errors":[]}}`),
			},
			200, "",
		},
		"disabled":      {[]vm.GuestResult{prints("disabled", "")}, 200, ""},
		"not installed": {[]vm.GuestResult{prints("absent", "")}, 200, ""},
		"partially written": {
			[]vm.GuestResult{
				prints("running", `{"v1":`),
				prints("result", ``),
				prints("result", `{"v1":{"errors":[]}}`),
			},
			200, "",
		},
		"failed": {
			[]vm.GuestResult{prints("result", `{"v1":{"errors":["no\u001b[31m key","and\nmore"]}}`)},
			409, "no [31m key; and more",
		},
		"not run":                {[]vm.GuestResult{prints("not run", "")}, 202, ""},
		"unknown status":         {[]vm.GuestResult{prints("hello", `{"v1":{}}`)}, 202, ""},
		"still running":          {[]vm.GuestResult{prints("running", `{"v1":{"stage":null}}`)}, 202, ""},
		"a failing shell":        {[]vm.GuestResult{{Exited: true, ExitCode: 2, Stdout: []byte("absent")}}, 202, ""},
		"a shell without output": {[]vm.GuestResult{{}}, 202, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t).withVM(t)
			var calls atomic.Int32
			a.driver.Run = func(_ string, c vm.GuestCommand) vm.GuestResult {
				if c.Path != "/bin/sh" || !strings.Contains(strings.Join(c.Args, " "), "/run/cloud-init") {
					t.Errorf("%+v", c)
				}
				return test.results[min(int(calls.Add(1)), len(test.results))-1]
			}
			wait := "wait=20"
			if test.status == 202 {
				wait = "wait=1"
			}
			r := a.want(t, test.status, "POST", "/vms/web-1/actions/start?wait_for=cloud-init", "", "Prefer", wait)
			if p := r.problemOrNone(t); !strings.Contains(p.Detail, test.detail) ||
				(test.status == 409) != (p.Code == "guest-refused") {
				t.Errorf("%+v", p)
			}
			a.want(t, 200, "POST", "/vms/web-1/actions/stop", `{"force":true}`, "Prefer", "wait=30")
			events := into[[]openapi.Event](t, a.want(t, 200, "GET", "/events?type=vm.guest", ""))
			if len(events) != 0 {
				t.Errorf("waiting recorded guest events: %v", events)
			}
		})
	}
}

func (r reply) problemOrNone(t *testing.T) openapi.Problem {
	t.Helper()
	if r.StatusCode < 400 {
		return openapi.Problem{}
	}
	return r.problem(t)
}

func TestAVMIsCreatedAndStarted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	r := a.want(t, 202, "POST", "/vms", `{"template_name":"small","name":"a","start":true}`)
	if v := into[openapi.VM](t, r); v.ID != "a" || v.State == "stopped" ||
		!strings.HasPrefix(r.Header.Get("Location"), "/operations/") {
		t.Errorf("%v %s", r.Header, r.body)
	}
	r = a.want(t, 201, "POST", "/vms?wait_for=agent", `{"template_name":"small","name":"b","start":true}`, "Prefer",
		"wait=30", headerKey, "k")
	if v := into[openapi.VM](t, r); v.State != "stopped" && v.State != "running" ||
		r.Header.Get("Location") != "/vms/b" || r.Header.Get("Preference-Applied") != "wait" ||
		r.Header.Get("Etag") == "" {
		t.Errorf("%v %s", r.Header, r.body)
	}
	again := a.want(t, 201, "POST", "/vms?wait_for=agent", `{"template_name":"small","name":"b","start":true}`,
		"Prefer", "wait=30", headerKey, "k")
	if string(again.body) != string(r.body) || again.Header.Get(headerReplayed) != "true" {
		t.Errorf("%s", again.body)
	}
	a.driver.Hook = hook("Start", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	a.want(t, 202, "POST", "/vms", `{"template_name":"small","name":"c","start":true}`, "Prefer", "wait=1")
	refused := a.want(t, 400, "POST", "/vms?wait_for=agent", `{"template_name":"small","name":"d"}`, "Prefer", "wait=1")
	p := refused.problem(t)
	if len(p.Errors) != 1 || p.Errors[0].Field != "wait_for" {
		t.Errorf("%+v", p)
	}
	a.want(t, 400, "POST", "/vms?wait_for=agent", `{"template_name":"small","name":"d","start":true}`)
	a.want(t, 404, "GET", "/vms/d", "")
}

func TestAFailedStartKeepsTheCreatedVM(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	a.driver.Hook = hook("Start", func(context.Context) error {
		return &vm.Fault{Code: vm.CodeOperationFailed, Detail: "QEMU refused", Err: errors.New("no")}
	})
	const body = `{"template_name":"small","name":"a","start":true}`
	for range 2 { // a repeated request receives the same problem
		p := a.want(t, 503, "POST", "/vms", body, "Prefer", "wait=30", headerKey, "k").problem(t)
		if p.Code != "operation-failed" || p.OperationID == "" ||
			!strings.HasPrefix(p.Detail, "VM a was created, but: QEMU refused") {
			t.Errorf("%+v", p)
		}
	}
	if v := into[openapi.VM](t, a.want(t, 200, "GET", "/vms/a", "")); v.State != "error" && v.State != "stopped" {
		t.Errorf("%+v", v)
	}
	a.driver.Hook = hook("Admit", func(context.Context) error {
		return &vm.Fault{Code: vm.CodeInsufficientMemory, Detail: "not enough memory"}
	})
	a.want(t, 503, "POST", "/vms", `{"template_name":"small","name":"b","start":true}`, "Prefer", "wait=30")
	a.want(t, 200, "GET", "/vms/b", "")
}

// If the daemon ends between the creation and the start, a repeated request continues
// with the start.
func TestARepeatedRequestContinuesWithTheStart(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	a.driver.Hook = hook("Admit", func(context.Context) error {
		return &vm.Fault{Code: vm.CodeUnavailable, Detail: "not now"}
	})
	const body = `{"template_name":"small","name":"a","start":true}`
	a.want(t, 503, "POST", "/vms", body, headerKey, "k")
	a.driver.Hook = nil
	r := a.want(t, 201, "POST", "/vms", body, headerKey, "k", "Prefer", "wait=30")
	if v := into[openapi.VM](t, r); v.State != "running" || r.Header.Get(headerReplayed) != "true" {
		t.Errorf("%v %s", r.Header, r.body)
	}
}
