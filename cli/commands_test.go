package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vmand/openapi/client"
)

// vmanWith is vman with standard input, and a context that can end the command.
func vmanWith(ctx context.Context, t *testing.T, input string, args ...string) result {
	t.Helper()
	path := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(path, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out, said bytes.Buffer
	status := Run(ctx, args, Streams{In: in, Out: &out, Err: &said}, "1.2.3")
	return result{status, out.String(), said.String()}
}

func TestExecPassesStreamsAndStatusOn(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("POST /vms/web/exec", func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		answer := map[string]any{"exited": true, "exit_code": 0, "signal": nil, "stdout": fmt.Sprintf("%v|%v|%v|%v|%v", body["command"],
			body["env"], body["stdin"], body["stdin_base64"], body["timeout_seconds"]), "stderr": "", "truncated": false}
		switch body["command"].([]any)[0] {
		case "fails":
			answer["exit_code"], answer["stdout"], answer["stdout_base64"], answer["stderr"] = 42, nil, "/wA=", "oops\n"
		case "dies":
			answer["exit_code"], answer["signal"], answer["truncated"] = nil, 15, true
		case "huge": // a status of Windows
			answer["exit_code"] = 3221225477
		case "stays":
			answer["exited"], answer["exit_code"] = false, nil
		}
		writeJSON(w, 200, answer)
	})
	if got := vman(t, "exec", "web", "-e", "A=b", "--timeout", "2m", "--", "ls", "-l").want(t, 0).out; got != "[ls -l]|map[A:b]|<nil>|<nil>|120" {
		t.Errorf("the daemon received %s", got)
	}
	vmanWith(t.Context(), t, "text", "exec", "-i", "web", "cat").want(t, 0, "|<nil>|text|<nil>|30")
	vmanWith(t.Context(), t, "\xff", "exec", "-i", "web", "cat").want(t, 0, "|<nil>|<nil>|/w==|30")
	vmanWith(t.Context(), t, strings.Repeat("x", maxStdin+1), "exec", "-i", "web", "cat").want(t, exitUsage, "larger than 1M", "vman cp")
	if r := vman(t, "exec", "web", "fails").want(t, 42); r.out != "\xff\x00" || r.err != "oops\n" {
		t.Errorf("streams %q and %q", r.out, r.err)
	}
	vman(t, "exec", "web", "dies").want(t, 128+15, "its end is missing")
	vman(t, "exec", "web", "stays").want(t, exitTimedOut, "continues in the guest")
	vman(t, "exec", "web", "-o", "json", "--", "fails").want(t, 0, `"exit_code": 42`)
	if got := vman(t, "exec", "web", "--", "ls", "--", "-i").want(t, 0).out; !strings.HasPrefix(got, "[ls -- -i]|") {
		t.Errorf("the daemon received %s", got)
	}
	// Flags after the program are its own.
	if got := vman(t, "exec", "web", "-e", "A=b", "grep", "-i", "-q", "-o", "x", "--help").want(t, 0).out; got != "[grep -i -q -o x --help]|map[A:b]|<nil>|<nil>|30" {
		t.Errorf("the daemon received %s", got)
	}
	vman(t, "exec", "web", "--what", "ls").want(t, exitUsage, "write -- before the program")
	vman(t, "exec", "web", "-i").want(t, exitUsage, "usage:")
	vman(t, "exec", "web", "--help").want(t, 0, "Usage:")
	vman(t, "exec", "web", "--", "huge").want(t, 255)
}

