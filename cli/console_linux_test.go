package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeConsole answers like a vmand with one VM, web, whose console echoes.
type fakeConsole struct {
	t      *testing.T
	socket string

	mu    sync.Mutex
	query string
	conns []net.Conn
}

func newFakeConsole(t *testing.T) *fakeConsole {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm") // a short path, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fakeConsole{t: t, socket: filepath.Join(dir, "sock")}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-served
		f.end()
	})
	return f
}

func (f *fakeConsole) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	upgrades := r.Header.Get("Upgrade") == "vman-console" && r.Header.Get("Connection") == "Upgrade"
	if r.URL.Path != "/vms/web/console" || !upgrades {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"title": "Not found", "detail": "there is no %s", "hint": "look again"}`, r.URL.EscapedPath())
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		f.t.Error(err)
		return
	}
	f.mu.Lock()
	f.query = r.URL.RawQuery
	f.conns = append(f.conns, conn)
	f.mu.Unlock()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n"+
		"Connection: Upgrade\r\nUpgrade: vman-console\r\n\r\nlogin: ")
	io.Copy(conn, rw.Reader)
}

// end closes all consoles, as the end of the VM does.
func (f *fakeConsole) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
}

// A session is a running console command.
type session struct {
	t       *testing.T
	in, out *os.File // the test's ends of its standard streams
	stderr  bytes.Buffer
	cancel  context.CancelFunc
	ended   chan error
}

// start runs the command on terminal, the other end of ours, or on pipes if terminal
// is nil.
func (f *fakeConsole) start(flags ConsoleFlags, terminal, ours *os.File) *session {
	f.t.Helper()
	std := Streams{In: terminal, Out: terminal}
	c := &session{t: f.t, in: ours, out: ours, ended: make(chan error, 1)}
	if terminal == nil {
		var err1, err2 error
		std.In, c.in, err1 = os.Pipe()
		var out *os.File
		c.out, out, err2 = os.Pipe()
		std.Out = out
		if err1 != nil || err2 != nil {
			f.t.Fatal(err1, err2)
		}
		f.t.Cleanup(func() {
			for _, file := range []*os.File{c.in, std.In, c.out, out} {
				file.Close()
			}
		})
	}
	std.Err = &c.stderr
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(f.t.Context())
	go func() { c.ended <- console(ctx, consoleOfSocket(f.socket), "web", flags, std) }()
	return c
}

// shows waits until the output of the command ends with want.
func (c *session) shows(want string) {
	c.t.Helper()
	var got []byte
	buf := make([]byte, 256)
	c.out.SetReadDeadline(time.Now().Add(20 * time.Second))
	for !strings.HasSuffix(string(got), want) {
		n, err := c.out.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			c.t.Fatalf("output %q, %v; want %q", got, err, want)
		}
	}
}

func (c *session) types(keys string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, keys); err != nil {
		c.t.Fatal(err)
	}
}

func (c *session) ends() {
	c.t.Helper()
	select {
	case err := <-c.ended:
		if err != nil {
			c.t.Errorf("console: %v", err)
		}
	case <-time.After(20 * time.Second):
		c.t.Fatal("the console does not end")
	}
}

func TestInputThatIsNotATerminalIsPassedOnUnchanged(t *testing.T) {
	f := newFakeConsole(t)
	c := f.start(ConsoleFlags{TakeOver: true}, nil, nil)
	c.shows("login: ")
	c.types("root\n~.~~\x00\xff\n")
	c.shows("root\n~.~~\x00\xff\n")
	c.in.Close() // the console stays open for answers
	f.end()
	c.ends()
	if f.query != "take_over=true&write=true" || c.stderr.Len() != 0 {
		t.Errorf("query %s, messages %q", f.query, c.stderr.String())
	}
}

func TestAReadOnlyConsoleSendsNothing(t *testing.T) {
	f := newFakeConsole(t)
	c := f.start(ConsoleFlags{ReadOnly: true}, nil, nil)
	c.types("no\n")
	c.shows("login: ")
	c.cancel()
	c.ends()
	if f.query != "" {
		t.Errorf("query %q, want none", f.query)
	}
}

// openPTY returns both ends of a pseudo-terminal (pty(7)).
func openPTY(t *testing.T) (ours, terminal *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { ours.Close() })
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return ours, terminal
}

func TestATerminalIsRawDuringTheConsoleAndRestoredAfterwards(t *testing.T) {
	for name, end := range map[string]func(f *fakeConsole, c *session){
		"the user closes it":     func(_ *fakeConsole, c *session) { c.types("\r~.") },
		"the VM ends":            func(f *fakeConsole, _ *session) { f.end() },
		"its context ends":       func(_ *fakeConsole, c *session) { c.cancel() },
		"the terminal is closed": func(_ *fakeConsole, c *session) { c.in.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeConsole(t)
			ours, terminal := openPTY(t)
			mode := func() unix.Termios {
				t.Helper()
				m, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
				if err != nil && name != "the terminal is closed" {
					t.Fatal(err)
				}
				if m == nil {
					return unix.Termios{}
				}
				return *m
			}
			was := mode()
			c := f.start(ConsoleFlags{}, terminal, ours)
			c.shows("login: ")
			if now := mode(); now.Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) != 0 || now.Oflag&unix.OPOST != 0 {
				t.Errorf("the terminal is not raw: %+v", now)
			}
			c.types("\x03\r~~x\r~?y")
			c.shows("\x03\r~x\ry")
			end(f, c)
			c.ends()
			if now := mode(); name != "the terminal is closed" && now != was {
				t.Errorf("the terminal is %+v, want %+v", now, was)
			}
			for _, want := range []string{"connected", "~~  types ~\r\n", "console closed"} {
				if s := c.stderr.String(); !strings.Contains(s, want) {
					t.Errorf("messages %q, want %q in them", s, want)
				}
			}
		})
	}
}

func TestErrorsOfAConsoleHaveAHint(t *testing.T) {
	f := newFakeConsole(t)
	for _, c := range []struct{ socket, id, want string }{
		{f.socket, "we/b", "there is no /vms/we%2Fb/console; look again"},
		{f.socket + "x", "web", "is vmand running"},
		{"", "web", "--socket"},
	} {
		err := console(t.Context(), consoleOfSocket(c.socket), c.id, ConsoleFlags{}, Streams{})
		if err == nil || !strings.Contains(withHint(err).Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

// escape returns the keys to type so that exactly data is sent.
func escape(data []byte) (keys []byte) {
	start := true
	for _, b := range data {
		if start && b == '~' {
			keys = append(keys, '~')
		}
		keys = append(keys, b)
		start = b == '\r' || b == '\n'
	}
	return keys
}

func FuzzEscapes(f *testing.F) {
	for _, seed := range []string{"", "~", "~.", "~~.", "\r~?~.x", "a~.\n~a\r\n~~~~.", "\n~\n~."} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got []byte
		e := escapes{lineStart: true}
		for _, key := range escape(data) {
			send, act := e.next(key)
			got = append(got, send...)
			if act != escapeNothing {
				t.Fatalf("found an escape in %q", data)
			}
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%q is sent as %q", data, got)
		}

		e, sent := escapes{lineStart: true}, 0
		for i, key := range data { // data as keys
			send, act := e.next(key)
			sent += len(send)
			held := 0
			if e.tilde {
				held = 1
			}
			if act == escapeNothing && sent+held > i+1 {
				t.Fatalf("%q: sent more than was typed", data[:i+1])
			}
			if act != escapeNothing && !strings.ContainsRune(".?", rune(key)) {
				t.Fatalf("%q is an escape", key)
			}
		}
	})
}
