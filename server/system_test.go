package server

import (
	"context"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

func TestHealthIsDegradedByOneCheck(t *testing.T) {
	t.Parallel()
	h := Health{Storage: Check{Detail: "41 GiB free"}}
	a := newAPI(t, func(f *fixture) {
		f.o.DryRun = true
		f.d.Health = func(context.Context) Health { return h }
	})
	got := into[openapi.Health](t, a.want(t, 200, "GET", "/health", ""))
	if got.Status != "ok" || got.Service != "vmand" || got.Version != "1.2.3" || !got.DryRun ||
		*got.Checks.Storage.Detail != "41 GiB free" {
		t.Errorf("%+v", got)
	}
	h.QEMU = Check{Degraded: true, Detail: "install the package qemu-system-x86"}
	got = into[openapi.Health](t, a.want(t, 503, "GET", "/health", ""))
	if got.Status != "degraded" || got.Checks.Qemu.Status != "degraded" || got.Checks.Database.Status != "ok" {
		t.Errorf("%+v", got)
	}
}

func TestTheStatusOfTheObserverIsShown(t *testing.T) {
	t.Parallel()
	st := ObserverStatus{Status: "starting", CheckInterval: 5 * time.Second}
	a := newAPI(t, func(f *fixture) { f.d.Observer = func() ObserverStatus { return st } })
	got := into[openapi.ObserverStatus](t, a.want(t, 200, "GET", "/observer/status", ""))
	if got.Status != "starting" || got.CheckInterval != 5 || got.LastRunAt != nil || got.LastDurationMs != nil ||
		got.LastIssuesCount != 0 {
		t.Errorf("%+v", got)
	}
	if got.RepairMode != "auto" {
		t.Errorf("repair mode %q", got.RepairMode)
	}
	st = ObserverStatus{
		Status:        "ok",
		RepairMode:    "report",
		CheckInterval: 5 * time.Second,
		LastRunAt:     time.Now(),
		LastDuration:  1800 * time.Microsecond,
		Issues: []Issue{
			{
				Type:        "vm_state_mismatch",
				Resource:    "vms/web-1",
				Details:     "gone",
				FirstSeenAt: time.Now(),
				RepairedAt:  time.Now(),
				Repair:      "recorded as error",
			},
			{Type: "orphan_disk", Resource: "disks/disk-1", Details: "a file", FirstSeenAt: time.Now()},
			{Type: "storage_low", Resource: "storage//var/lib/vman", Details: "1 % free", FirstSeenAt: time.Now()},
		},
	}
	got = into[openapi.ObserverStatus](t, a.want(t, 200, "GET", "/observer/status", ""))
	if *got.LastDurationMs != 1.8 || got.LastIssuesCount != 3 || got.LastIssues[0].ResourceID != "web-1" ||
		got.LastIssues[1].Repair != nil ||
		got.RepairMode != "report" || got.LastIssues[0].RepairedAt == nil || got.LastIssues[1].RepairedAt != nil ||
		got.LastIssues[2].ResourceID != "/var/lib/vman" {
		t.Errorf("%+v", got)
	}
}

func TestTheEntityTagOfAnOperationChangesWithIt(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	ops := into[[]openapi.Operation](t, a.want(t, 200, "GET", "/operations?resource=vms/web-1", ""))
	if len(ops) != 1 || ops[0].Kind != "vm.create" || ops[0].Resource != "vms/web-1" {
		t.Fatalf("operations %+v", ops)
	}
	etag := a.want(t, 200, "GET", "/operations/"+ops[0].ID, "").Header.Get("ETag")
	a.want(t, 304, "GET", "/operations/"+ops[0].ID, "", "If-None-Match", etag)
	a.driver.Hook = hook("Start", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	location := a.want(t, 202, "POST", "/vms/web-1/actions/start", "").Header.Get("Location")
	etag = a.want(t, 200, "GET", location, "").Header.Get("ETag")
	o := into[openapi.Operation](t, a.want(t, 202, "POST", location+"/cancel", ""))
	if o.State != "cancelled" || o.Problem == nil || o.Problem.Code != "cancelled" {
		t.Errorf("cancelled %+v", o)
	}
	a.want(t, 200, "GET", location, "", "If-None-Match", etag)
	if p := a.want(t, 409, "POST", location+"/cancel", "").problem(t); p.Code != "not-cancellable" {
		t.Errorf("problem %+v", p)
	}
	a.want(t, 404, "POST", "/operations/no-such/cancel", "")
	a.want(t, 404, "GET", "/operations/no-such", "")
}

func TestTheDocumentationLoadsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	r := a.want(t, 200, "GET", "/docs", "")
	page := string(r.body)
	for _, foreign := range []string{"http://", "https://", "//cdn", "{{"} {
		if strings.Contains(page, foreign) {
			t.Errorf("the page contains %q", foreign)
		}
	}
	policy := r.Header.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'", "script-src 'sha256-", "style-src 'sha256-",
		"frame-ancestors 'none'"} {
		if !strings.Contains(policy, part) {
			t.Errorf("the policy %q has no %s", policy, part)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	if spec := a.want(t, 200, "GET", "/openapi.yaml", ""); string(spec.body) != string(openapi.YAML()) {
		t.Error("/openapi.yaml is not the contract")
	}
	doc := into[map[string]any](t, a.want(t, 200, "GET", "/openapi.json", ""))
	if doc["openapi"] != "3.0.3" {
		t.Errorf("/openapi.json has OpenAPI version %v", doc["openapi"])
	}
}

func TestTheLogHasALineForEachRequest(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 200, "GET", "/vms/web-1", "", headerRequestID, "look-for-this")
	a.want(t, 404, "GET", "/vms/web-2", "", headerRequestID, "look-for-that")
	a.want(t, 200, "GET", "/health", "", headerRequestID, "not-this")
	var found int
	for line := range strings.Lines(a.log.String()) {
		switch {
		case strings.Contains(line, "look-for-this"):
			found++
			for _, part := range []string{
				`"level":"INFO"`, `"msg":"request"`, `"method":"GET"`, `"route":"/vms/:id"`, `"path":"/vms/web-1"`,
				`"status":200`, `"took":[1-9]\d*,`, `"caller":"token:admin"`,
			} {
				if !regexp.MustCompile(part).MatchString(line) {
					t.Errorf("%s is missing in %s", part, line)
				}
			}
		case strings.Contains(line, "look-for-that"):
			found++
			if !strings.Contains(line, `"code":"not-found"`) {
				t.Errorf("the code is missing in %s", line)
			}
		case strings.Contains(line, "not-this"):
			found++
			if !strings.Contains(line, `"level":"DEBUG"`) {
				t.Errorf("a health check is logged as %s", line)
			}
		}
	}
	if found != 3 {
		t.Errorf("%d matching lines in %s", found, a.log)
	}
}

func TestServingEndsWhenAListenerDoes(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := a.Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), net.ErrClosed.Error()) {
		t.Errorf("got %v", err)
	}
	if err := a.Serve(t.Context()); err == nil {
		t.Error("Serve without listeners succeeded")
	}
}

func TestRequestsThatDoNotEndAreClosed(t *testing.T) {
	t.Parallel()
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	began := make(chan struct{})
	a := newAPI(t, func(f *fixture) {
		f.o.StopTimeout = 100 * time.Millisecond
		f.d.Reader = hanging{f.d.Reader, began, stuck}
	})
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- a.Serve(ctx, l) }()
	a.base = "http://" + l.Addr().String()
	c := a.dial(t)
	if _, err := c.Write([]byte(a.head("GET /vms/web-1") + "\r\n")); err != nil {
		t.Fatal(err)
	}
	<-began
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if !strings.Contains(a.log.String(), "did not end in time") {
		t.Errorf("the log does not mention it: %s", a.log)
	}
}

// hanging is a reader that blocks.
type hanging struct {
	Records
	began, stuck chan struct{}
}

func (h hanging) VM(context.Context, string) (vm.VM, error) {
	close(h.began)
	<-h.stuck
	return vm.VM{}, vm.ErrUnavailable
}
