package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// forgetful wraps records and keeps no answers, as if the daemon were killed between
// the effect and the answer of each request.
type forgetful struct {
	Records
	mu   sync.Mutex
	keep bool
}

func (f *forgetful) KeepReply(ctx context.Context, id string, r vm.Reply) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keep {
		return f.Records.KeepReply(ctx, id, r)
	}
	return errors.New("killed")
}

// remember sets whether answers are kept.
func (f *forgetful) remember(keep bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep = keep
}

// same fails the test if the answer to a repeated request differs from the first one.
func same(t *testing.T, name string, first, again reply) {
	t.Helper()
	if again.StatusCode != first.StatusCode || string(again.body) != string(first.body) ||
		again.Header.Get("Location") != first.Header.Get("Location") ||
		again.Header.Get("ETag") != first.Header.Get("ETag") ||
		again.Header.Get("Content-Type") != first.Header.Get("Content-Type") {
		t.Errorf("%s: status %d, %v, %s\nfirst answer: %d, %v, %s", name, again.StatusCode, again.Header,
			again.body, first.StatusCode, first.Header, first.body)
	}
	if first.Header.Get(headerReplayed) != "" || again.Header.Get(headerReplayed) != "true" {
		t.Errorf("%s: %s is %q, in the first answer %q", name, headerReplayed, again.Header.Get(headerReplayed),
			first.Header.Get(headerReplayed))
	}
}

// steps is a sequence of requests with every kind of operation. {disk} is the id of the
// created disk, {forward} of the created port forward.
var steps = []struct {
	method, path, body, prefer string
	status                     int
}{
	{"POST", "/templates", smallTemplate, "", 201},
	{"POST", "/vms", webVM, "", 201},
	{"PATCH", "/vms/web-1", `{"labels":{"env":"prod"},"autostart_order":3}`, "", 200},
	{"POST", "/networks", `{"name":"lab","mode":"isolated"}`, "", 201},
	{"PATCH", "/networks/lab", `{"domain":"lab.example"}`, "", 200},
	{"POST", "/vms/web-1/nics", `{"network":"lab"}`, "", 201},
	{"POST", "/images", `{"name":"iso","url":"http://images.example/iso"}`, "wait=30", 201},
	{"PATCH", "/images/iso", `{"labels":{"a":"b"}}`, "", 200},
	{"POST", "/images", `{"name":"golden","from_disk":"web-1"}`, "wait=30", 201},
	{"POST", "/vms",
		`{"template_name":"small","name":"web-2","image":"golden","cloud_init":{},"cdroms":[{"image":"iso"}]}`, "",
		201},
	{"POST", "/disks", `{"image":"golden"}`, "", 201},
	{"DELETE", "/disks/{disk}", "", "", 204},
	{"POST", "/disks", `{"from_disk":"web-2"}`, "wait=30", 201},
	{"DELETE", "/disks/{disk}", "", "", 204},
	{"DELETE", "/vms/web-2", "", "", 204},
	{"DELETE", "/images/golden", "", "", 204},
	{"POST", "/vms/web-1/cdroms", `{"image":"iso"}`, "", 201},
	{"PUT", "/vms/web-1/cloud_init", `{"hostname":"x","reprovision":true}`, "", 200},
	{"POST", "/vms/web-1/actions/start", "", "wait=30", 200},
	{"POST", "/vms/web-1/cdroms", `{"image":"iso","boot_index":1}`, "", 201},
	{"DELETE", "/vms/web-1/cdroms/cd-1", "", "", 204},
	{"POST", "/vms/web-1/nics", `{"network":"lab","rate_in":5}`, "", 201},
	{"PATCH", "/vms/web-1/nics/2", `{"link":"down"}`, "", 200},
	{"POST", "/vms/web-1/port_forwards", `{"host_port":2222,"guest_port":22}`, "", 201},
	{"DELETE", "/vms/web-1/port_forwards/{forward}", "", "", 204},
	{"DELETE", "/vms/web-1/nics/2", "", "", 204},
	{"POST", "/disks", `{"size":1}`, "", 201},
	{"POST", "/disks/{disk}/attach", `{"vm_id":"web-1"}`, "", 200},
	{"PATCH", "/disks/{disk}", `{"size":2}`, "", 200},
	{"POST", "/disks/{disk}/detach", "", "wait=1", 200},
	{"POST", "/vms/web-1/actions/pause", "", "wait=30", 200},
	{"POST", "/vms/web-1/actions/resume", "{}", "wait=30", 200},
	{"POST", "/vms/web-1/actions/reset", "", "wait=30", 200},
	{"POST", "/vms/web-1/actions/restart", `{"force":true}`, "wait=30", 200},
	{"POST", "/vms/web-1/actions/stop", `{"force":true}`, "wait=30", 200},
	{"DELETE", "/disks/{disk}", "", "", 204},
	{"DELETE", "/vms/web-1/nics/1", "", "", 204},
	{"DELETE", "/networks/lab", "", "", 204},
	{"DELETE", "/vms/web-1", "", "", 204},
	{"DELETE", "/templates/small", "", "", 204},
	{"POST", "/observer/orphans/disks:lost/adopt", "", "", 200},
	{"POST", "/observer/orphans/vms:ghost/terminate", "", "", 200},
	{"POST", "/observer/orphans/vms:ghost/delete", "{}", "", 200},
}

