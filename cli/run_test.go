package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A fakeDaemon answers requests like vmand.
type fakeDaemon struct {
	*httptest.Server
	mux *http.ServeMux

	mu       sync.Mutex
	requests []string // method, path and query
	keys     []string // the Idempotency-Keys
}

// newFakeDaemon starts a daemon, and makes it the one that the client talks to. No
// configuration of the user takes effect.
func newFakeDaemon(t *testing.T) *fakeDaemon {
	t.Helper()
	isolate(t)
	f := &fakeDaemon{mux: http.NewServeMux()}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.RequestURI())
		f.keys = append(f.keys, r.Header.Get("Idempotency-Key"))
		f.mu.Unlock()
		f.mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	t.Setenv("VMAN_URL", f.URL)
	return f
}

// isolate removes the user's configuration from the environment of the test.
func isolate(t *testing.T) {
	t.Helper()
	for _, name := range []string{"VMAN_URL", "VMAN_CONTEXT", "VMAN_TOKEN", "VMAN_TOKEN_FILE", "VMAN_SOCKET",
		"VMAN_RUNTIME_DIR", "NO_COLOR", "VISUAL", "EDITOR"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
}

// answer makes the daemon answer a request with JSON.
func (f *fakeDaemon) answer(pattern string, status int, body any) {
	f.mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, status, body) })
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// sentKeys returns the Idempotency-Keys of the requests, empty for none.
func (f *fakeDaemon) sentKeys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.keys)
}

func (f *fakeDaemon) seen() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.requests, "\n")
}

// A result is what one run of the client has printed.
type result struct {
	status   int
	out, err string
}

// vman runs the client. Its standard input is empty.
func vman(t *testing.T, args ...string) result {
	t.Helper()
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out, said bytes.Buffer
	status := Run(t.Context(), args, Streams{In: in, Out: &out, Err: &said}, "1.2.3")
	return result{status, out.String(), said.String()}
}

// want ends the test unless the client ended with the status, and printed the words.
func (r result) want(t *testing.T, status int, words ...string) result {
	t.Helper()
	if r.status != status {
		t.Fatalf("status %d, want %d\n%s%s", r.status, status, r.out, r.err)
	}
	for _, word := range words {
		if !strings.Contains(r.out+r.err, word) {
			t.Fatalf("%q is not in the output:\n%s%s", word, r.out, r.err)
		}
	}
	return r
}

// apiVM returns a VM as the API shows it.
func apiVM(id, state string) map[string]any {
	return map[string]any{
		"id": id, "uuid": "9d7c2f3e-0000-4000-8000-000000000000", "state": state, "state_reason": "requested",
		"vm_template":    map[string]any{"name": "small", "cpu_count": 2, "ram_amount": 1536},
		"root_disk_size": 20.0, "root_disk_size_bytes": 20 << 30,
		"local_ip": "192.168.100.2", "labels": map[string]string{"team": "a"}, "restart_policy": "never",
		"description": "", "autostart": false, "autostart_order": 0, "autostart_delay": 0, "desired_state": "running",
		"agent": map[string]any{"state": "connected"}, "boot": map[string]any{}, "nics": []any{}, "port_forwards": []any{},
		"cdroms": []any{}, "created_at": "2020-01-02T03:04:05.000Z", "updated_at": "2020-01-02T03:04:05.000Z",
	}
}

func apiProblem(status int, code, detail string) map[string]any {
	return map[string]any{"type": "urn:vman:problem:" + code, "title": "T", "status": status, "detail": detail, "code": code,
		"hint": "do something else", "request_id": "req-1"}
}

func apiOperation(id, state string, steps ...string) map[string]any {
	log := []map[string]any{}
	for _, s := range steps {
		log = append(log, map[string]any{"at": "2026-01-02T03:04:05.000Z", "step": "s", "message": s})
	}
	return map[string]any{"id": id, "kind": "vm.start", "resource": "vms/web", "state": state, "progress": nil, "step": "s",
		"problem": nil, "requested_by": "admin", "created_at": "2026-01-02T03:04:05.000Z", "log": log}
}

