package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/term"
)

// A terminalRun is a run of the client on a terminal.
type terminalRun struct {
	t      *testing.T
	ours   *os.File
	output strings.Builder
	cancel context.CancelCauseFunc
	status chan int
}

func onTerminal(t *testing.T, args ...string) *terminalRun {
	t.Helper()
	ours, terminal := openPTY(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	r := &terminalRun{t: t, ours: ours, cancel: cancel, status: make(chan int, 1)}
	go func() { r.status <- Run(ctx, args, Streams{In: terminal, Out: terminal, Err: terminal}, "1.2.3") }()
	return r
}

// shows reads the terminal until it has shown text.
func (r *terminalRun) shows(text string) {
	r.t.Helper()
	buf := make([]byte, 1024)
	r.ours.SetReadDeadline(time.Now().Add(20 * time.Second))
	for !strings.Contains(r.output.String(), text) {
		n, err := r.ours.Read(buf)
		r.output.Write(buf[:n])
		if err != nil {
			r.t.Fatalf("the terminal shows %q, %v; want %q", r.output.String(), err, text)
		}
	}
}

func (r *terminalRun) types(keys string) {
	r.t.Helper()
	if _, err := io.WriteString(r.ours, keys); err != nil {
		r.t.Fatal(err)
	}
}

func (r *terminalRun) ends(status int) {
	r.t.Helper()
	select {
	case got := <-r.status:
		if got != status {
			r.t.Errorf("status %d, want %d\n%s", got, status, r.output.String())
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("the client does not end")
	}
}

func TestDeletionIsConfirmedOnATerminal(t *testing.T) {
	f := newFakeDaemon(t)
	var deleted atomic.Int32
	f.mux.HandleFunc("DELETE /vms/{id}", func(w http.ResponseWriter, _ *http.Request) { deleted.Add(1); w.WriteHeader(204) })
	for _, answer := range []string{"n", "", "nonsense"} {
		r := onTerminal(t, "rm", "web", "db")
		r.shows("Delete VM db, web? [y/N] ")
		r.types(answer + "\n")
		r.ends(exitFailed)
		r.shows("nothing was changed")
	}
	if deleted.Load() != 0 {
		t.Fatalf("%d VMs were deleted", deleted.Load())
	}
	r := onTerminal(t, "rm", "web", "db")
	r.shows("[y/N] ")
	r.types("y\n")
	r.ends(0)
	r.shows("VM web deleted")
	if deleted.Load() != 2 {
		t.Errorf("%d VMs were deleted, want 2", deleted.Load())
	}
}

// startedVM makes the daemon start VM web with an operation that ends when end is closed.
func startedVM(f *fakeDaemon, end chan struct{}) {
	f.mux.HandleFunc("POST /vms/web/actions/start", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/operations/op-1")
		writeJSON(w, 202, apiVM("web", "starting"))
	})
	f.mux.HandleFunc("GET /operations/op-1", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-end:
			writeJSON(w, 200, apiOperation("op-1", "succeeded", "made the files", strings.Repeat("a long step ", 20)))
		default:
			writeJSON(w, 200, apiOperation("op-1", "running", "made the files"))
		}
	})
	f.mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		select {
		case <-end:
			fmt.Fprint(w, "data: {\"seq\":1,\"at\":\"2026-01-02T03:04:05Z\",\"type\":\"operation.ended\",\"resource\":\"operations/op-1\",\"data\":{}}\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case <-r.Context().Done():
		}
	})
	f.answer("GET /vms/web", 200, apiVM("web", "running"))
}

func TestProgressChangesInPlaceOnATerminal(t *testing.T) {
	f := newFakeDaemon(t)
	end := make(chan struct{})
	startedVM(f, end)
	r := onTerminal(t, "start", "web")
	r.shows("\r\x1b[KVM web: made the files")
	close(end)
	r.ends(0)
	r.shows("\r\x1b[KVM web is running\r\n")
	for line := range strings.SplitSeq(r.output.String(), "\r\x1b[K") {
		if len(strings.TrimSpace(line)) > 79 {
			t.Errorf("the line %q is longer than the terminal is wide", line)
		}
	}
}

func TestInterruptLeavesTheOperationRunning(t *testing.T) {
	f := newFakeDaemon(t)
	startedVM(f, make(chan struct{}))
	r := onTerminal(t, "start", "web")
	r.shows("made the files")
	r.cancel(errInterrupted) // as Main does after Ctrl-C
	r.ends(exitInterrupted)
	r.shows("interrupted; operation op-1 continues\r\n  hint: vman op wait op-1 follows it")
}

func TestStatesAreColouredOnATerminalOnly(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /vms", 200, []any{apiVM("web", "running"), apiVM("database", "error")})
	r := onTerminal(t, "ls")
	r.ends(0)
	r.shows("-      ")
	r.shows("\x1b[31merror\x1b[00m    2 ")
	if !strings.Contains(r.output.String(), "\x1b[32mrunning\x1b[00m  2 ") {
		t.Errorf("got %q", r.output.String())
	}
	t.Setenv("NO_COLOR", "1")
	r = onTerminal(t, "ls")
	r.ends(0)
	r.shows("database  error    2")
	if got := vman(t, "ls").out + r.output.String(); strings.Contains(got, "\x1b") {
		t.Errorf("got %q", got)
	}
}

func TestPasswordIsNotShown(t *testing.T) {
	f := newFakeDaemon(t)
	received := make(chan string, 1)
	f.mux.HandleFunc("POST /vms/web/actions/set-password", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ User, Password string }
		_ = json.NewDecoder(r.Body).Decode(&body)
		received <- body.User + ":" + body.Password
		w.WriteHeader(204)
	})
	r := onTerminal(t, "password", "web", "root")
	r.shows("New password of user root of VM web: ")
	r.types("s3cret\n")
	r.ends(0)
	r.shows("password of user root set")
	if got := <-received; got != "root:s3cret" || strings.Contains(r.output.String(), "s3cret") {
		t.Errorf("the daemon received %q, the terminal shows %q", got, r.output.String())
	}
}

