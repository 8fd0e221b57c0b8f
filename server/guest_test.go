package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// running returns an API with the running VM web-1.
func running(t *testing.T, change ...func(*fixture)) *api {
	t.Helper()
	a := newAPI(t, change...)
	a.boot(t)
	return a
}

// boot creates and starts the VM web-1.
func (a *api) boot(t testing.TB) {
	t.Helper()
	ctx := vm.WithCaller(t.Context(), vm.Caller{Name: "test"})
	_, err := a.manager.Templates.Create(ctx, vm.Template{Name: "small", CPUCount: 2, RAMMiB: 512})
	if err == nil {
		_, err = a.manager.VMs.Create(ctx, vm.NewVM{ID: "web-1", Template: "small"})
	}
	if err != nil {
		t.Fatal(err)
	}
	_, o, err := a.manager.VMs.Do(ctx, "web-1", vm.OpStart, vm.StopOptions{})
	if err == nil {
		_, err = a.manager.Operations.Wait(ctx, o.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// as creates a token with this role and returns the header that sends it.
func (a *api) as(t *testing.T, role vm.Role) []string {
	t.Helper()
	secret, hash := NewToken()
	if err := a.store.PutToken(t.Context(), vm.Token{Name: string(role) + "-1", Role: role, Hash: hash}); err != nil {
		t.Fatal(err)
	}
	if err := a.ReloadTokens(t.Context()); err != nil {
		t.Fatal(err)
	}
	return []string{"Authorization", "", "Authorization", "Bearer " + secret}
}

var octets = []string{"Content-Type", "", "Content-Type", "application/octet-stream"}

func TestAVMShowsItsAgent(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	stopped := a.want(t, 200, "GET", "/vms/web-1", "")
	if g := into[openapi.VM](t, stopped).Agent; g.State != "absent" || g.Version != nil || g.LastSeenAt != nil {
		t.Errorf("%+v", g)
	}
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	seen := time.Date(2026, 3, 1, 9, 5, 9, 120e6, time.UTC)
	a.driver.SetAgent("web-1", vm.Agent{State: vm.AgentSilent, Version: "7.2.17", LastSeenAt: seen})
	silent := a.want(t, 200, "GET", "/vms/web-1", "")
	if g := into[openapi.VM](t, silent).Agent; g.State != "silent" || *g.Version != "7.2.17" ||
		!g.LastSeenAt.Equal(seen) {
		t.Errorf("%+v", g)
	}
	a.driver.SetAgent("web-1", vm.Agent{State: vm.AgentConnected, Version: "7.2.17", LastSeenAt: seen})
	if vms := into[[]openapi.VM](t, a.want(t, 200, "GET", "/vms", "")); vms[0].Agent.State != "connected" {
		t.Errorf("%+v", vms[0].Agent)
	}
	tag := silent.Header.Get("Etag")
	connected := a.want(t, 200, "GET", "/vms/web-1", "", "If-None-Match", tag)
	a.want(t, 304, "GET", "/vms/web-1", "", "If-None-Match", connected.Header.Get("Etag"))
	// A precondition compares the VM, not its agent.
	patched := a.want(t, 200, "PATCH", "/vms/web-1", `{"description":"x"}`, "If-Match", tag)
	a.want(t, 412, "PATCH", "/vms/web-1", `{"description":"y"}`, "If-Match", tag)
	a.want(t, 304, "GET", "/vms/web-1", "", "If-None-Match", patched.Header.Get("Etag"))
}

func TestTheInformationOfAGuestIsShown(t *testing.T) {
	t.Parallel()
	a := running(t)
	g := into[openapi.Guest](t, a.want(t, 200, "GET", "/vms/web-1/guest", ""))
	if *g.Hostname != "web-1" || *g.Os.ID != "debian" || g.Os.Kernel != nil || g.Interfaces[0].MAC != nil ||
		g.Interfaces[0].Addresses[0] != "127.0.0.1/8" ||
		g.Filesystems[0].MountPoint != "/" || *g.Filesystems[0].TotalBytes != 2 || g.Filesystems[0].Disks[0] != "root" {
		t.Errorf("%+v", g)
	}
}

func TestAProgramRunsInAGuest(t *testing.T) {
	t.Parallel()
	a := running(t)
	var ran []vm.GuestCommand
	result := vm.GuestResult{Exited: true}
	a.driver.Run = func(_ string, c vm.GuestCommand) vm.GuestResult { ran = append(ran, c); return result }
	exec := func(body string) openapi.ExecResult {
		t.Helper()
		return into[openapi.ExecResult](t, a.want(t, 200, "POST", "/vms/web-1/exec", body))
	}
	result.Stdout, result.Stderr, result.ExitCode = []byte("ü\n"), []byte{0xff, 'x'}, 3
	r := exec(`{"command":["/bin/sh","-c","exit 3"],"env":{"B":"2=3","A":""},"stdin":"in","timeout_seconds":7}`)
	if !r.Exited || *r.ExitCode != 3 || r.Signal != nil || *r.Stdout != "ü\n" || r.StdoutBase64 != nil ||
		r.Stderr != nil || *r.StderrBase64 != "/3g=" || r.Truncated {
		t.Errorf("%+v", r)
	}
	if c := ran[0]; c.Path != "/bin/sh" || strings.Join(c.Args, "|") != "-c|exit 3" ||
		strings.Join(c.Env, "|") != "A=|B=2=3" || string(c.Stdin) != "in" || c.Timeout != 7*time.Second {
		t.Errorf("%+v", c)
	}
	result = vm.GuestResult{Exited: true, Signal: 9, Truncated: true}
	if r := exec(`{"command":["true"],"stdin_base64":"AP8="}`); r.ExitCode != nil || *r.Signal != 9 ||
		!r.Truncated || *r.Stdout != "" {
		t.Errorf("%+v", r)
	}
	if c := ran[1]; !bytes.Equal(c.Stdin, []byte{0, 0xff}) || c.Timeout != 30*time.Second || len(c.Env) != 0 {
		t.Errorf("%+v", c)
	}
	result = vm.GuestResult{}
	if r := exec(`{"command":["sleep","60"],"timeout_seconds":1}`); r.Exited || r.ExitCode != nil || r.Signal != nil {
		t.Errorf("%+v", r)
	}
}

func TestInvalidRequestsToGuestsAreRejected(t *testing.T) {
	t.Parallel()
	a := running(t)
	for _, test := range []struct{ method, path, body, field string }{
		{"POST", "/exec", `{"command":[""]}`, "/command/0"},
		{"POST", "/exec", `{"command":[]}`, "/command"},
		{"POST", "/exec", `{"command":["a\u0000"]}`, "/command/0"},
		{"POST", "/exec", `{"command":["a"],"env":{"":"x"}}`, "/env"},
		{"POST", "/exec", `{"command":["a"],"env":{"A=B":"x"}}`, "/env"},
		{"POST", "/exec", `{"command":["a"],"env":{"A\u0000":"x"}}`, "/env"},
		{"POST", "/exec", `{"command":["a"],"stdin":"x","stdin_base64":"eA=="}`, "/stdin_base64"},
		{"POST", "/exec", `{"command":["a"],"stdin_base64":"e"}`, "/stdin_base64"},
		{"POST", "/exec", `{"command":["a"],"stdin_base64":"eB=="}`, "/stdin_base64"},
		{"POST", "/exec", `{"command":["a"],"timeout_seconds":301}`, "/timeout_seconds"},
		{"POST", "/actions/set-password", `{"user":"root","password":"a\nb"}`, "/password"},
		{"POST", "/actions/set-password", `{"user":"","password":"a"}`, "/user"},
		{"POST", "/actions/trim", `{"path":"/"}`, "/path"},
		{"GET", "/files", "", "path"},
		{"GET", "/files?path=", "", "path"},
		{"GET", "/files?path=etc", "", "path"},
		{"GET", "/files?path=/a%00", "", "path"},
		{"GET", "/files?path=/a&path=/b", "", "path"},
		{"GET", "/files?path=/" + strings.Repeat("a", 4096), "", "path"},
		{"GET", "/console/log?offset=1&tail=1", "", "tail"},
		{"GET", "/console/log?offset=-1", "", "offset"},
		{"GET", "/console/log?tail=x", "", "tail"},
		{"GET", "/console/log?follow=2", "", "follow"},
		{"GET", "/console?take_over=true", "", "take_over"},
		{"GET", "/console?scrollback=1048577", "", "scrollback"},
		{"GET", "/console?write=yes", "", "write"},
		{"POST", "/console/tickets", `{"write":1}`, "/write"},
	} {
		p := a.want(t, 400, test.method, "/vms/web-1"+test.path, test.body).problem(t)
		if len(p.Errors) != 1 || p.Errors[0].Field != test.field {
			t.Errorf("%s %s %s: %+v", test.method, test.path, test.body, p)
		}
	}
	a.want(t, 415, "PUT", "/vms/web-1/files?path=/a", `{}`)
	a.want(t, 400, "PUT", "/vms/web-1/files", "x", octets...)
	for path, body := range map[string]string{
		"/exec":                 `{"command":["true"]}`,
		"/actions/trim":         "",
		"/console/tickets":      "",
		"/actions/set-password": `{"user":"root","password":"x"}`,
	} {
		p := a.want(t, 400, "POST", "/vms/web-1"+path, body, headerKey, "k").problem(t)
		if len(p.Errors) != 1 || p.Errors[0].Field != headerKey {
			t.Errorf("%s: %+v", path, p)
		}
	}
	for _, call := range a.driver.Calls() {
		if strings.HasPrefix(call, "Exec") || strings.HasPrefix(call, "Console") ||
			strings.HasSuffix(call, "File web-1") {
			t.Errorf("the guest was called: %s", call)
		}
	}
}

func TestFilesOfAGuestAreWrittenAndRead(t *testing.T) {
	t.Parallel()
	a := running(t)
	if r := a.want(t, 200, "GET", "/vms/web-1/files?path=/etc/hostname", ""); string(r.body) != "content" ||
		r.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("%v %q", r.Header, r.body)
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // more than the limit of a JSON body
	a.want(t, 204, "PUT", "/vms/web-1/files?path=/a%20b", string(large), octets...)
	if r := a.want(t, 200, "GET", "/vms/web-1/files?path=/a%20b", ""); !bytes.Equal(r.body, large) {
		t.Errorf("%d bytes", len(r.body))
	}
	a.want(t, 204, "PUT", "/vms/web-1/files?path=/empty", "", "Content-Type", "")
	if r := a.want(t, 200, "GET", "/vms/web-1/files?path=/empty", ""); len(r.body) != 0 {
		t.Errorf("%q", r.body)
	}
}

func TestAFileThatIsTooLargeOrTooSlowIsRejected(t *testing.T) {
	t.Parallel()
	a := running(t, func(f *fixture) { f.o.BodyTimeout = 200 * time.Millisecond })
	put := "PUT /vms/web-1/files?path=/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + a.token +
		"\r\nContent-Type: application/octet-stream\r\n"
	for _, test := range []struct {
		rest   string
		status int
		code   openapi.ProblemCode
	}{
		{"Content-Length: 67108865\r\n\r\n", 413, "payload-too-large"},
		{"Content-Length: 10\r\n\r\nabc", 408, "request-timeout"},
		{"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "malformed-body"},
	} {
		c := a.dial(t)
		if _, err := io.WriteString(c, put+test.rest); err != nil {
			t.Fatal(err)
		}
		resp, body := receive(t, c)
		if resp.StatusCode != test.status || !strings.Contains(body, `"code":"`+string(test.code)+`"`) {
			t.Errorf("%q: %d %s", test.rest, resp.StatusCode, body)
		}
	}
	// Without a Content-Length the limit is detected while reading. 64 MiB need the default
	// timeout.
	a = running(t)
	r, err := http.NewRequestWithContext(t.Context(), "PUT", a.base+"/vms/web-1/files?path=/a",
		io.LimitReader(zeros{}, vm.MaxGuestFile+1))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	r.Header.Set("Content-Type", "application/octet-stream")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAnErrorWithinAFileClosesTheConnection(t *testing.T) {
	t.Parallel()
	a := running(t)
	a.want(t, 204, "PUT", "/vms/web-1/files?path=/a", "x", octets...)
	broken := &brokenFiles{Guests: a.manager.Guests}
	b := newAPI(t, func(f *fixture) { f.d.Guests, f.d.Reader = broken, a.store; f.d.Tokens = a.store })
	b.token = a.token
	r, err := http.NewRequestWithContext(t.Context(), "GET", b.base+"/vms/web-1/files?path=/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(r)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("a part of a file looks like the whole")
	}
	if strings.Contains(b.log.String(), `"level":"ERROR"`) {
		t.Errorf("a fault of the guest is logged as a defect: %s", b.log)
	}
}

type brokenFiles struct{ Guests }

func (*brokenFiles) ReadFile(_ context.Context, _, _ string, w io.Writer) error {
	if _, err := w.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
		return err
	}
	return &vm.Fault{Code: vm.CodeInvalid, Detail: "the file is too large"}
}

func TestGuestsThatDoNotAnswerAreProblems(t *testing.T) {
	t.Parallel()
	a := running(t)
	requests := []struct{ method, path, body string }{
		{"GET", "/guest", ""}, {"POST", "/exec", `{"command":["true"]}`}, {"GET", "/files?path=/a", ""},
		{"POST", "/actions/set-password", `{"user":"root","password":"x"}`}, {"POST", "/actions/trim", ""},
		{"PUT", "/files?path=/a", "x"},
	}
	each := func(id string, status int, code openapi.ProblemCode) {
		t.Helper()
		for _, r := range requests {
			var header []string
			if r.method == "PUT" {
				header = octets
			}
			if p := a.want(t, status, r.method, "/vms/"+id+r.path, r.body, header...).problem(t); p.Code != code {
				t.Errorf("%s %s: %+v", r.method, r.path, p)
			}
		}
	}
	a.driver.SetAgent("web-1", vm.Agent{State: vm.AgentSilent})
	each("web-1", 503, "agent-unavailable")
	a.driver.Hook = func(context.Context, string, string) error {
		return &vm.Fault{Code: vm.CodeGuestRefused, Detail: "the guest said no: No such file or directory"}
	}
	each("web-1", 409, "guest-refused")
	a.driver.Hook = nil
	each("web-2", 404, "not-found")
	a.want(t, 200, "POST", "/vms/web-1/actions/pause", "", "Prefer", "wait=30")
	each("web-1", 409, "invalid-state")
	a.want(t, 200, "POST", "/vms/web-1/actions/stop", `{"force":true}`, "Prefer", "wait=30")
	each("web-1", 409, "invalid-state")
}

func TestRequestsToGuestsAreRecordedWithoutSecrets(t *testing.T) {
	t.Parallel()
	a := running(t)
	const secret = "s3cr3t-word"
	a.want(t, 200, "POST", "/vms/web-1/exec",
		`{"command":["/bin/echo","`+secret+`"],"env":{"X":"`+secret+`"},"stdin":"`+secret+`"}`)
	a.want(t, 204, "PUT", "/vms/web-1/files?path=/etc/motd", secret, octets...)
	a.want(t, 204, "POST", "/vms/web-1/actions/set-password", `{"user":"root","password":"`+secret+`"}`)
	a.want(t, 204, "POST", "/vms/web-1/actions/trim", "")
	a.want(t, 200, "GET", "/vms/web-1/guest", "")
	r := a.want(t, 200, "GET", "/events?type=vm.guest", "")
	var got []string
	for _, e := range into[[]openapi.Event](t, r) {
		got = append(got, e.Resource+" "+string(e.Data))
	}
	want := []string{
		`vms/web-1 {"action":"exec","program":"/bin/echo","requested_by":"token:admin"}`,
		`vms/web-1 {"action":"write-file","path":"/etc/motd","requested_by":"token:admin"}`,
		`vms/web-1 {"action":"set-password","requested_by":"token:admin","user":"root"}`,
		`vms/web-1 {"action":"trim","requested_by":"token:admin"}`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	for _, path := range []string{"/events?limit=1000", "/operations", "/vms/web-1/why"} {
		if r := a.want(t, 200, "GET", path, ""); bytes.Contains(r.body, []byte(secret)) {
			t.Errorf("%s contains the secret", path)
		}
	}
	if strings.Contains(a.log.String(), secret) {
		t.Error("the log contains the secret")
	}
}

func TestRolesAreEnforced(t *testing.T) {
	t.Parallel()
	a := running(t)
	a.upload(t, "a", "x")
	viewer, operator, odd := a.as(t, vm.RoleViewer), a.as(t, vm.RoleOperator), a.as(t, "king")
	for _, test := range []struct {
		method, path, body      string
		forViewer, forOperators int
	}{
		{"GET", "/vms", "", 200, 200},
		{"GET", "/vms/web-1", "", 200, 200},
		{"GET", "/vms/web-1/guest", "", 200, 200},
		{"GET", "/vms/web-1/console/log", "", 200, 200},
		{"GET", "/vms/web-1/console", "", 426, 426},
		{"GET", "/vms/web-1/console?write=true", "", 403, 426},
		{"POST", "/vms/web-1/console/tickets", "", 201, 201},
		{"POST", "/vms/web-1/console/tickets", `{"write":true}`, 403, 201},
		{"POST", "/vms/web-1/exec", `{"command":["true"]}`, 403, 200},
		{"GET", "/vms/web-1/files?path=/a", "", 403, 200},
		{"PUT", "/vms/web-1/files?path=/a", "x", 403, 204},
		{"POST", "/vms/web-1/actions/set-password", `{"user":"a","password":"b"}`, 403, 204},
		{"POST", "/vms/web-1/actions/trim", "", 403, 204},
		{"PATCH", "/vms/web-1", `{"description":"x"}`, 403, 200},
		{"DELETE", "/disks/none", "", 403, 404},
		{"GET", "/images", "", 200, 200},
		{"GET", "/images/a", "", 200, 200},
		{"GET", "/images/a/content", "", 403, 200},
		{"POST", "/images", `{"name":"b"}`, 403, 400},
		{"PATCH", "/images/a/content?offset=0", `{}`, 403, 415},
		{"DELETE", "/images/b", "", 403, 404},
		{"GET", "/vms/web-1/cloud_init", "", 404, 404},
		{"PUT", "/vms/web-1/cloud_init", `{"x":1}`, 403, 400},
		{"GET", "/vms/web-1/cdroms", "", 200, 200},
		{"POST", "/vms/web-1/cdroms", `{}`, 403, 400},
		{"GET", "/nowhere", "", 404, 404},
	} {
		header := func(who []string) []string {
			if test.method == "PUT" && test.body == "x" {
				return append(append([]string{}, who...), octets...)
			}
			return who
		}
		a.want(t, test.forViewer, test.method, test.path, test.body, header(viewer)...)
		a.want(t, test.forOperators, test.method, test.path, test.body, header(operator)...)
		want := 403
		if test.path == "/nowhere" {
			want = 404
		}
		a.want(t, want, test.method, test.path, test.body, header(odd)...)
	}
}

func TestAStreamedBodyReturnsTheReasonOfItsEnd(t *testing.T) {
	t.Parallel()
	b := &streamedBody{
		ReadCloser: io.NopCloser(io.MultiReader(strings.NewReader("a"), failsWith{os.ErrDeadlineExceeded})),
		control:    http.NewResponseController(nil),
	}
	_, err := io.ReadAll(b)
	var f *vm.Fault
	if !errors.As(err, &f) || f.Code != codeTimeout || b.fault != f {
		t.Errorf("%v", err)
	}
}

type failsWith struct{ err error }

func (f failsWith) Read([]byte) (int, error) { return 0, f.err }

func TestOutputIsTextOrBase64(t *testing.T) {
	t.Parallel()
	for in, isText := range map[string]bool{"": true, "ü\x00": true, "\xff": false, "a\xc3": false} {
		text, encoded := textOrBase64([]byte(in))
		if (text != nil) != isText || (encoded != nil) == isText {
			t.Errorf("%q: %v %v", in, text, encoded)
		}
		if encoded != nil && *encoded != base64.StdEncoding.EncodeToString([]byte(in)) {
			t.Errorf("%q: %s", in, *encoded)
		}
	}
}