func TestTablesAreStable(t *testing.T) {
	f := newFakeDaemon(t)
	long := apiVM("a-very-long-name-of-a-virtual-machine", "error")
	long["local_ip"] = nil
	f.answer("GET /vms", 200, []any{apiVM("web", "running"), long})
	got := vman(t, "ls").want(t, 0).out
	for i, line := range strings.Split(strings.TrimSpace(got), "\n") {
		if fields := strings.Fields(line); len(fields) != 8 {
			t.Errorf("line %d has %d columns: %s", i, len(fields), line)
		}
	}
	want := "NAME                                   STATE    CPUS  MEMORY  DISK  ADDRESS        IMAGE  AGE\n" +
		"web                                    running  2     1.5G    20G   192.168.100.2  -      "
	if !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestOutputForms(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /vms", 200, []any{apiVM("web", "running"), apiVM("db", "stopped")})
	f.answer("GET /vms/web", 200, apiVM("web", "running"))
	if got := vman(t, "ls", "-o", "name").want(t, 0).out; got != "web\ndb\n" {
		t.Errorf("names: %q", got)
	}
	if got := vman(t, "ls", "-q").want(t, 0).out; got != "web\ndb\n" {
		t.Errorf("quiet: %q", got)
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(vman(t, "ls", "-o", "json").want(t, 0).out), &list); err != nil || len(list) != 2 ||
		list[0]["root_disk_size_bytes"] != float64(20<<30) {
		t.Errorf("json: %v, %v", list, err)
	}
	if got := vman(t, "ls", "-o", "go-template={{.id}} {{.root_disk_size_bytes}}").want(t, 0).out; !strings.HasPrefix(got, "web 21474836480\n") {
		t.Errorf("template: %q", got)
	}
	vman(t, "show", "web", "-o", "yaml").want(t, 0, "\nstate: running\n", "labels:\n  team: a\n", "nics: []\n")
	if got := vman(t, "show", "web", "web", "web", "-o", "yaml").want(t, 0).out; strings.Count(got, "\n---\n") != 2 || strings.HasPrefix(got, "---") {
		t.Errorf("three documents: %s", got)
	}
	vman(t, "ls", "-o", "wide").want(t, 0, "team=a", "LABELS")
	vman(t, "ls", "-o", "xml").want(t, exitUsage, "json, yaml, name, wide")
	vman(t, "ls", "-o", "go-template={{").want(t, exitUsage, "template")
	vman(t, "ls", "-o", "json=x").want(t, exitUsage, "no argument")
}

func TestExitStatusOfProblems(t *testing.T) {
	f := newFakeDaemon(t)
	for status, want := range map[int]int{400: 2, 401: 6, 403: 6, 404: 3, 409: 4, 412: 4, 422: 2, 500: 1, 503: 1, 507: 1} {
		id := fmt.Sprintf("vm-%d", status)
		f.answer("GET /vms/"+id, status, apiProblem(status, "invalid-state", "VM "+id+" is odd\x1b[31m"))
		r := vman(t, "show", id).want(t, want, "vman: VM "+id+" is odd", "  hint: do something else", "  request: req-1")
		if first, _, _ := strings.Cut(r.err, "\n"); !strings.HasPrefix(first, "vman: VM") || strings.Contains(r.err, "\x1b") {
			t.Errorf("%d: first line %q", status, first)
		}
	}
	f.mux.HandleFunc("GET /vms/html", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(404)
		fmt.Fprint(w, "<html>not found</html>")
	})
	vman(t, "show", "html").want(t, exitNotFound, "404 Not Found without a reason", "address of a vmand")
}

func TestUsageErrorsNameTheNearest(t *testing.T) {
	isolate(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"strat", "web"}, "did you mean start?"},
		{[]string{"disk", "lss"}, "did you mean ls?"},
		{[]string{"ls", "--stat", "running"}, "did you mean --state?"},
		{[]string{"start"}, "requires at least 1 argument"},
		{[]string{"start", "."}, `"." is not a name`},
		{[]string{"rm", "..", "--yes"}, `".." is not a name`},
		{[]string{"disk", "create", "20"}, "20G"},
		{[]string{"disk", "resize", "d", "1.23456789B"}, "whole number of bytes"},
		{[]string{"forward", "add", "web", "80"}, "8080:80"},
		{[]string{"forward", "add", "web", "0:80"}, "1 to 65535"},
		{[]string{"nic", "rm", "web", "x"}, "slot"},
		{[]string{"cp", "a", "b"}, "VM:PATH"},
		{[]string{"start", "web", "-l", "a=b"}, "not both"},
		{[]string{"ls", "extra"}, "unknown command"},
		{[]string{"create", "x", "--label", "novalue"}, "KEY=VALUE"},
		{[]string{"create", "x", "--for", "ip"}, "--start"},
		{[]string{"create", "x", "--template", "s", "--cpus", "2"}, "none of the others"},
		{[]string{"--url", "ftp://x", "ls"}, "http://HOST:PORT"},
		{[]string{"--url", "unix:rel", "ls"}, "absolute"},
		{[]string{"completion", "tcsh"}, "bash, zsh or fish"},
		{[]string{"image", "upload", "-"}, "--name"},
	} {
		vman(t, tt.args...).want(t, exitUsage, tt.want)
	}
}