func TestEveryRequestCanBeRepeatedWithoutASecondEffect(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]bool{"with the answer kept": true, "with the answer lost": false} {
		t.Run(name, func(t *testing.T) {
			records := &forgetful{}
			a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records })
			if err := a.driver.CreateDisk(t.Context(), "lost", vm.DiskFile{SizeMiB: 1024}, nil, nil); err != nil {
				t.Fatal(err)
			}
			a.driver.Offer("http://images.example/iso", []byte("iso"))
			a.driver.AddVMFiles("ghost")
			a.driver.Set("ghost", vm.StatusRunning)
			disk, forward := "", ""
			for i, s := range steps {
				step, path := s.method+" "+
					s.path, strings.NewReplacer("{disk}", disk, "{forward}", forward).Replace(s.path)
				header := []string{headerKey, fmt.Sprintf("key-%d", i)}
				if s.prefer != "" {
					header = append(header, "Prefer", s.prefer)
				}
				records.remember(kept)
				first := a.want(t, s.status, s.method, path, s.body, header...)
				if s.path == "/disks" {
					disk = into[openapi.Disk](t, first).ID
				}
				if s.method == "POST" && strings.HasSuffix(s.path, "/port_forwards") {
					forward = into[openapi.PortForward](t, first).ID
				}
				calls, made := len(effects(a)), len(a.network.Calls())
				records.remember(true)
				same(t, step, first, a.ask(t, s.method, path, s.body, header...))
				same(t, step+", third time", first, a.ask(t, s.method, path, s.body, header...))
				if now := effects(a); len(now) != calls {
					t.Errorf("%s had a second effect: %v", step, now[calls:])
				}
				if now := a.network.Calls(); len(now) != made {
					t.Errorf("%s had a second effect: %v", step, now[made:])
				}
			}
			if !kept && !strings.Contains(a.log.String(), "cannot keep an answer") {
				t.Error("the log does not mention the lost answers")
			}
		})
	}
}

func TestAnAcceptedRequestStaysAccepted(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]bool{"with the answer kept": true, "with the answer lost": false} {
		t.Run(name, func(t *testing.T) {
			records := &forgetful{keep: kept}
			a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records }).withVM(t)
			first := a.want(t, 202, "POST", "/vms/web-1/actions/start", "", headerKey, "k")
			id := strings.TrimPrefix(first.Header.Get("Location"), "/operations/")
			if _, err := a.manager.Operations.Wait(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			again := a.want(t, 202, "POST", "/vms/web-1/actions/start", "", headerKey, "k")
			if again.Header.Get("Location") != first.Header.Get("Location") ||
				into[openapi.VM](t, again).ID != "web-1" {
				t.Errorf("%v: %s", again.Header, again.body)
			}
		})
	}
}