func TestCopies(t *testing.T) {
	f := newFakeDaemon(t)
	written := map[string]string{}
	f.mux.HandleFunc("PUT /vms/web/files", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		written[r.URL.Query().Get("path")] = string(text)
		w.WriteHeader(204)
	})
	f.mux.HandleFunc("GET /vms/web/files", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Query().Get("path"), "cut") {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "part")
			return
		}
		fmt.Fprint(w, "from "+r.URL.Query().Get("path"))
	})
	dir := t.TempDir()
	file := filepath.Join(dir, "a b")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	vman(t, "cp", file, "web:/etc/x").want(t, 0)
	vman(t, "cp", file, "web:/etc/").want(t, 0)
	vmanWith(t.Context(), t, "piped", "cp", "-", "web:/tmp/in").want(t, 0)
	if written["/etc/x"] != "text" || written["/etc/a b"] != "text" || written["/tmp/in"] != "piped" {
		t.Errorf("the guest has %q", written)
	}
	vman(t, "cp", "web:/etc/motd", "-").want(t, 0, "from /etc/motd")
	vman(t, "cp", "web:/etc/motd", dir).want(t, 0)
	if text, err := os.ReadFile(filepath.Join(dir, "motd")); err != nil || string(text) != "from /etc/motd" {
		t.Errorf("got %q, %v", text, err)
	}
	vman(t, "cp", "web:/cut", filepath.Join(dir, "cut")).want(t, exitFailed, "closed the connection")
	if left, _ := filepath.Glob(filepath.Join(dir, "*cut*")); len(left) > 0 {
		t.Errorf("a copy that was cut off left %q", left)
	}
	if err := os.Symlink(filepath.Join(dir, "script"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte("old"), 0o750); err != nil {
		t.Fatal(err)
	}
	vman(t, "cp", "web:/etc/motd", filepath.Join(dir, "link")).want(t, 0)
	link, err1 := os.Lstat(filepath.Join(dir, "link"))
	script, err2 := os.Stat(filepath.Join(dir, "script"))
	if err := errors.Join(err1, err2); err != nil || link.Mode()&fs.ModeSymlink == 0 || script.Mode() != 0o750 || script.Size() != 14 {
		t.Errorf("the copy over a link: %v and %v, %v", link, script, err)
	}
	large := filepath.Join(dir, "large")
	if err := os.Truncate(file, maxCopy+1); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, large); err != nil {
		t.Fatal(err)
	}
	vman(t, "cp", large, "web:/tmp/").want(t, exitUsage, "at most 64M", "scp")
	vman(t, "cp", dir, "web:/tmp/x").want(t, exitUsage, "is a directory", "tar")
	vman(t, "cp", "-", "web:/tmp/").want(t, exitUsage, "name the file")
	vman(t, "cp", "web:/a", "db:/b").want(t, exitUsage, "must be a file in a guest")
	vman(t, "cp", filepath.Join(dir, "none"), "web:/b").want(t, exitUsage, "no such file")
}

// A stream of events that ends is continued after the last event.
func TestEventsAreFollowed(t *testing.T) {
	f := newFakeDaemon(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	var streams atomic.Int32
	f.mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		event := func(seq int) {
			fmt.Fprintf(w, ": ping\n\nid: %d\ndata: {\"seq\":%d,\"at\":\"2026-01-02T03:04:05Z\",\"type\":\"vm.state\",\"resource\":\"vms/web\",\"data\":{\"to\":\"running\",\"n\":%d,\"detail\":\"\\u001b[2J\"}}\n\n", seq, seq, seq)
		}
		if streams.Add(1) == 1 {
			event(1)
			return
		}
		if got := r.Header.Get("Last-Event-ID"); got != "1" {
			t.Errorf("Last-Event-ID %q, want 1", got)
		}
		event(2)
		w.(http.Flusher).Flush()
		cancel(errInterrupted)
		<-r.Context().Done()
	})
	r := vmanWith(ctx, t, "", "event", "-f", "--resource", "vms/web").want(t, exitInterrupted, "n=1 to=running")
	if strings.Contains(r.out, "\x1b") {
		t.Errorf("an escape sequence reaches the terminal: %q", r.out)
	}
}