func TestNamesAreEscapedInURLs(t *testing.T) {
	f := newFakeDaemon(t)
	vman(t, "show", "a/../b?x=$(id) #").want(t, exitNotFound)
	if got := f.seen(); got != "GET /vms/a%2F..%2Fb%3Fx=$%28id%29%20%23" && got != "GET /vms/a%2F..%2Fb%3Fx=$(id)%20%23" {
		t.Errorf("the daemon received %s", got)
	}
}

func TestDaemonThatIsAway(t *testing.T) {
	isolate(t)
	vman(t, "--url", "unix:"+filepath.Join(t.TempDir(), "none.sock"), "ls").want(t, exitNoDaemon, "no vmand answers at unix:", "is vmand running?")
	vman(t, "--url", "http://127.0.0.1:1", "ls").want(t, exitNoDaemon, "http://127.0.0.1:1")
	t.Setenv("VMAN_SOCKET", filepath.Join(t.TempDir(), "other.sock"))
	vman(t, "start", "web").want(t, exitNoDaemon, "other.sock")
}

func TestListsFollowAllPages(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("GET /vms", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("cursor") {
		case "":
			w.Header().Set("Link", `</vms?cursor=two&limit=1000&state=running>; rel="next"`)
			writeJSON(w, 200, []any{apiVM("a", "running"), apiVM("b", "running")})
		case "two":
			w.Header().Set("Link", `</vms?cursor=three&limit=1000&state=running>; rel="next"`)
			writeJSON(w, 200, []any{apiVM("c", "running")})
		default:
			writeJSON(w, 200, []any{})
		}
	})
	if got := vman(t, "ls", "-q", "--state", "running").want(t, 0).out; got != "a\nb\nc\n" {
		t.Errorf("got %q", got)
	}
	for line := range strings.Lines(f.seen()) {
		if !strings.Contains(line, "state=running") || !strings.Contains(line, "limit=1000") {
			t.Errorf("request %s", line)
		}
	}
}

func TestListsThatAreCutOff(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("GET /vms", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100000")
		fmt.Fprint(w, `[{"id":"web"},{"id":`)
	})
	f.answer("GET /disks", 200, map[string]string{"message": "hello"})
	f.mux.HandleFunc("GET /images", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", `</images?limit=1>; rel="next"`)
		writeJSON(w, 200, []any{})
	})
	vman(t, "ls", "-q").want(t, exitFailed, "closed the connection before its answer was complete")
	f.mux.HandleFunc("GET /templates", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "[")
		w.(http.Flusher).Flush()
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close() // resets the connection
	})
	vman(t, "template", "ls").want(t, exitFailed, "connection")
	vman(t, "disk", "ls").want(t, exitFailed, "is not the list that vmand sends", "address of a vmand")
	vman(t, "image", "ls").want(t, exitFailed, "link to the next page")
}

