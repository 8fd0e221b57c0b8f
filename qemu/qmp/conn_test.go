package qmp_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
)

// plainGreeting is a greeting without capabilities.
const plainGreeting = `{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 9}, "package": ""},` +
	` "capabilities": []}}` + "\r\n"

func TestHandshakeEnablesOutOfBandExecutionIfOffered(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		greeting string
		want     any
	}{
		"offered":     {qmptest.Greeting, map[string]any{"enable": []string{"oob"}}},
		"not offered": {plainGreeting, map[string]any{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := qmptest.NewServer(t)
			s.Script(func(p *qmptest.Peer) {
				p.Raw(tt.greeting + "\n")
				p.Reply(p.Expect("qmp_capabilities", tt.want), nil)
			})
			dial(t, s)
		})
	}
}

func TestVersionAndCapabilitiesAreThoseOfTheGreeting(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(*qmptest.Peer) {})
	if got := c.Version().String(); got != "7.2.22" {
		t.Errorf("version %s, want 7.2.22", got)
	}
	if got := c.Capabilities(); !slices.Equal(got, []string{"oob"}) {
		t.Errorf("capabilities %q, want oob", got)
	}
}

func TestHandshakeFails(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		script func(p *qmptest.Peer)
		want   string
	}{
		"with a server that sends other JSON": {
			func(p *qmptest.Peer) { p.Raw(`{"event": "STOP"}` + "\n") }, "not a QMP server",
		},
		"with a server that does not speak JSON": {
			func(p *qmptest.Peer) { p.Raw("SSH-2.0-OpenSSH_9.2\r\n") }, "SSH-2.0",
		},
		"with a server that hangs up": {
			func(p *qmptest.Peer) { p.Close() }, "EOF",
		},
		"with a server that hangs up in its greeting": {
			func(p *qmptest.Peer) {
				p.Raw(`{"QMP": {`)
				p.Close()
			}, "unexpected EOF",
		},
		"with a server that refuses to negotiate": {
			func(p *qmptest.Peer) {
				p.Raw(plainGreeting)
				p.Refuse(p.Next(), qmp.CommandNotFound, "capabilities negotiation is already complete")
			}, "CommandNotFound",
		},
		"with a server that hangs up while negotiating": {
			func(p *qmptest.Peer) {
				p.Raw(plainGreeting)
				p.Next()
				p.Close()
			}, "qmp_capabilities",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := qmptest.NewServer(t)
			s.Script(tt.script)
			c, err := qmp.Dial(patient(t), s.Path())
			if err == nil {
				c.Close()
				t.Fatal("Dial succeeded")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want one with %q", err, tt.want)
			}
		})
	}
}

func TestAHandshakeWithASilentServerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	tests := map[string]func(p *qmptest.Peer){
		"silent from the start":   func(*qmptest.Peer) {},
		"silent in its greeting":  func(p *qmptest.Peer) { p.Raw(`{"QMP": `) },
		"silent when negotiating": func(p *qmptest.Peer) { p.Raw(plainGreeting) },
	}
	for name, script := range tests {
		t.Run(name, func(t *testing.T) {
			s := qmptest.NewServer(t)
			s.Script(script)
			if _, err := qmp.Dial(soon(t), s.Path()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v, want that of the deadline", err)
			}
		})
	}
	t.Run("until the context is cancelled", func(t *testing.T) {
		s := qmptest.NewServer(t)
		accepted := make(chan struct{})
		s.Script(func(*qmptest.Peer) { close(accepted) })
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-accepted
			cancel()
		}()
		if _, err := qmp.Dial(ctx, s.Path()); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
}

func TestDialWithABadPathFails(t *testing.T) {
	t.Parallel()
	long := "/" + strings.Repeat("x", 107)
	_, err := qmp.Dial(patient(t), long)
	if err == nil || !strings.Contains(err.Error(), "108 bytes, at most 107") {
		t.Errorf("path of 108 bytes: error %v, want one with its length", err)
	}
	for _, path := range []string{t.TempDir() + "/none", long[:107]} {
		if _, err := qmp.Dial(patient(t), path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d bytes: error %v, want fs.ErrNotExist", len(path), err)
		}
	}
}

func TestSecondClientWaitsForTheFirst(t *testing.T) {
	t.Parallel()
	s := qmptest.NewServer(t)
	s.Handle(func(string, qmptest.Args) (any, error) { return nil, nil })
	first := dial(t, s)
	if _, err := qmp.Dial(soon(t), s.Path()); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second client: error %v, want that of the deadline", err)
	}
	first.Close()
	second := dial(t, s)
	if err := second.Execute(patient(t), "query-status", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestConnectionEndsOnceAndKeepsTheCause(t *testing.T) {
	t.Parallel()
	raw := func(text string) func(*qmptest.Peer) {
		return func(p *qmptest.Peer) { p.Raw(text) }
	}
	endless := strings.Repeat("x", 11<<20)
	halfLine := func(p *qmptest.Peer) {
		p.Raw(`{"ret`)
		p.Close()
	}
	tests := map[string]struct {
		end  func(p *qmptest.Peer)
		want string
		is   error
	}{
		"by the end of the stream":      {(*qmptest.Peer).Close, "EOF", io.EOF},
		"by the end within a line":      {halfLine, "unexpected EOF", io.ErrUnexpectedEOF},
		"by garbage":                    {raw("qemu: oops\n"), `not a QMP message: "qemu: oops"`, qmp.ErrClosed},
		"by JSON that is not a message": {raw("[1]\n"), "not a QMP message", qmp.ErrClosed},
		"by an endless message":         {raw(endless), "longer than 10485760 bytes", qmp.ErrClosed},
		"by long garbage":               {raw(strings.Repeat("x", 5000) + "\n"), "(5000 bytes)", qmp.ErrClosed},
		"by an invalid event":           {raw(`{"event": 5}` + "\n"), "not a QMP message", qmp.ErrClosed},
		"by an invalid reply":           {raw(`{"error": 5}` + "\n"), "not a QMP message", qmp.ErrClosed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			begin := make(chan struct{})
			c := scripted(t, func(p *qmptest.Peer) {
				<-begin
				tt.end(p)
			})
			if err := c.Err(); err != nil {
				t.Fatalf("error %v while the connection is open", err)
			}
			close(begin)
			wait(t, c.Done(), "the end of the connection")
			err := c.Err()
			if !errors.Is(err, qmp.ErrClosed) || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want ErrClosed that wraps %v and has %q", err, tt.is, tt.want)
			}
			c.Close()
			if again := c.Err(); again != err {
				t.Errorf("error %v after Close, want still %v", again, err)
			}
		})
	}
}

func TestCloseIsIdempotent(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(*qmptest.Peer) {})
	for range 3 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	wait(t, c.Done(), "the end of the connection")
	if err := c.Err(); err != qmp.ErrClosed {
		t.Errorf("error %v, want ErrClosed", err)
	}
}