func TestAKeyBelongsToOneRequestOfOneCaller(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	first := a.want(t, 201, "POST", "/templates", smallTemplate, headerKey, "k")
	for name, r := range map[string][3]string{
		"another body":           {"POST", "/templates", strings.Replace(smallTemplate, "small", "large", 1)},
		"additional white space": {"POST", "/templates", smallTemplate + " "},
		"another path":           {"POST", "/vms", webVM},
		"another method":         {"DELETE", "/templates/small", ""},
	} {
		p := a.want(t, 422, r[0], r[1], r[2], headerKey, "k").problem(t)
		if p.Code != "idempotency-mismatch" || p.OperationID == "" || p.Hint == "" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	same(t, "the same request", first, a.ask(t, "POST", "/templates", smallTemplate, headerKey, "k"))
	secret, hash := NewToken()
	if err := a.store.PutToken(t.Context(), vm.Token{Name: "other", Role: vm.RoleAdmin, Hash: hash}); err != nil {
		t.Fatal(err)
	}
	if err := a.ReloadTokens(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.token = secret
	a.want(t, 409, "POST", "/templates", smallTemplate, headerKey, "k")
	a.want(t, 204, "DELETE", "/templates/small", "", headerKey, "k")
}

// effects returns the calls of the driver, without those that vmand makes in the background
// after a request.
func effects(a *api) []string {
	return slices.DeleteFunc(a.driver.Calls(), func(call string) bool { return strings.HasPrefix(call, "SetClock ") })
}

func TestARejectedRequestIsEvaluatedAgain(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 400, "POST", "/vms", `{"template_name":"small","name":"Web"}`, headerKey, "k")
	a.want(t, 400, "POST", "/vms", webVM, headerKey, "k")
	a.want(t, 201, "POST", "/templates", smallTemplate)
	r := a.want(t, 201, "POST", "/vms", webVM, headerKey, "k")
	if got := r.Header.Get(headerReplayed); got != "" {
		t.Errorf("%s: %q", headerReplayed, got)
	}
	a.want(t, 409, "POST", "/vms/web-1/actions/stop", "", headerKey, "stop")
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	a.want(t, 202, "POST", "/vms/web-1/actions/stop", "", headerKey, "stop")
}

func TestAFailedRequestStaysFailed(t *testing.T) {
	t.Parallel()
	for name, kept := range map[string]bool{"with the answer kept": true, "with the answer lost": false} {
		t.Run(name, func(t *testing.T) {
			records := &forgetful{keep: kept}
			a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records }).withVM(t)
			full := &vm.Fault{Code: vm.CodeInsufficientStorage, Detail: "no space left"}
			mute := &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "mute"}
			disk := into[openapi.Disk](t, a.want(t, 201, "POST", "/disks", `{"size":1}`)).ID
			a.driver.Hook = func(_ context.Context, method, _ string) error {
				return map[string]error{"CreateDisk": full, "Start": mute, "ResizeDisk": errors.New("secret")}[method]
			}
			for i, s := range []struct {
				method, path, body string
				status             int
			}{
				{"POST", "/disks", `{"size":1}`, 507},
				{"POST", "/vms/web-1/actions/start", "", 503},
				{"PATCH", "/disks/" + disk, `{"size":2}`, 500},
			} {
				header := []string{headerKey, fmt.Sprintf("key-%d", i), "Prefer", "wait=30"}
				first := a.want(t, s.status, s.method, s.path, s.body, header...)
				calls := len(a.driver.Calls())
				again := a.want(t, s.status, s.method, s.path, s.body, header...)
				one, other := first.problem(t), again.problem(t)
				if one.Code != other.Code || again.Header.Get(headerReplayed) != "true" ||
					strings.Contains(string(again.body), "secret") ||
					s.status != 500 && one.OperationID != other.OperationID {
					t.Errorf("%s\nfirst answer: %s", again.body, first.body)
				}
				if kept && s.status != 500 { // the answer to a defect is not kept, only the operation
					same(t, s.path, first, again)
				}
				if len(a.driver.Calls()) != calls {
					t.Errorf("%s was carried out again", s.path)
				}
			}
		})
	}
}

func TestParallelRequestsUnderOneKeyMakeOneDisk(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	release := make(chan struct{})
	a.driver.Hook = hook("CreateDisk", func(ctx context.Context) error { <-release; return nil })
	const n = 16
	replies := make([]reply, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, err := http.NewRequest("POST", a.base+"/disks", strings.NewReader(`{"size":1}`))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Authorization", "Bearer "+a.token)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set(headerKey, "one")
			if i == n/2 {
				close(release)
			}
			replies[i] = send(t, http.DefaultClient, r)
		})
	}
	wg.Wait()
	first := 0
	for _, r := range replies {
		if r.StatusCode != 201 || string(r.body) != string(replies[0].body) ||
			r.Header.Get("Location") != replies[0].Header.Get("Location") {
			t.Errorf("status %d, %s, %s", r.StatusCode, r.Header.Get("Location"), r.body)
		}
		if r.Header.Get(headerReplayed) == "" {
			first++
		}
	}
	if disks := into[[]openapi.Disk](t, a.want(t, 200, "GET", "/disks", "")); first != 1 || len(disks) != 1 {
		t.Errorf("%d first answers, %d disks", first, len(disks))
	}
	if len(a.keys.taken) != 0 {
		t.Errorf("%d keys are locked", len(a.keys.taken))
	}
}