func TestRequestIsRepeatedOnceWithTheSameKey(t *testing.T) {
	f := newFakeDaemon(t)
	var broken atomic.Int32 // the number of connections to cut
	broken.Store(1)
	f.mux.HandleFunc("POST /vms/web/actions/pause", func(w http.ResponseWriter, _ *http.Request) {
		if broken.Add(-1) >= 0 {
			panic(http.ErrAbortHandler) // cuts the connection
		}
		writeJSON(w, 200, apiVM("web", "paused"))
	})
	vman(t, "pause", "web").want(t, 0, "VM web is paused")
	if keys := f.sentKeys(); len(keys) != 2 || keys[0] == "" || keys[0] != keys[1] {
		t.Errorf("the keys of the requests are %q, want one key twice", keys)
	}
	broken.Store(5)
	vman(t, "pause", "web").want(t, exitFailed, "closed the connection")
	if n := len(f.sentKeys()); n != 4 {
		t.Errorf("the client sent %d requests, want 4", n)
	}
	f.mux.HandleFunc("POST /vms/web/exec", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	vman(t, "exec", "web", "--", "reboot").want(t, exitFailed)
	if keys := f.sentKeys(); len(keys) != 5 || keys[4] != "" {
		t.Errorf("a program was run %d times", len(keys)-4)
	}
}

func TestWaitingShowsTheSteps(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("POST /vms/web/actions/start", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/operations/op-1")
		writeJSON(w, 202, apiVM("web", "starting"))
	})
	var reads atomic.Int32
	f.mux.HandleFunc("GET /operations/op-1", func(w http.ResponseWriter, _ *http.Request) {
		if reads.Add(1) == 1 {
			writeJSON(w, 200, apiOperation("op-1", "running", "created files"))
			return
		}
		writeJSON(w, 200, apiOperation("op-1", "succeeded", "created files", "started QEMU"))
	})
	f.mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, ": hello\n\nid: 7\nevent: operation.step\ndata: {\"seq\":7,\"at\":\"2026-01-02T03:04:05Z\",\"type\":\"operation.step\",\"resource\":\"operations/op-1\",\"data\":{}}\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	f.answer("GET /vms/web", 200, apiVM("web", "running"))
	r := vman(t, "start", "web").want(t, 0, "VM web is running")
	if want := "VM web: created files\nVM web: started QEMU\n"; r.err != want {
		t.Errorf("progress %q, want %q", r.err, want)
	}
	if r := vman(t, "start", "web", "--no-wait").want(t, 0); r.out != "op-1\n" {
		t.Errorf("--no-wait printed %q", r.out)
	}
	vman(t, "start", "web", "--no-wait", "--for", "agent").want(t, 0, "op-1")
	if got := f.seen(); strings.Contains(got, "wait_for") {
		t.Errorf("the daemon received %s", got)
	}
	if r := vman(t, "start", "web", "-q").want(t, 0); r.out != "web\n" || r.err != "" {
		t.Errorf("-q printed %q and %q", r.out, r.err)
	}
}

func TestFailedOperationAndTimeout(t *testing.T) {
	f := newFakeDaemon(t)
	op := apiOperation("op-1", "failed")
	op["problem"] = apiProblem(503, "insufficient-memory", "VM web needs 1 GiB")
	f.mux.HandleFunc("POST /vms/{id}/actions/start", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/operations/op-"+r.PathValue("id"))
		writeJSON(w, 202, apiVM("web", "starting"))
	})
	f.answer("GET /operations/op-bad", 200, op)
	f.answer("GET /operations/op-slow", 200, apiOperation("op-slow", "running"))
	f.mux.HandleFunc("GET /events", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	vman(t, "start", "bad").want(t, exitFailed, "vman: VM web needs 1 GiB", "hint: do something else", "operation: op-1")
	vman(t, "start", "slow", "--timeout", "50ms").want(t, exitTimedOut, "operation op-slow continues", "vman op wait op-slow")
	f.answer("GET /images/debian-12", 200, map[string]any{"name": "debian-12", "state": "importing"})
	vman(t, "launch", "debian-12", "--timeout", "50ms").want(t, exitTimedOut, "gave up waiting after 50ms")
	vman(t, "start", "bad", "slow", "--timeout", "50ms").want(t, exitFailed, "VM web needs 1 GiB", "op-slow continues")
}

func TestConfigurationThatIsBroken(t *testing.T) {
	isolate(t)
	path := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "vman", "config.yaml")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]string{
		"current: [":                    "line 1",
		"curent: lab":                   "curent",
		"current: lab":                  `no context "lab"`,
		"contexts: {a: {url: ftp://x}}": "context a: url",
		"contexts: {a: {url: 'https://x', fingerprint: 'sha256:1'}}": "fingerprint",
		strings.Repeat("#", maxConfig+1):                             "larger than 1M",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r := vman(t, "ls")
		if r.status != exitUsage && r.status != exitNotFound || !strings.Contains(r.err, want) {
			t.Errorf("%.40s: status %d, %s", content, r.status, r.err)
		}
	}
}