// An upload continues after the bytes that the daemon has stored when its connection broke.
func TestUploadContinues(t *testing.T) {
	f := newFakeDaemon(t)
	content := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	file := filepath.Join(t.TempDir(), "golden.qcow2.xz")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // of stored and parts
	var stored strings.Builder
	image := func(state string) map[string]any {
		return map[string]any{"name": "golden", "state": state, "uploaded_bytes": stored.Len(), "labels": map[string]string{},
			"created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z", "source": "upload", "description": ""}
	}
	cut := func(r *http.Request, bytes int64) { // stores a part of the body and breaks the connection
		_, _ = io.CopyN(&stored, r.Body, bytes)
		panic(http.ErrAbortHandler)
	}
	f.mux.HandleFunc("POST /images", func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		cut(r, 100_000)
	})
	f.mux.HandleFunc("GET /images/golden", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if stored.Len() == 0 {
			writeJSON(w, 404, apiProblem(404, "not-found", "there is no image golden"))
			return
		}
		writeJSON(w, 200, image("uploading"))
	})
	parts := 0
	f.mux.HandleFunc("PATCH /images/golden/content", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if want := fmt.Sprint(stored.Len()); r.URL.Query().Get("offset") != want {
			t.Errorf("offset %s, want %s", r.URL.Query().Get("offset"), want)
		}
		switch parts++; parts {
		case 1:
			cut(r, 200_000)
		case 2:
			writeJSON(w, 409, apiProblem(409, "busy", "another request uploads the image"))
			return
		case 3:
			writeJSON(w, 503, apiProblem(503, "unavailable", "vmand is ending"))
			return
		}
		_, _ = io.Copy(&stored, r.Body)
		writeJSON(w, 200, image("available"))
	})
	r := onTerminal(t, "image", "upload", file)
	r.ends(0)
	r.shows("100 %, 1M of 1M")
	r.shows("image golden is available")
	if stored.String() != content {
		t.Errorf("the daemon has stored %d bytes, not the %d of the file", stored.Len(), len(content))
	}
}

// A new upload does not continue the interrupted one of another file.
func TestNewUploadLeavesAnInterruptedOne(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /images/golden", 200, map[string]any{"name": "golden", "state": "uploading", "uploaded_bytes": 3})
	file := filepath.Join(t.TempDir(), "golden.qcow2")
	if err := os.WriteFile(file, []byte("12"), 0o600); err != nil {
		t.Fatal(err)
	}
	vman(t, "image", "upload", file).want(t, exitConflict, "more than the file has", "vman image rm golden")
	if err := os.WriteFile(file, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	vman(t, "image", "upload", file).want(t, exitConflict, "interrupted after 3B", "--continue", "vman image rm golden")
	f.mux.HandleFunc("PATCH /images/golden/content", func(w http.ResponseWriter, r *http.Request) {
		if text, _ := io.ReadAll(r.Body); string(text) != "45" {
			t.Errorf("the daemon received %q", text)
		}
		writeJSON(w, 200, map[string]any{"name": "golden", "state": "available"})
	})
	vman(t, "image", "upload", file, "--continue").want(t, 0, "image golden is available")
	if strings.Contains(f.seen(), "POST") {
		t.Errorf("the daemon received %s", f.seen())
	}
}

// Ctrl-C ends a question, and a read of standard input.
func TestInterruptEndsReadsOfInput(t *testing.T) {
	f := newFakeDaemon(t)
	for _, args := range [][]string{
		{"rm", "web"},
		{"password", "web", "root"},
	} {
		r := onTerminal(t, args...)
		r.shows("web")
		r.cancel(errInterrupted)
		r.ends(exitInterrupted)
	}
	_, terminal := openPTY(t)
	for _, args := range [][]string{
		{"exec", "web", "-i", "--", "cat"},
		{"cp", "-", "web:/x"},
		{"api", "POST", "/x", "-d", "@-"},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		status := make(chan int, 1)
		go func() { status <- Run(ctx, args, Streams{In: terminal, Out: io.Discard, Err: io.Discard}, "1.2.3") }()
		cancel(errInterrupted)
		select {
		case got := <-status:
			if got != exitInterrupted {
				t.Errorf("%q: status %d", args, got)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%q does not end", args)
		}
	}
	if got := f.seen(); got != "" {
		t.Errorf("the daemon received %s", got)
	}
}

// A meter does not mix with content on the same terminal.
func TestContentOnATerminalHasNoMeter(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /vms/web/files", 200, "text")
	r := onTerminal(t, "cp", "web:/x", "-")
	r.ends(0)
	r.shows("text")
	if strings.Contains(r.output.String(), "web:/x") {
		t.Errorf("the terminal shows %q", r.output.String())
	}
}

// SIGTERM restores the terminal, which a question for a password has changed.
func TestTerminationRestoresTheTerminal(t *testing.T) {
	newFakeDaemon(t)
	ours, terminal := openPTY(t)
	before, err := term.GetState(int(terminal.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	r := &terminalRun{t: t, ours: ours, status: make(chan int, 1)}
	go func() {
		r.status <- Main([]string{"password", "web", "root"}, Streams{In: terminal, Out: terminal, Err: terminal}, "1.2.3")
	}()
	r.shows("New password")
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.ends(exitInterrupted)
	if after, err := term.GetState(int(terminal.Fd())); err != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("the terminal is %+v, %v; want %+v", after, err, before)
	}
}