func TestAClientThatDisconnectsCanAskForTheResult(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	began, release := make(chan struct{}), make(chan struct{})
	a.driver.Hook = hook("CreateDisk", func(context.Context) error { close(began); <-release; return nil })
	c := a.dial(t)
	body := `{"size":1}`
	fmt.Fprintf(c, "%s%s: k\r\nContent-Length: %d\r\n\r\n%s", a.head("POST /disks"), headerKey, len(body), body)
	<-began
	c.Close()
	waiting := make(chan reply)
	go func() { waiting <- a.ask(t, "POST", "/disks", body, headerKey, "k") }()
	select {
	case r := <-waiting:
		t.Fatalf("answered before the end of the operation: %s", r.body)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	r := <-waiting
	if r.StatusCode != 201 || r.Header.Get(headerReplayed) != "true" {
		t.Fatalf("status %d, %v: %s", r.StatusCode, r.Header, r.body)
	}
	if disks := into[[]openapi.Disk](t, a.want(t, 200, "GET", "/disks", "")); len(disks) != 1 ||
		"/disks/"+disks[0].ID != r.Header.Get("Location") {
		t.Errorf("disks %+v", disks)
	}
}

// openOperation records a running operation, as a killed daemon leaves it.
func (a *api) openOperation(t *testing.T, key string, kind vm.Kind, resource string, r *http.Request, with vm.Change) {
	t.Helper()
	x := exchange{c: a.echo.NewContext(r, nil)}
	r.Header.Set(headerKey, key)
	if err := x.identify(); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	with.Operation = &vm.Operation{ID: "op-" + key, Kind: kind, Resource: vm.ParseResource(resource), State: vm.OpRunning, RequestedBy: "token:admin",
		CreatedAt: at, StartedAt: at, Key: key, Fingerprint: x.caller.Fingerprint}
	if _, err := a.store.Apply(t.Context(), with); err != nil {
		t.Fatal(err)
	}
}

func request(method, path, body string) *http.Request {
	r, err := http.NewRequest(method, path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	return r
}

func TestAnInterruptedRequestIsAnsweredAfterSettling(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	v := vm.VM{
		ID:       "web-1",
		UUID:     "0d8f7a52-7c33-4d6b-8f6a-2f1f3f10aa01",
		Template: vm.Template{Name: "small", CPUCount: 2, RAMMiB: 512},
		State:    vm.Stopped,
		Reason:   vm.ReasonCreated,
		Desired:  vm.DesiredStopped,
		Root:     vm.DiskFile{SizeMiB: 1024},
	}
	a.openOperation(t, "made", vm.VMCreate, "vms/web-1", request("POST", "/vms", webVM), vm.Change{NewVM: &v})
	a.openOperation(t, "half", vm.DiskCreate, "disks/disk-1", request("POST", "/disks", `{"size":1}`),
		vm.Change{NewDisk: &vm.Disk{ID: "disk-1", DiskFile: vm.DiskFile{SizeMiB: 1024}, State: vm.DiskCreating}})
	p := a.want(t, 503, "POST", "/disks", `{"size":1}`, headerKey, "half").problem(t)
	if p.Code != "unavailable" || p.OperationID != "op-half" {
		t.Errorf("before the operation is settled: %+v", p)
	}
	if err := a.manager.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	made := a.want(t, 201, "POST", "/vms", webVM, headerKey, "made")
	if made.Header.Get("Location") != "/vms/web-1" || made.Header.Get("ETag") == "" ||
		into[openapi.VM](t, made).ID != "web-1" {
		t.Errorf("%v: %s", made.Header, made.body)
	}
	// An operation without an effect is carried out again, once.
	half := a.want(t, 201, "POST", "/disks", `{"size":1}`, headerKey, "half")
	again := a.want(t, 201, "POST", "/disks", `{"size":1}`, headerKey, "half")
	if string(again.body) != string(half.body) {
		t.Errorf("%s\nfirst answer: %s", again.body, half.body)
	}
	if disks := into[[]openapi.Disk](t, a.want(t, 200, "GET", "/disks", "")); len(disks) != 1 {
		t.Errorf("disks %+v", disks)
	}
}

func TestACreatedAndDeletedResourceIsNotFound(t *testing.T) {
	t.Parallel()
	records := &forgetful{}
	a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records })
	a.want(t, 201, "POST", "/templates", smallTemplate)
	a.want(t, 201, "POST", "/vms", webVM, headerKey, "make")
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", headerKey, "start", "Prefer", "wait=30")
	a.want(t, 204, "DELETE", "/vms/web-1", "")
	a.want(t, 404, "POST", "/vms", webVM, headerKey, "make")
	a.want(t, 404, "POST", "/vms/web-1/actions/start", "", headerKey, "start", "Prefer", "wait=30")
	a.wantCode(t, 400, "invalid-request", "POST", "/vms/web-1/actions/start", "", headerKey, "start", "Prefer", "wait=soon")
}