func TestContexts(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /vms", 200, []any{apiVM("web", "running")})
	t.Setenv("VMAN_URL", "")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	vman(t, "context", "add", "lab", f.URL, "--token-file", token, "--use").want(t, 0, "context lab added")
	info, err := os.Stat(filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "vman", "config.yaml"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the configuration file is %v, %v; want mode 0600", info, err)
	}
	f.mux.HandleFunc("GET /templates", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("User-Agent") != "vman/1.2.3" {
			writeJSON(w, 401, apiProblem(401, "unauthorized", "no token"))
			return
		}
		writeJSON(w, 200, []any{})
	})
	vman(t, "template", "ls").want(t, 0)
	vman(t, "context", "ls").want(t, 0, "lab", "yes", f.URL)
	vman(t, "context", "show").want(t, 0, f.URL)
	vman(t, "context", "add", "lab", f.URL).want(t, exitConflict, "--force")
	vman(t, "context", "use", "lob").want(t, exitNotFound, "did you mean lab?")
	vman(t, "context", "use", "none").want(t, 0)
	vman(t, "--context", "lab", "ls", "-q").want(t, 0, "web")
	vman(t, "context", "rm", "lab").want(t, 0)
	vman(t, "--context", "lab", "ls").want(t, exitNotFound)
}

func TestPinnedFingerprint(t *testing.T) {
	isolate(t)
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, []any{apiVM("web", "running")}) }))
	defer tls.Close()
	vman(t, "context", "add", "lab", tls.URL, "--pin", "--use").want(t, 0, "sha256:")
	vman(t, "ls", "-q").want(t, 0, "web")
	vman(t, "context", "add", "bad", tls.URL, "--fingerprint", "sha256:"+strings.Repeat("0", 64), "--use").want(t, 0)
	vman(t, "ls").want(t, exitNotAllowed, "not the pinned one")
	vman(t, "--url", tls.URL, "ls").want(t, exitNotAllowed, "not trusted", "--pin")
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"20G": 20 << 30, "512M": 512 << 20, "1.5T": 3 << 39, "1KiB": 1024, "2gib": 2 << 30, "7B": 7, "1 GB": 1 << 30, "0.5K": 512,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "20", "G", "-1G", "1e3G", "0x1G", "1.5B", "99999999999T", "1G1", "Inf", "1,5G"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%s is %d, want an error", text, got)
		}
	}
	for bytes, want := range map[int64]string{0: "0", 1: "1B", 1536 << 20: "1.5G", 20 << 30: "20G", 1023: "1023B", 3 << 39: "1.5T"} {
		if got := formatSize(bytes); got != want {
			t.Errorf("%d is %s, want %s", bytes, got, want)
		}
	}
}

