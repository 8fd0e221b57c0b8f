package qmptest_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"vmand/qemu/qmp/qmptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a testing.TB that records the errors of a server, and runs the cleanups
// when finish is called.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	errors   []string
	cleanups []func()
}

func (r *recorder) Helper()                      {}
func (r *recorder) Cleanup(f func())             { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Error(args ...any)            { r.record(fmt.Sprint(args...)) }
func (r *recorder) Errorf(f string, args ...any) { r.record(fmt.Sprintf(f, args...)) }

func (r *recorder) record(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errors = append(r.errors, s)
}

// finish runs the cleanups and returns the errors.
func (r *recorder) finish() string {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
	return strings.Join(r.errors, "\n")
}

// client is a client that sends and receives lines.
type client struct {
	t    *testing.T
	sock net.Conn
	in   *bufio.Reader
}

func dial(t *testing.T, s *qmptest.Server) *client {
	t.Helper()
	sock, err := net.Dial("unix", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	return &client{t, sock, bufio.NewReader(sock)}
}

// send sends lines.
func (c *client) send(lines ...string) {
	c.t.Helper()
	for _, line := range lines {
		if _, err := fmt.Fprintln(c.sock, line); err != nil {
			c.t.Error(err)
		}
	}
}

// receive returns the next line, or "" at the end of the stream.
func (c *client) receive() string {
	line, _ := c.in.ReadString('\n')
	return strings.TrimSpace(line)
}

// answer is a handler with every kind of reply.
func answer(command string, args qmptest.Args) (any, error) {
	switch command {
	case "echo":
		var all map[string]string
		if err := args.Decode(&all); err != nil {
			return nil, err
		}
		return args.String("say") + all["say"] + args.String("none"), nil
	case "wrong":
		return nil, fmt.Errorf("oops %q", args.String("say"))
	case "missing":
		return nil, qmptest.Refuse("DeviceNotFound", "no such device")
	case "mute":
		return nil, qmptest.ErrSilent
	case "end":
		return nil, qmptest.ErrHangUp
	}
	return nil, nil
}

func TestHandlerAnswersEveryCommand(t *testing.T) {
	t.Parallel()
	s := qmptest.NewServer(t)
	s.Handle(answer)
	if s.Event("EARLY", nil) {
		t.Error("Event returns true without a client")
	}
	c := dial(t, s)
	if got := c.receive(); got != qmptest.Greeting {
		t.Errorf("greeting %s", got)
	}
	for _, step := range []struct{ send, want string }{
		{`{"execute": "qmp_capabilities", "id": 1}`, `{"id":1,"return":{}}`},
		{`{"execute": "echo", "arguments": {"say": "x"}, "id": "a"}`, `{"id":"a","return":"xx"}`},
		{`{"execute": "wrong", "id": 2}`, `{"error":{"class":"GenericError","desc":"oops \"\""},"id":2}`},
		{`{"exec-oob": "missing"}`, `{"error":{"class":"DeviceNotFound","desc":"no such device"}}`},
		{"{\"execute\": \"mute\"}\n{\"execute\": \"other\"}", `{"return":{}}`},
	} {
		c.send(step.send)
		if got := c.receive(); got != step.want {
			t.Errorf("%s: got %s, want %s", step.send, got, step.want)
		}
	}
	if !s.Event("STOP", map[string]int{"n": 1}) {
		t.Error("the event was not sent")
	}
	if got := c.receive(); !strings.Contains(got, `"data":{"n":1},"event":"STOP"`) {
		t.Errorf("event %s", got)
	}
	c.send(`{"execute": "end"}`)
	if got := c.receive(); got != "" {
		t.Errorf("got %s after the end", got)
	}
	want := []string{"echo", "wrong", "missing", "mute", "other", "end"}
	if got := s.Commands(); !slices.Equal(got, want) {
		t.Errorf("commands %q, want %q", got, want)
	}
}

func TestHangUpClosesTheConnectionAndTheNextIsServed(t *testing.T) {
	t.Parallel()
	s := qmptest.NewServer(t)
	s.HangUp() // a no-op without a client
	s.Script(func(p *qmptest.Peer) {})
	s.Script(func(p *qmptest.Peer) { p.Raw("second\n") })
	s.Handle(func(string, qmptest.Args) (any, error) { return nil, nil })
	first, second, third := dial(t, s), dial(t, s), dial(t, s)
	first.sock.Close()
	if got := second.receive(); got != "second" {
		t.Errorf("got %q from the second script", got)
	}
	s.HangUp()
	if got := second.receive(); got != "" {
		t.Errorf("got %q after HangUp", got)
	}
	if got := third.receive(); got != qmptest.Greeting {
		t.Errorf("got %q without a script", got)
	}
}

func TestAFailedScriptFailsTheTest(t *testing.T) {
	t.Parallel()
	const stop = `{"execute": "stop"}`
	expect := func(name string, args ...any) func(*qmptest.Peer) {
		return func(p *qmptest.Peer) { p.Expect(name, args...) }
	}
	next := func(p *qmptest.Peer) { p.Next() }
	tests := map[string]struct {
		script func(p *qmptest.Peer)
		send   string
		want   string
	}{
		"as written": {
			expect("stop", map[string]int{"n": 1}),
			`{"execute": "stop", "arguments": {"n": 1.0}}`,
			"",
		},
		"other arguments": {
			expect("stop", map[string]int{"n": 2}),
			`{"execute": "stop", "arguments": {"n": 1}}`,
			`stop has arguments {"n": 1}, want {"n":2}`,
		},
		"no arguments": {
			expect("stop", map[string]int{"n": 2}),
			stop,
			`stop has arguments , want {"n":2}`,
		},
		"another command":            {expect("cont"), stop, "got stop , want cont"},
		"arguments without JSON":     {expect("stop", make(chan int)), stop, "unsupported type"},
		"no handshake":               {(*qmptest.Peer).Handshake, stop, "want qmp_capabilities first"},
		"no command":                 {expect("stop"), "", "waiting for stop: read unix"},
		"no next command":            {next, "", "waiting for a command: read unix"},
		"a command that is not JSON": {next, "stop", `the client sent "stop"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := &recorder{TB: t}
			s := qmptest.NewServer(r)
			ran := make(chan struct{})
			s.Script(func(p *qmptest.Peer) {
				defer close(ran)
				tt.script(p)
			})
			c := dial(t, s)
			if tt.send != "" {
				c.send(tt.send)
			} else {
				c.sock.Close()
			}
			<-ran
			if got := r.finish(); !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("errors %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFilesBelongToTheirLine(t *testing.T) {
	t.Parallel()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	counts := make(chan int, 4)
	s := qmptest.NewServer(t)
	s.Script(func(p *qmptest.Peer) {
		for range cap(counts) {
			counts <- len(p.Next().Files)
		}
	})
	c := dial(t, s)
	c.send(`{"execute": "none"}`)
	rights := unix.UnixRights(int(f.Fd()), int(f.Fd()))
	// A complete line and the beginning of the one that the files belong to.
	begin := "{\"execute\": \"none\"}\n{\"execute\": "
	if _, _, err := c.sock.(*net.UnixConn).WriteMsgUnix([]byte(begin), rights, nil); err != nil {
		t.Fatal(err)
	}
	c.send(`"two"}`, `{"execute": "none"}`)
	for i, want := range []int{0, 0, 2, 0} {
		if got := <-counts; got != want {
			t.Errorf("command %d came with %d files, want %d", i, got, want)
		}
	}
}

func TestUnusedScriptsAndUnexpectedClientsFailTheTest(t *testing.T) {
	t.Parallel()
	r := &recorder{TB: t}
	qmptest.NewServer(r).Script(func(*qmptest.Peer) {})
	if got := r.finish(); !strings.Contains(got, "1 scripts were not used") {
		t.Errorf("errors %q for an unused script", got)
	}
	r = &recorder{TB: t}
	c := dial(t, qmptest.NewServer(r))
	if got := c.receive(); got != "" {
		t.Errorf("got %q without a script", got)
	}
	if got := r.finish(); !strings.Contains(got, "has no script or handler") {
		t.Errorf("errors %q for an unexpected client", got)
	}
}
