package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

func TestAVMIsCreatedListedReadAndDeleted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	r := a.want(t, 201, "POST", "/vms", `{"template_name":"small","name":"web-1","root_disk_size":0.5}`)
	if got := r.Header.Get("Location"); got != "/vms/web-1" {
		t.Errorf("Location %q", got)
	}
	created := into[openapi.VM](t, r)
	if created.ID != "web-1" || created.State != "stopped" || created.RootDiskSize != 0.5 ||
		created.VMTemplate.RAMAmount != 512 {
		t.Errorf("created %+v", created)
	}
	got := a.want(t, 200, "GET", "/vms/web-1", "")
	if string(got.body) != string(r.body) || got.Header.Get("ETag") != r.Header.Get("ETag") {
		t.Errorf("GET differs from the answer to POST:\n%s\n%s", r.body, got.body)
	}
	if n := len(into[[]openapi.VM](t, a.want(t, 200, "GET", "/vms", ""))); n != 1 {
		t.Errorf("%d VMs in the list", n)
	}
	if n := len(into[[]openapi.VM](t, a.want(t, 200, "GET", "/vms?state=running", ""))); n != 0 {
		t.Errorf("%d VMs run", n)
	}
	if n := len(into[[]openapi.VM](t, a.want(t, 200, "GET", "/vms?template_name=large", ""))); n != 0 {
		t.Errorf("%d VMs of another template", n)
	}
	a.want(t, 204, "DELETE", "/vms/web-1", "")
	p := a.want(t, 404, "GET", "/vms/web-1", "").problem(t)
	if p.Code != "not-found" || !strings.Contains(p.Detail, "web-1") || p.Instance != "/vms/web-1" {
		t.Errorf("problem %+v", p)
	}
}

func TestAVMWithoutANameGetsAGeneratedName(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	v := into[openapi.VM](t, a.want(t, 201, "POST", "/vms", `{"template_name":"small"}`))
	if !vm.ValidName(v.ID) {
		t.Errorf("id %q", v.ID)
	}
	a.want(t, 200, "GET", "/vms/"+v.ID, "")
}

func TestInvalidVMsAreRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	p := a.want(t, 409, "POST", "/vms", webVM).problem(t)
	if p.Code != "already-exists" || !strings.Contains(p.Detail, "already exists") {
		t.Errorf("problem %+v", p)
	}
	p = a.want(t, 400, "POST", "/vms", `{"template_name":"huge"}`).problem(t)
	if len(p.Errors) != 1 || p.Errors[0].Field != "/template_name" || !strings.Contains(p.Detail, "not found") {
		t.Errorf("problem %+v", p)
	}
}

func TestActionsAreAnsweredAtOnceOrAtTheirEnd(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	steps := []struct {
		action, body, prefer string
		status               int
		state                openapi.VMState
	}{
		{"start", "", "wait=30", 200, "running"},
		{"pause", "{}", "respond-async, wait=30", 200, "paused"},
		{"resume", "", "wait=30", 200, "running"},
		{"reset", "", "wait=30", 200, "running"},
		{"restart", `{"timeout_seconds":1}`, "wait=30", 200, "running"},
		{"stop", `{"force":true}`, "wait=30", 200, "stopped"},
	}
	for _, s := range steps {
		r := a.want(t, s.status, "POST", "/vms/web-1/actions/"+s.action, s.body, "Prefer", s.prefer)
		if got := into[openapi.VM](t, r).State; got != s.state {
			t.Errorf("%s: state %s, want %s", s.action, got, s.state)
		}
		if got := r.Header.Get("Preference-Applied"); got != "wait" {
			t.Errorf("%s: Preference-Applied %q", s.action, got)
		}
	}
}