func TestDaemonThatIsSlow(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("GET /disks", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	f.mux.HandleFunc("DELETE /disks/d", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	vman(t, "disk", "ls", "--timeout", "50ms").want(t, exitTimedOut, "does not answer for 50ms")
	vman(t, "disk", "rm", "d", "--yes", "--timeout", "50ms").want(t, exitTimedOut, "may still be carried out")
	f.mux.HandleFunc("GET /disks/stalls", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"id":`)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	vman(t, "disk", "show", "stalls", "--timeout", "50ms").want(t, exitTimedOut, "does not answer for 50ms")
	for request, want := range map[string]time.Duration{
		"GET":         readPatience,
		"GET wait=20": readPatience + 20*time.Second,
		"POST":        time.Hour,
	} {
		method, prefer, _ := strings.Cut(request, " ")
		r := httptest.NewRequest(method, "/", nil)
		r.Header.Set("Prefer", prefer)
		if got := (&app{timeout: time.Hour}).patience(r); got != want {
			t.Errorf("%s may take %s, want %s", request, got, want)
		}
	}
}

// The time in which a body is sent is no silence of the daemon, but a body that is not read is.
func TestSendingIsNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{url: &url.URL{Scheme: "http", Host: "daemon"}}
		slow, writer := io.Pipe()
		go func() {
			defer writer.Close()
			for range 5 {
				time.Sleep(time.Minute)
				_, _ = writer.Write([]byte("x"))
			}
		}()
		stalled := false
		a := newAppOf(e, roundTripper(func(r *http.Request) (*http.Response, error) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return nil, err
			}
			if stalled {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("{}")), Header: http.Header{}}, nil
		}))
		a.timeout = 2 * time.Minute
		send := func(body io.Reader) error {
			r, err := http.NewRequest(http.MethodPut, "http://daemon/", body)
			_, err = call[struct{}](t.Context(), a)(r, err)
			return err
		}
		if err := send(slow); err != nil {
			t.Errorf("a body that takes 5 min: %v", err)
		}
		stalled = true
		if err := send(strings.NewReader("x")); statusOf(err) != exitTimedOut {
			t.Errorf("a daemon that does not answer: %v", err)
		}
	})
}

// A daemon of another version may know more or fewer properties and states.
func TestOtherVersionsOfTheDaemon(t *testing.T) {
	f := newFakeDaemon(t)
	newer := apiVM("new", "migrating")
	newer["region"] = map[string]any{"name": "x"}
	f.answer("GET /vms", 200, []any{newer, map[string]any{"id": "old", "state": "running"}})
	vman(t, "ls", "-o", "wide").want(t, 0, "migrating", "old")
	vman(t, "ls", "-o", "json").want(t, 0, `"region"`)
	f.answer("GET /health", 200, map[string]any{"status": "ok", "service": "vmand", "version": "9.0.0"})
	vman(t, "version").want(t, 0, "vman  1.2.3", "vmand 9.0.0")
}

// The daemon holds the answer to a start until the guest is ready. The steps are shown as they
// happen; those that no event has shown are shown at the end.
func TestStartWaitsForTheGuest(t *testing.T) {
	f := newFakeDaemon(t)
	narrated, once := make(chan struct{}), sync.Once{}
	f.mux.HandleFunc("POST /vms/web/actions/start", func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("wait_for") + " " + r.Header.Get("Prefer"); got != "agent wait=119" && got != "agent wait=120" {
			t.Errorf("the request has %q", got)
		}
		<-narrated
		v := apiVM("web", "running")
		v["boot"] = map[string]any{"first_serial_at": "2026-01-02T03:04:05Z", "agent_at": "2026-01-02T03:04:09Z"}
		writeJSON(w, 200, v)
	})
	f.mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		for i, event := range []string{
			`"type":"vm.boot","resource":"vms/other","data":{"agent":"2026-01-02T03:04:05Z"}`,
			`"type":"operation.step","resource":"operations/op-0","data":{"resource":"vms/other"}`,
			`"type":"vm.boot","resource":"vms/web","data":{"serial":"2026-01-02T03:04:05Z"}`,
			`"type":"operation.step","resource":"operations/op-1","data":{"resource":"vms/web","step":"cont"}`,
		} {
			fmt.Fprintf(w, "data: {\"seq\":%d,\"at\":\"2026-01-02T03:04:05Z\",%s}\n\n", i, event)
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	f.mux.HandleFunc("GET /operations/op-1", func(w http.ResponseWriter, r *http.Request) {
		defer once.Do(func() { close(narrated) })
		writeJSON(w, 200, apiOperation("op-1", "running", "starting QEMU"))
	})
	r := vman(t, "start", "web", "--for", "agent", "--timeout", "2m").want(t, 0, "VM web is running")
	want := "VM web: the guest writes to its console\nVM web: starting QEMU\nVM web: the guest agent answers\n"
	if r.err != want {
		t.Errorf("progress %q, want %q", r.err, want)
	}
}

// A start that is interrupted while the daemon holds its answer names the operation.
func TestInterruptedStartNamesItsOperation(t *testing.T) {
	f := newFakeDaemon(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	f.mux.HandleFunc("POST /vms/web/actions/start", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel(errInterrupted)
		<-r.Context().Done()
	})
	f.mux.HandleFunc("GET /events", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	f.answer("GET /operations", 200, []any{apiOperation("op-7", "running")})
	vmanWith(ctx, t, "", "start", "web", "--for", "agent").want(t, exitInterrupted, "operation op-7 continues")
}

func TestPrivateKeysAreNotSent(t *testing.T) {
	f := newFakeDaemon(t)
	key := filepath.Join(t.TempDir(), "id_ed25519")
	if err := os.WriteFile(key, []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	vman(t, "create", "web", "--ssh-key", key).want(t, exitUsage, "private key", "id_ed25519.pub")
	if got := f.seen(); strings.Contains(got, "POST") {
		t.Errorf("the client sent %s", got)
	}
}

func TestCatalogPassesTheChecksumOn(t *testing.T) {
	f := newFakeDaemon(t)
	sum := strings.Repeat("ab", 64)
	f.mux.HandleFunc("GET /SUMS", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s  other.qcow2\n%s  tiny.qcow2\n", strings.Repeat("0", 128), sum)
	})
	f.mux.HandleFunc("POST /images", func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		if body["sha512"] != sum || body["url"] != f.URL+"/tiny.qcow2" {
			t.Errorf("the request is %v", body)
		}
		writeJSON(w, 201, map[string]any{"name": "tiny", "state": "available"})
	})
	dir := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "vman")
	entry := fmt.Sprintf("tiny: {url: %[1]s/tiny.qcow2, checksums: %[1]s/SUMS, user: root}\nlost: {url: %[1]s/lost.qcow2, checksums: %[1]s/SUMS}\n", f.URL)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "catalog.yaml"), []byte(entry), 0o600); err != nil {
		t.Fatal(err)
	}
	vman(t, "image", "import", "tiny").want(t, 0, "image tiny is available")
	vman(t, "image", "import", "lost").want(t, exitFailed, "no checksum for lost.qcow2")
	vman(t, "image", "catalog", "-q").want(t, 0, "debian-12", "tiny")
	if got := findSum([]byte(strings.ToUpper(sum)+"\n"), "x.img"); got != sum {
		t.Errorf("a file with one sum: %q", got)
	}
	for line, want := range map[string]string{
		sum[:64] + " *x.img":           sum[:64],
		"SHA256 (x.img) = " + sum[:64]: sum[:64],
		"SHA512 (x.img) = " + sum:      sum,
		sum[:64] + "  xx.img":          "",
		"# x.img: 3 bytes":             "",
	} {
		if got := findSum([]byte("first\n"+line+"\n"), "x.img"); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// A large answer, and a list without an end, are not kept in memory.
func TestListsAreStreamed(t *testing.T) {
	f := newFakeDaemon(t)
	const items = 5_000
	f.mux.HandleFunc("GET /vms", func(w http.ResponseWriter, _ *http.Request) {
		text, _ := json.Marshal(apiVM("web", "running"))
		fmt.Fprint(w, "[")
		for i := range items {
			if i > 0 {
				fmt.Fprint(w, ",")
			}
			_, _ = w.Write(text)
		}
		fmt.Fprint(w, "]")
	})
	var peak memory
	isolatedRun := func() int {
		return Run(t.Context(), []string{"ls", "-o", "json"}, Streams{Out: &peak, Err: &peak}, "1.2.3")
	}
	if status := isolatedRun(); status != 0 {
		t.Fatalf("status %d", status)
	}
	if peak.lines < items || peak.most > 10<<20 {
		t.Errorf("%d lines, %s of heap", peak.lines, formatSize(int64(peak.most)))
	}
}

// A memory measures the live heap while it is written to.
type memory struct {
	lines, writes int
	begin, most   uint64
}

func (m *memory) Write(b []byte) (int, error) {
	m.lines += bytes.Count(b, []byte("\n"))
	if m.writes++; m.writes%5000 == 1 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		if m.begin == 0 {
			m.begin = s.HeapAlloc
		}
		m.most = max(m.most, s.HeapAlloc-min(s.HeapAlloc, m.begin))
	}
	return len(b), nil
}

func TestStopGivesTheGuestTime(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("POST /vms/{id}/actions/stop", func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		if body["timeout_seconds"] != 91.0 || body["force"] != false {
			t.Errorf("the request is %v", body)
		}
		writeJSON(w, 200, apiVM(r.PathValue("id"), "stopped"))
	})
	vman(t, "stop", "a", "b", "c", "--timeout", "90.5s").want(t, 0, "VM a is stopped", "VM b is stopped", "VM c is stopped")
	vman(t, "stop", "a", "--timeout", "2h").want(t, exitUsage, "0s to 1h")
}

// What the daemon sends is limited: one answer, one item of a list, one event.
func TestAnswersAreLimited(t *testing.T) {
	f := newFakeDaemon(t)
	endless := func(begin string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, begin)
			for text := []byte(strings.Repeat("x", 1<<20)); r.Context().Err() == nil; {
				if _, err := w.Write(text); err != nil {
					return
				}
			}
		}
	}
	f.mux.HandleFunc("GET /vms", endless(`[{"id":"`))
	f.mux.HandleFunc("GET /vms/web", endless(`{"id":"`))
	f.mux.HandleFunc("GET /events", endless("data: "))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	vman(t, "ls").want(t, exitFailed, "an item of the list is larger than 16M")
	vman(t, "show", "web").want(t, exitFailed, "larger than 64M")
	vman(t, "event", "-f").want(t, exitFailed, "an event is larger than 4M")
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<30 {
		t.Errorf("the client has allocated %s", formatSize(int64(got)))
	}
}