func TestDownloadContinues(t *testing.T) {
	f := newFakeDaemon(t)
	content := strings.Repeat("0123456789abcdef", 1<<14) // 256 KiB
	sum := strings.Repeat("ab", 32)
	f.answer("GET /images/golden", 200, map[string]any{"name": "golden", "state": "available", "format": "qcow2", "sha256": sum})
	var requests atomic.Int32
	f.mux.HandleFunc("GET /images/golden/content", func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = io.WriteString(w, content[:100_000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		if r.Header.Get("If-Range") != `"`+sum+`"` || !strings.HasPrefix(r.Header.Get("Range"), "bytes=") {
			t.Errorf("the request has the headers %v", r.Header)
		}
		w.Header().Set("ETag", `"`+sum+`"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
	})
	file := filepath.Join(t.TempDir(), "out")
	vman(t, "image", "download", "golden", "--file", file).want(t, 0, "saved as")
	if got, err := os.ReadFile(file); err != nil || string(got) != content {
		t.Errorf("%d bytes were saved, %v; want %d", len(got), err, len(content))
	}
	vman(t, "image", "download", "golden", "--file", file).want(t, exitConflict, "exists")
}

func TestEditSendsTheVersionThatWasRead(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("GET /vms/web", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		writeJSON(w, 200, apiVM("web", "running"))
	})
	f.mux.HandleFunc("PATCH /vms/web", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		if r.Header.Get("If-Match") != `"v1"` || string(text) != `{"description":"new"}` {
			t.Errorf("the request has %q and %s", r.Header.Get("If-Match"), text)
		}
		writeJSON(w, 412, apiProblem(412, "precondition-failed", "VM web has changed"))
	})
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("EDITOR", `sed -i s/^description:.*/description:\x20new/`)
	r := vman(t, "edit", "web").want(t, exitConflict, "VM web has changed", "your text is kept in "+os.Getenv("TMPDIR"))
	_, file, _ := strings.Cut(strings.SplitN(r.err, "\n", 2)[0], "kept in ")
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "description: new") {
		t.Errorf("the kept text is %q, %v", text, err)
	}
	t.Setenv("EDITOR", "false")
	vman(t, "edit", "web").want(t, exitFailed, "the editor false", "your text is kept in")
	t.Setenv("EDITOR", "sed -i /^autostart/d")
	vman(t, "edit", "web").want(t, 0, "VM web not changed")
	t.Setenv("EDITOR", `sed -i s/^description:.*/[/`)
	vman(t, "edit", "web").want(t, exitUsage, "not YAML")
}

func TestConditions(t *testing.T) {
	f := newFakeDaemon(t)
	var held atomic.Int32
	f.mux.HandleFunc("GET /vms/web", func(w http.ResponseWriter, r *http.Request) {
		condition, prefer := r.URL.Query().Get("wait_for"), r.Header.Get("Prefer")
		switch {
		case condition == "" && prefer == "": // for state=running
			writeJSON(w, 200, apiVM("web", "running"))
		case prefer != "wait=59" && prefer != "wait=60":
			t.Errorf("the request has %q and %q", condition, prefer)
		case condition == "port:22" && held.Add(1) == 1: // the time is over
			writeJSON(w, 202, apiVM("web", "running"))
		default:
			writeJSON(w, 200, apiVM("web", "running"))
		}
	})
	f.answer("GET /vms/off", 409, apiProblem(409, "invalid-state", "VM off is stopped"))
	f.answer("GET /vms/bad", 409, apiProblem(409, "guest-refused", "cloud-init has failed: bad module"))
	for _, condition := range []string{"ip", "agent", "cloud-init", "state=running", "port:22"} {
		vman(t, "wait", "web", "--for", condition, "--timeout", "1m").want(t, 0, "VM web: "+condition)
	}
	if held.Load() != 2 {
		t.Errorf("the client asked %d times for the port, want 2", held.Load())
	}
	vman(t, "wait", "off", "--for", "agent").want(t, exitConflict, "VM off is stopped", "vman start off --for agent")
	vman(t, "wait", "bad", "--for", "cloud-init").want(t, exitConflict, "bad module")
	for _, condition := range []string{"port:0", "port:x", "state=odd", "nonsense", ""} {
		vman(t, "wait", "web", "--for", condition).want(t, exitUsage, "port:N")
	}
}

func TestWaitGivesUp(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("GET /vms/web", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	vman(t, "wait", "web", "--for", "port:23", "--timeout", "50ms").want(t, exitTimedOut, "gave up waiting for port:23", "vman why web")
}

func TestDegradedHealth(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /health", 503, map[string]any{"status": "degraded", "service": "vmand", "version": "9.0.0"})
	vman(t, "health").want(t, exitFailed, "the daemon is degraded")
	vman(t, "health", "-o", "json").want(t, exitFailed, `"status": "degraded"`)
}

// Every request has a limit.
func TestSilentDaemon(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("/", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for _, args := range [][]string{{"health"}, {"version"}, {"api", "GET", "/vms"}} {
		vman(t, append(args, "--timeout", "50ms")...).want(t, exitTimedOut, "does not answer for 50ms")
	}
}

// A wait outlasts a restart of the daemon.
func TestWaitOutlastsARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		away := 20 // requests that find no daemon
		e := &endpoint{url: &url.URL{Scheme: "http", Host: "daemon"}}
		a := newAppOf(e, roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/events" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			state := "running"
			switch reads++; {
			case reads > 2 && away > 0:
				away--
				return nil, &dialError{e, syscall.ECONNREFUSED}
			case away == 0:
				state = "succeeded"
			}
			text, err := json.Marshal(apiOperation("op-1", state))
			return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(text)), Header: http.Header{}}, err
		}))
		a.progress = newProgress(io.Discard, true)
		if op, err := a.follow(t.Context(), "x", "op-1"); err != nil || op.State != client.OperationStateSucceeded {
			t.Errorf("operation %v, %v", op.State, err)
		}
		reads, away = 0, 1000
		_, err := a.follow(t.Context(), "x", "op-1")
		if f := new(failure); !errors.As(err, &f) || f.status != exitNoDaemon || !strings.Contains(f.more[1], "vman op wait op-1") {
			t.Errorf("without a daemon: %v", err)
		}
	})
}

func TestConsoleOverTCPSendsTheToken(t *testing.T) {
	f := newFakeDaemon(t)
	t.Setenv("VMAN_TOKEN", "secret")
	f.mux.HandleFunc("GET /vms/web/console", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			writeJSON(w, 401, apiProblem(401, "unauthorized", "no token"))
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: vman-console\r\n\r\nlogin: ")
	})
	f.answer("GET /vms/busy/console", 409, apiProblem(409, "busy", "another client writes"))
	if r := vman(t, "console", "web", "--read-only").want(t, 0); r.out != "login: " {
		t.Errorf("the console shows %q", r.out)
	}
	vman(t, "console", "busy").want(t, exitConflict, "another client writes", "--take-over")
}

func TestAPIRequests(t *testing.T) {
	f := newFakeDaemon(t)
	f.mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Header.Get("X-Mine"))
		fmt.Fprintf(w, "%d ", r.ContentLength)
		_, _ = io.Copy(w, r.Body)
	})
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	vman(t, "api", "post", "/echo", "-d", "text", "-H", "X-Mine: 7", "-i").want(t, 0, "200 OK", "X-Seen: 7", "4 text")
	vman(t, "api", "POST", "echo", "-d", "@"+file).want(t, 0, "11 from a file")
	vmanWith(t.Context(), t, "piped", "api", "POST", "/echo", "-d", "@-").want(t, 0, "5 piped")
	vman(t, "api", "POST", "/echo", "-d", "@"+file+"x").want(t, exitUsage, "no such file")
	vman(t, "api", "POST", "/echo", "-H", "nonsense").want(t, exitUsage, "NAME: VALUE")
	vman(t, "api", "GET", "/none").want(t, exitNotFound)
}

func TestCompletions(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /vms", 200, []any{apiVM("web", "running"), apiVM("db", "stopped")})
	f.answer("GET /images", 200, []any{map[string]any{"name": "mine", "state": "available"}})
	f.answer("GET /disks", 200, []any{map[string]any{"id": "data", "state": "available"}})
	f.answer("GET /vms/web/nics", 200, []any{map[string]any{"slot": 3, "state": "attached"}})
	for line, want := range map[string]string{
		"stop ":           "web\trunning\n:4\n",
		"start ":          "db\tstopped\n:4\n",
		"stop web ":       ":4\n",
		"set web ":        "autostart=\n",
		"disk attach ":    "data\tavailable\n:4\n",
		"disk attach d ":  "db\tstopped\n",
		"nic rm web ":     "3\tattached\n",
		"launch ":         "debian-12\tcatalog\n",
		"ls --state ":     "paused\n",
		"--context ":      ":4\n",
		"completion ":     "bash\n",
		"api ":            "PATCH\n",
		"cdrom insert x ": "mine\tavailable\n",
	} {
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		vman(t, args...).want(t, 0, want)
	}
	f.Close()
	if r := vman(t, "__complete", "stop", ""); r.status != 0 || !strings.HasPrefix(r.out, ":5") {
		t.Errorf("without a daemon: %d, %q", r.status, r.out)
	}
}
