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

// judge is a testing.TB that notes what a server holds against its test, and
// runs the cleanups when told.
type judge struct {
	testing.TB
	mu       sync.Mutex
	errors   []string
	cleanups []func()
}

func (j *judge) Helper()                      {}
func (j *judge) Cleanup(f func())             { j.cleanups = append(j.cleanups, f) }
func (j *judge) Error(args ...any)            { j.note(fmt.Sprint(args...)) }
func (j *judge) Errorf(f string, args ...any) { j.note(fmt.Sprintf(f, args...)) }

func (j *judge) note(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.errors = append(j.errors, s)
}

// verdict ends the test that is judged and returns what it did wrong.
func (j *judge) verdict() string {
	for _, f := range slices.Backward(j.cleanups) {
		f()
	}
	return strings.Join(j.errors, "\n")
}

// client speaks to a server line by line.
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

// say sends lines.
func (c *client) say(lines ...string) {
	c.t.Helper()
	for _, line := range lines {
		if _, err := fmt.Fprintln(c.sock, line); err != nil {
			c.t.Error(err)
		}
	}
}

// hear returns the next line, or "" at the end.
func (c *client) hear() string {
	line, _ := c.in.ReadString('\n')
	return strings.TrimSpace(line)
}

// answer is a handler that does everything a handler can.
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
	s := qmptest.NewServer(t)
	s.Handle(answer)
	if s.Event("EARLY", nil) {
		t.Error("an event was sent to nobody")
	}
	c := dial(t, s)
	if got := c.hear(); got != qmptest.Greeting {
		t.Errorf("greeting %s", got)
	}
	for _, step := range []struct{ say, want string }{
		{`{"execute": "qmp_capabilities", "id": 1}`, `{"id":1,"return":{}}`},
		{`{"execute": "echo", "arguments": {"say": "x"}, "id": "a"}`, `{"id":"a","return":"xx"}`},
		{`{"execute": "wrong", "id": 2}`, `{"error":{"class":"GenericError","desc":"oops \"\""},"id":2}`},
		{`{"exec-oob": "missing"}`, `{"error":{"class":"DeviceNotFound","desc":"no such device"}}`},
		{"{\"execute\": \"mute\"}\n{\"execute\": \"other\"}", `{"return":{}}`},
	} {
		c.say(step.say)
		if got := c.hear(); got != step.want {
			t.Errorf("to %s it said %s, want %s", step.say, got, step.want)
		}
	}
	if !s.Event("STOP", map[string]int{"n": 1}) {
		t.Error("the event was not sent")
	}
	if got := c.hear(); !strings.Contains(got, `"data":{"n":1},"event":"STOP"`) {
		t.Errorf("event %s", got)
	}
	c.say(`{"execute": "end"}`)
	if got := c.hear(); got != "" {
		t.Errorf("after the end it said %s", got)
	}
	want := []string{"echo", "wrong", "missing", "mute", "other", "end"}
	if got := s.Commands(); !slices.Equal(got, want) {
		t.Errorf("commands %q, want %q", got, want)
	}
}

func TestServerHangsUpWhenToldAndServesTheNext(t *testing.T) {
	s := qmptest.NewServer(t)
	s.HangUp() // on nobody
	s.Script(func(p *qmptest.Peer) {})
	s.Script(func(p *qmptest.Peer) { p.Raw("second\n") })
	s.Handle(func(string, qmptest.Args) (any, error) { return nil, nil })
	first, second, third := dial(t, s), dial(t, s), dial(t, s)
	first.sock.Close()
	if got := second.hear(); got != "second" {
		t.Errorf("the second script said %q", got)
	}
	s.HangUp()
	if got := second.hear(); got != "" {
		t.Errorf("after it hung up it said %q", got)
	}
	if got := third.hear(); got != qmptest.Greeting {
		t.Errorf("without a script it said %q", got)
	}
}

func TestScriptsThatDoNotRunAsWrittenFailTheTest(t *testing.T) {
	tests := map[string]struct {
		script func(p *qmptest.Peer)
		say    string
		want   string
	}{
		"as written": {
			func(p *qmptest.Peer) { p.Expect("stop", map[string]int{"n": 1}) }, `{"execute": "stop", "arguments": {"n": 1.0}}`, "",
		},
		"another command": {
			func(p *qmptest.Peer) { p.Expect("cont") }, `{"execute": "stop"}`, "got stop , want cont",
		},
		"other arguments": {
			func(p *qmptest.Peer) { p.Expect("stop", map[string]int{"n": 2}) }, `{"execute": "stop", "arguments": {"n": 1}}`, `stop has arguments {"n": 1}, want {"n":2}`,
		},
		"no arguments": {
			func(p *qmptest.Peer) { p.Expect("stop", map[string]int{"n": 2}) }, `{"execute": "stop"}`, `stop has arguments , want {"n":2}`,
		},
		"arguments no JSON can hold": {
			func(p *qmptest.Peer) { p.Expect("stop", make(chan int)) }, `{"execute": "stop"}`, "unsupported type",
		},
		"no handshake": {
			func(p *qmptest.Peer) { p.Handshake() }, `{"execute": "stop"}`, "want qmp_capabilities first",
		},
		"no command": {
			func(p *qmptest.Peer) { p.Expect("stop") }, "", "waiting for stop: read unix",
		},
		"no command at all": {
			func(p *qmptest.Peer) { p.Next() }, "", "waiting for a command: read unix",
		},
		"a command that is not JSON": {
			func(p *qmptest.Peer) { p.Next() }, "stop", `the client said "stop"`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			j := &judge{TB: t}
			s := qmptest.NewServer(j)
			ran := make(chan struct{})
			s.Script(func(p *qmptest.Peer) {
				defer close(ran)
				tt.script(p)
			})
			c := dial(t, s)
			if tt.say != "" {
				c.say(tt.say)
			} else {
				c.sock.Close()
			}
			<-ran
			if got := j.verdict(); !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("verdict %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFilesBelongToTheLineTheyCameWith(t *testing.T) {
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
	c.say(`{"execute": "none"}`)
	rights := unix.UnixRights(int(f.Fd()), int(f.Fd()))
	// A whole line and the beginning of the one that the files belong to.
	if _, _, err := c.sock.(*net.UnixConn).WriteMsgUnix([]byte("{\"execute\": \"none\"}\n{\"execute\": "), rights, nil); err != nil {
		t.Fatal(err)
	}
	c.say(`"two"}`, `{"execute": "none"}`)
	for i, want := range []int{0, 0, 2, 0} {
		if got := <-counts; got != want {
			t.Errorf("command %d came with %d files, want %d", i, got, want)
		}
	}
}

func TestUnusedScriptsAndUnexpectedClientsFailTheTest(t *testing.T) {
	j := &judge{TB: t}
	qmptest.NewServer(j).Script(func(*qmptest.Peer) {})
	if got := j.verdict(); !strings.Contains(got, "1 scripts were never used") {
		t.Errorf("verdict %q on an unused script", got)
	}
	j = &judge{TB: t}
	c := dial(t, qmptest.NewServer(j))
	if got := c.hear(); got != "" {
		t.Errorf("without a script it said %q", got)
	}
	if got := j.verdict(); !strings.Contains(got, "not told what to do") {
		t.Errorf("verdict %q on an unexpected client", got)
	}
}