func TestAnActionWithoutPreferIsAccepted(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	release := make(chan struct{})
	a.driver.Hook = hook("Start", func(ctx context.Context) error {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil
	})
	r := a.want(t, 202, "POST", "/vms/web-1/actions/start", "")
	if got := into[openapi.VM](t, r).State; got != "starting" {
		t.Errorf("state %s", got)
	}
	location := r.Header.Get("Location")
	if o := into[openapi.Operation](t, a.want(t, 200, "GET", location, "")); o.State != "running" ||
		o.Kind != "vm.start" || o.RequestedBy != "token:admin" {
		t.Errorf("operation %+v", o)
	}
	// One second is not enough: the answer is the same as without waiting.
	r = a.want(t, 409, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=1")
	if p := r.problem(t); p.Code != "busy" || "/operations/"+p.OperationID != location {
		t.Errorf("problem %+v", p)
	}
	close(release)
	if _, err := a.manager.Operations.Wait(t.Context(), strings.TrimPrefix(location, "/operations/")); err != nil {
		t.Fatal(err)
	}
	if p := a.want(t, 409, "POST", "/vms/web-1/actions/start", "").problem(t); p.Code != "invalid-state" ||
		!strings.Contains(p.Detail, "already running") {
		t.Errorf("problem %+v", p)
	}
}

func TestWaitingEndsWhenTheTimeIsUp(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.driver.Hook = hook("Start", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	r := a.want(t, 202, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=1")
	if got := r.Header.Get("Preference-Applied"); got != "" {
		t.Errorf("Preference-Applied %q", got)
	}
	a.want(t, 202, "POST", r.Header.Get("Location")+"/cancel", "{}")
}

func TestAFailedOperationIsAnsweredWithItsProblem(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.driver.Hook = hook("Start", func(context.Context) error {
		return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "the QEMU of VM web-1 does not answer", Hint: "stop it"}
	})
	r := a.want(t, 503, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	p := r.problem(t)
	if p.Code != "qemu-unresponsive" || p.OperationID == "" || p.Hint != "stop it" ||
		r.Header.Get("Retry-After") == "" {
		t.Errorf("problem %+v", p)
	}
	o := into[openapi.Operation](t, a.want(t, 200, "GET", "/operations/"+p.OperationID, ""))
	if o.State != "failed" || o.Problem == nil || o.Problem.Code != p.Code || o.Problem.Status != 503 {
		t.Errorf("operation %+v", o)
	}
	if n := len(into[[]openapi.Operation](t,
		a.want(t, 200, "GET", "/operations?state=failed&kind=vm.start&resource=vms/web-1", ""))); n != 1 {
		t.Errorf("%d failed starts", n)
	}
}

func TestAnOperationThatFailsWithADefectHidesTheDetails(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.driver.Hook = hook("Start", func(context.Context) error { return errors.New("secret of the driver") })
	r := a.want(t, 500, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	if strings.Contains(string(r.body), "secret") {
		t.Errorf("body %s", r.body)
	}
}

func TestActionsInTheWrongStateAreConflicts(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	for _, action := range []string{"stop", "restart", "pause", "resume", "reset"} {
		p := a.want(t, 409, "POST", "/vms/web-1/actions/"+action, "").problem(t)
		if p.Code != "invalid-state" || !strings.Contains(p.Detail, "not running") {
			t.Errorf("%s: problem %+v", action, p)
		}
	}
	a.want(t, 404, "POST", "/vms/web-2/actions/start", "")
}

func TestPreconditionsGuardDeletes(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	etag := a.want(t, 200, "GET", "/vms/web-1", "").Header.Get("ETag")
	a.want(t, 304, "GET", "/vms/web-1", "", "If-None-Match", `"0-0", W/`+etag)
	a.want(t, 304, "GET", "/vms/web-1", "", "If-None-Match", `*`)
	a.want(t, 200, "GET", "/vms/web-1", "", "If-None-Match", `"0-0"`)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	if p := a.want(t, 412, "DELETE", "/vms/web-1", "", "If-Match", etag).problem(t); p.Code != "precondition-failed" {
		t.Errorf("problem %+v", p)
	}
	etag = a.want(t, 200, "GET", "/vms/web-1", "").Header.Get("ETag")
	a.want(t, 412, "DELETE", "/vms/web-1", "", "If-Match", "W/"+etag)
	a.want(t, 400, "DELETE", "/vms/web-1", "", "If-Match", "1-1")
	// Two lines of a list header form one list (RFC 9110, 5.3).
	a.want(t, 204, "DELETE", "/vms/web-1", "", "If-Match", `"0-0"`, "If-Match", etag)

	etag = a.want(t, 200, "GET", "/templates/small", "").Header.Get("ETag")
	a.want(t, 304, "GET", "/templates/small", "", "If-None-Match", etag)
	a.want(t, 412, "DELETE", "/templates/small", "", "If-Match", `"999-0"`)
	a.want(t, 204, "DELETE", "/templates/small", "", "If-Match", etag)
	a.want(t, 404, "DELETE", "/templates/small", "")
}

func TestATemplateInUseIsNotDeleted(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	p := a.want(t, 409, "DELETE", "/templates/small", "").problem(t)
	if p.Code != "in-use" || !strings.Contains(p.Detail, "in use by 1 VM") {
		t.Errorf("problem %+v", p)
	}
	a.want(t, 409, "POST", "/templates", smallTemplate)
	if n := len(into[[]openapi.Template](t, a.want(t, 200, "GET", "/templates", ""))); n != 1 {
		t.Errorf("%d templates", n)
	}
}

func TestTheConfigurationOfAVMCanBeChanged(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	r := a.want(t, 201, "POST", "/vms",
		`{"template_name":"small","name":"web-1","description":"a","labels":{"env":"prod","app":"shop"},
		"restart_policy":"on-failure","autostart":true,"autostart_order":7,"autostart_delay":5}`)
	v := into[openapi.VM](t, r)
	if v.Description != "a" || v.Labels["env"] != "prod" || v.Labels["app"] != "shop" ||
		v.RestartPolicy != "on-failure" || !v.Autostart ||
		v.AutostartOrder != 7 || v.AutostartDelay != 5 || v.RestartCount != 0 || v.NextRestartAt != nil {
		t.Errorf("created %+v", v)
	}
	r = a.want(t, 200, "PATCH", "/vms/web-1", `{"description":"b\n","autostart_order":8}`)
	v = into[openapi.VM](t, r)
	if v.Description != "b\n" || len(v.Labels) != 2 || v.RestartPolicy != "on-failure" || !v.Autostart ||
		v.AutostartOrder != 8 || v.AutostartDelay != 5 {
		t.Errorf("changed %+v", v)
	}
	if got := a.want(t, 200, "GET", "/vms/web-1", ""); string(got.body) != string(r.body) ||
		got.Header.Get("ETag") != r.Header.Get("ETag") {
		t.Errorf("GET differs from the answer to PATCH:\n%s\n%s", r.body, got.body)
	}
	v = into[openapi.VM](t,
		a.want(t, 200, "PATCH", "/vms/web-1",
			`{"labels":{},"restart_policy":"never","autostart":false,"desired_state":"running"}`))
	if len(v.Labels) != 0 || v.RestartPolicy != "never" || v.Autostart || v.AutostartOrder != 8 ||
		v.DesiredState != "running" || v.State != "stopped" {
		t.Errorf("changed %+v", v)
	}
	ops := into[[]openapi.Operation](t, a.want(t, 200, "GET", "/operations?kind=vm.update&resource=vms/web-1", ""))
	if len(ops) != 2 || ops[0].State != "succeeded" {
		t.Errorf("operations %+v", ops)
	}
	if v.ShutdownTimeout != 60 || v.ShutdownAction != "stop" {
		t.Errorf("shutdown %d s, %s", v.ShutdownTimeout, v.ShutdownAction)
	}
	v = into[openapi.VM](t, a.want(t, 200, "PATCH", "/vms/web-1", `{"shutdown_timeout":7,"shutdown_action":"kill"}`))
	if v.ShutdownTimeout != 7 || v.ShutdownAction != "kill" {
		t.Errorf("shutdown %d s, %s", v.ShutdownTimeout, v.ShutdownAction)
	}
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	v = into[openapi.VM](t, a.want(t, 200, "POST", "/vms/web-1/actions/stop", `{"reason":"host-shutdown"}`, "Prefer", "wait=30"))
	if v.StateReason == nil || *v.StateReason != "host-shutdown" || v.DesiredState != "running" {
		t.Errorf("stopped %+v", v)
	}
	a.want(t, 400, "POST", "/vms/web-1/actions/stop", `{"reason":"weather"}`)
	a.want(t, 400, "PATCH", "/vms/web-1", `{"shutdown_timeout":0}`)
	a.want(t, 400, "PATCH", "/vms/web-1", `{}`)
	a.want(t, 404, "PATCH", "/vms/web-2", `{"autostart":true}`)
	a.want(t, 404, "PATCH", "/vms/web-2", `{"description":"x"}`)
	for body, field := range map[string]string{
		`{"labels":{"Env":"prod"}}`:    "/labels",
		`{"labels":{"env":"a\u0007"}}`: "/labels/env",
		`{"description":"\u0000"}`:     "/description",
		`{"restart_policy":"often"}`:   "/restart_policy",
		`{"state":"running"}`:          "/state",
	} {
		p := a.want(t, 400, "PATCH", "/vms/web-1", body).problem(t)
		if len(p.Errors) != 1 || p.Errors[0].Field != field {
			t.Errorf("%s: %+v", body, p)
		}
	}
	p := a.want(t, 400, "POST", "/vms", `{"template_name":"small","labels":{"-":""}}`).problem(t)
	if len(p.Errors) != 1 || p.Errors[0].Field != "/labels" {
		t.Errorf("%+v", p)
	}
}

func TestPreconditionsGuardChanges(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	old := a.want(t, 200, "GET", "/vms/web-1", "").Header.Get("ETag")
	for _, body := range []string{`{"description":"x"}`, `{"autostart":true}`} {
		etag := a.want(t, 200, "GET", "/vms/web-1", "").Header.Get("ETag")
		a.want(t, 200, "PATCH", "/vms/web-1", body, "If-Match", etag)
		a.want(t, 412, "PATCH", "/vms/web-1", body, "If-Match", old)
	}
	a.want(t, 200, "PATCH", "/vms/web-1", `{"autostart":false}`, "If-Match", "*")
	a.want(t, 400, "PATCH", "/vms/web-1", `{"autostart":false}`, "If-Match", "1-1")
}

// rival changes a VM each time before it is changed.
type rival struct {
	VMs
	times int
}

func (r *rival) Update(ctx context.Context, id string, e vm.VMEdits, match vm.Match) (vm.VM, error) {
	if r.times--; r.times >= 0 {
		order := vm.Autostart{Enabled: true, Order: 100 + r.times}
		if _, err := r.VMs.Update(ctx, id, vm.VMEdits{Autostart: &order}, nil); err != nil {
			return vm.VM{}, err
		}
	}
	return r.VMs.Update(ctx, id, e, match)
}

func TestAPartOfTheAutostartIsChanged(t *testing.T) {
	t.Parallel()
	r := &rival{}
	a := newAPI(t, func(f *fixture) { r.VMs = f.d.VMs; f.d.VMs = r }).withVM(t)
	r.times = 3
	v := into[openapi.VM](t, a.want(t, 200, "PATCH", "/vms/web-1", `{"autostart_delay":9}`))
	if !v.Autostart || v.AutostartOrder != 100 || v.AutostartDelay != 9 {
		t.Errorf("the change of another client is lost: %+v", v)
	}
	r.times = 100
	a.want(t, 409, "PATCH", "/vms/web-1", `{"autostart_delay":10}`)
}

func TestVMsAreFoundByLabel(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	for i, labels := range []string{`{"env":"prod","a/b.c":"x=y & z"}`, `{"env":"prod"}`, `{"env":""}`, `{}`} {
		a.want(t, 201, "POST", "/vms", fmt.Sprintf(`{"template_name":"small","name":"web-%d","labels":%s}`, i, labels))
	}
	for query, want := range map[string]int{
		"label=env=prod":               2,
		"label=env=":                   1,
		"label=env%3Dtest":             0,
		"label=a/b.c=x%3Dy+%26+z":      1,
		"label=env=prod&state=running": 0,
	} {
		if n := len(into[[]openapi.VM](t, a.want(t, 200, "GET", "/vms?"+query, ""))); n != want {
			t.Errorf("%s: %d VMs, want %d", query, n, want)
		}
	}
	r := a.want(t, 200, "GET", "/vms?limit=1&label=env=prod", "")
	link := nextLink.FindStringSubmatch(r.Header.Get("Link"))
	if link == nil {
		t.Fatalf("Link %q", r.Header.Get("Link"))
	}
	if page := into[[]openapi.VM](t, a.want(t, 200, "GET", link[1], "")); len(page) != 1 || page[0].ID != "web-1" {
		t.Errorf("the second page: %+v", page)
	}
	for _, bad := range []string{"env", "=prod", "Env=prod", "env=a%07", "env=prod&label=a=b",
		"env=" + strings.Repeat("x", 320)} {
		a.want(t, 400, "GET", "/vms?label="+bad, "")
	}
}

func TestEmptyValuesAreNullAndPresent(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 201, "POST", "/vms", `{"template_name":"small","name":"bare","nics":[]}`)
	var v map[string]any
	if err := json.Unmarshal(a.want(t, 200, "GET", "/vms/bare", "").body, &v); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"local_ip", "local_ip_source", "machine_type", "accel", "started_at",
		"state_reason_detail", "next_restart_at"} {
		if x, present := v[name]; !present || x != nil {
			t.Errorf("%s is %v", name, x)
		}
	}
}

// hook returns a hook for one method of the driver.
func hook(method string, f func(context.Context) error) func(context.Context, string, string) error {
	return func(ctx context.Context, m, _ string) error {
		if m != method {
			return nil
		}
		return f(ctx)
	}
}