func TestADetachInProgressIsStillAccepted(t *testing.T) {
	t.Parallel()
	records := &forgetful{}
	a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records }).withVM(t)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	disk := into[openapi.Disk](t, a.want(t, 201, "POST", "/disks", `{"size":1}`)).ID
	a.want(t, 200, "POST", "/disks/"+disk+"/attach", `{"vm_id":"web-1"}`)
	a.driver.Hook = hook("DetachDisk", func(context.Context) error {
		return &vm.Fault{
			Code:   vm.CodeQEMUUnresponsive,
			Detail: "not yet",
		}
	})
	first := a.want(t, 202, "POST", "/disks/"+disk+"/detach", "", headerKey, "k")
	records.remember(true)
	same(t, "detach", first, a.ask(t, "POST", "/disks/"+disk+"/detach", "", headerKey, "k"))
	a.driver.Hook = nil
	if _, err := a.manager.Settle(t.Context(), vm.DiskResource(disk)); err != nil {
		t.Fatal(err)
	}
	a.want(t, 202, "POST", "/disks/"+disk+"/detach", "", headerKey, "k")
	a.want(t, 409, "POST", "/disks/"+disk+"/detach", "", headerKey, "new")
}

func TestCancellingCanBeRepeated(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.driver.Hook = hook("Start", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	location := a.want(t, 202, "POST", "/vms/web-1/actions/start", "").Header.Get("Location")
	a.want(t, 202, "POST", location+"/cancel", "", headerKey, "k")
	a.want(t, 202, "POST", location+"/cancel", "", headerKey, "k")
	a.want(t, 409, "POST", location+"/cancel", "")
}

func TestInvalidKeysAreRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for name, key := range map[string]string{
		"a space":   "a b",
		"too long":  strings.Repeat("k", 256),
		"not ASCII": "schlüssel",
		"a tab":     "a\tb",
	} {
		p := a.want(t, 400, "POST", "/templates", smallTemplate, headerKey, key).problem(t)
		if len(p.Errors) != 1 || p.Errors[0].Field != headerKey {
			t.Errorf("%s: %+v", name, p)
		}
	}
	a.want(t, 400, "POST", "/templates", smallTemplate, headerKey, "a", headerKey, "b")
	c := a.dial(t)
	fmt.Fprintf(c, "%s%s:\r\nContent-Length: %d\r\n\r\n%s", a.head("POST /templates"), headerKey, len(smallTemplate),
		smallTemplate)
	if resp, body := receive(t, c); resp.StatusCode != 400 {
		t.Errorf("an empty key: status %d: %s", resp.StatusCode, body)
	}
	a.want(t, 201, "POST", "/templates", smallTemplate, headerKey, strings.Repeat("~", 255))
	a.want(t, 200, "GET", "/templates", "", headerKey, "a b") // a GET ignores it
}

func TestTheSameRequestHasTheSameFingerprint(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	print := func(method, target, body string) string {
		x := exchange{c: a.echo.NewContext(request(method, target, body), nil)}
		x.c.Request().Header.Set(headerKey, "k")
		if err := x.identify(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(x.c.Request().Body); err != nil || string(b) != body {
			t.Errorf("the body is %q, %v", b, err)
		}
		return x.caller.Fingerprint
	}
	seen := map[string]string{}
	for _, r := range [][3]string{{"POST", "/vms", "x"}, {"PATCH", "/vms", "x"}, {"POST", "/vmsx", ""},
		{"POST", "/vms?x", ""}, {"POST", "/vms", ""}} {
		f := print(r[0], r[1], r[2])
		if f != print(r[0], r[1], r[2]) || len(f) != 64 {
			t.Errorf("%v: %s", r, f)
		}
		if other := seen[f]; other != "" {
			t.Errorf("%v and %s have the same fingerprint", r, other)
		}
		seen[f] = fmt.Sprint(r)
	}
}

func TestAKeyIsAwaitedNoLongerThanTheRequest(t *testing.T) {
	t.Parallel()
	var keys keyLock
	if err := keys.lock(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if err := keys.lock(ctx, "k"); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if err := keys.lock(ctx, "other"); err != nil {
		t.Errorf("got %v", err)
	}
	keys.unlock("k")
	if err := keys.lock(ctx, "k"); err != nil {
		t.Errorf("got %v", err)
	}
}
