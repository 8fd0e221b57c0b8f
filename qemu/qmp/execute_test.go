package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
)

type status struct {
	Status  string
	Running bool
}

func TestExecuteSendsArgumentsAndDecodesTheReply(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		p.Reply(p.Expect("query-status"), map[string]any{"status": "running", "running": true})
		p.Reply(p.Expect("block_resize", json.RawMessage(`{"node-name": "root", "size": 9007199254740993}`)), nil)
	})
	var got status
	if err := c.Execute(patient(t), "query-status", nil, &got); err != nil || got != (status{"running", true}) {
		t.Errorf("query-status = %+v, %v", got, err)
	}
	args := map[string]any{"node-name": "root", "size": int64(1<<53 + 1)}
	if err := c.Execute(patient(t), "block_resize", args, nil); err != nil {
		t.Error(err)
	}
}

func TestARefusedCommandReturnsAnError(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		cmd := p.Expect("device_del", map[string]string{"id": "nic0"})
		p.Refuse(cmd, qmp.DeviceNotFound, "Device 'nic0' not found")
	})
	err := c.Execute(patient(t), "device_del", map[string]string{"id": "nic0"}, nil)
	var refused *qmp.Error
	if !errors.As(err, &refused) {
		t.Fatalf("error %v, want an *Error", err)
	}
	want := qmp.Error{Command: "device_del", Class: qmp.DeviceNotFound, Desc: "Device 'nic0' not found"}
	if *refused != want {
		t.Errorf("error %+v, want %+v", *refused, want)
	}
	if want := "qmp device_del: Device 'nic0' not found (DeviceNotFound)"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

// value returns the return value of a command.
func value(n int) map[string]int { return map[string]int{"n": n} }

// pairs are ways to answer two concurrent commands: a with 1 and b with 2.
var pairs = map[string]struct {
	script func(p *qmptest.Peer, a, b qmptest.Command)
	strays uint64
}{
	"in the order they were sent": {
		script: func(p *qmptest.Peer, a, b qmptest.Command) {
			p.Reply(a, value(1))
			p.Reply(b, value(2))
		},
	},
	"in another order": {
		script: func(p *qmptest.Peer, a, b qmptest.Command) {
			p.Reply(b, value(2))
			p.Reply(a, value(1))
		},
	},
	"with duplicates between": {
		script: func(p *qmptest.Peer, a, b qmptest.Command) {
			p.Reply(a, value(1))
			p.Reply(a, value(3))
			p.Refuse(a, qmp.GenericError, "again")
			p.Reply(b, value(2))
		},
		strays: 2,
	},
	"with unrequested replies between": {
		script: func(p *qmptest.Peer, a, b qmptest.Command) {
			for _, id := range []string{"999", "0", "-1", `"1"`, "1.5", "null", "{}", "18446744073709551616"} {
				p.Raw(`{"return": {"n": 9}, "id": ` + id + "}\n")
			}
			p.Raw(`{"return": {"n": 9}}` + "\n")
			p.Raw(`{"error": {"class": "GenericError", "desc": "Invalid JSON syntax"}}` + "\n")
			p.Raw(`{"id": ` + string(a.ID) + "}\n") // neither a return value nor an error
			p.Raw("{}\n\r\n\n")
			p.Reply(a, value(1))
			p.Reply(b, value(2))
		},
		strays: 12,
	},
	"in halves of a line": {
		script: func(p *qmptest.Peer, a, b qmptest.Command) {
			p.Raw(`{"return": {"n"`)
			p.Raw(`: 1}, "id": ` + string(a.ID))
			p.Raw("}\r")
			p.Raw("\n" + `{"id": ` + string(b.ID) + `, "return": {"n": 2}}` + "\n")
		},
	},
	"with events between": {
		script: func(p *qmptest.Peer, a, b qmptest.Command) {
			p.Event("STOP", nil)
			p.Reply(a, value(1))
			p.Event("BLOCK_JOB_READY", map[string]any{"device": "root", "offset": 1})
			p.Reply(b, value(2))
		},
	},
}

func TestRepliesAreMatchedToCommands(t *testing.T) {
	t.Parallel()
	for name, tt := range pairs {
		t.Run(name, func(t *testing.T) {
			c := scripted(t, func(p *qmptest.Peer) {
				a, b := p.Next(), p.Next()
				if a.Name == "b" {
					a, b = b, a
				}
				tt.script(p, a, b)
				p.Reply(p.Expect("c"), value(3))
			})
			var group sync.WaitGroup
			for name, want := range map[string]int{"a": 1, "b": 2} {
				group.Go(func() {
					var got struct{ N int }
					if err := c.Execute(patient(t), name, nil, &got); err != nil || got.N != want {
						t.Errorf("%s = %d, %v; want %d", name, got.N, err, want)
					}
				})
			}
			group.Wait()
			var got struct{ N int }
			if err := c.Execute(patient(t), "c", nil, &got); err != nil || got.N != 3 {
				t.Errorf("c = %d, %v; want 3", got.N, err)
			}
			if c.Strays() != tt.strays {
				t.Errorf("%d strays, want %d", c.Strays(), tt.strays)
			}
		})
	}
}

func TestALateReplyIsDropped(t *testing.T) {
	t.Parallel()
	late := make(chan struct{})
	c := scripted(t, func(p *qmptest.Peer) {
		first := p.Expect("query-block")
		<-late
		p.Reply(first, []string{"late"})
		p.Reply(p.Expect("query-status"), status{Status: "running"})
	})
	err := c.Execute(soon(t), "query-block", nil, nil)
	unknown := errors.Is(err, qmp.ErrUnknownOutcome) && errors.Is(err, context.DeadlineExceeded)
	if !unknown || errors.Is(err, qmp.ErrNotSent) {
		t.Fatalf("command without a reply: error %v, want ErrUnknownOutcome for the deadline", err)
	}
	close(late)
	var got status
	if err := c.Execute(patient(t), "query-status", nil, &got); err != nil || got.Status != "running" {
		t.Errorf("next command = %+v, %v", got, err)
	}
	if c.Strays() != 1 {
		t.Errorf("%d strays, want 1", c.Strays())
	}
}

func TestLongReplies(t *testing.T) {
	t.Parallel()
	for _, size := range []int{8 << 10, 64 << 10, 1 << 20, 10<<20 - 100} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			long := strings.Repeat("y", size)
			c := scripted(t, func(p *qmptest.Peer) {
				p.Reply(p.Next(), long)
				p.Reply(p.Next(), "short")
			})
			for _, want := range []string{long, "short"} {
				var got string
				if err := c.Execute(patient(t), "query-qmp-schema", nil, &got); err != nil || got != want {
					t.Errorf("got %d bytes, error %v; want %d bytes", len(got), err, len(want))
				}
			}
		})
	}
}

func TestRepliesAreNotSharedBetweenCallers(t *testing.T) {
	t.Parallel()
	s := qmptest.NewServer(t)
	s.Handle(func(name string, _ qmptest.Args) (any, error) {
		s.Event("NOISE", map[string]string{"of": name})
		return strings.Repeat(name, 5), nil
	})
	c := dial(t, s)
	sub := c.Subscribe(1 << 12)
	var group sync.WaitGroup
	for g := range 8 {
		group.Go(func() {
			answers := make(map[string]json.RawMessage)
			for i := range 100 {
				name := fmt.Sprintf("command-%d-%d", g, i)
				var answer json.RawMessage
				if err := c.Execute(patient(t), name, nil, &answer); err != nil {
					t.Error(err)
				}
				answers[name] = answer
			}
			for name, answer := range answers {
				if want := `"` + strings.Repeat(name, 5) + `"`; string(answer) != want {
					t.Errorf("the reply to %s has changed to %s", name, answer)
				}
			}
		})
	}
	group.Wait()
	seen := make(map[any]bool)
	for range 800 {
		e := <-sub.C()
		seen[e.Data["of"]] = true
	}
	if len(seen) != 800 || sub.Lost() != 0 {
		t.Errorf("%d different events, want 800", len(seen))
	}
}

func TestTheEndOfTheConnectionFailsEveryCommand(t *testing.T) {
	t.Parallel()
	const waiters = 8
	c := scripted(t, func(p *qmptest.Peer) {
		for range waiters {
			p.Next()
		}
		p.Close()
	})
	var group sync.WaitGroup
	for range waiters {
		group.Go(func() {
			err := c.Execute(patient(t), "query-block", nil, nil)
			for _, want := range []error{qmp.ErrUnknownOutcome, qmp.ErrClosed, io.EOF} {
				if !errors.Is(err, want) {
					t.Errorf("waiting command: error %v, want %v", err, want)
				}
			}
		})
	}
	group.Wait()
	err := c.Execute(patient(t), "query-status", nil, nil)
	if !errors.Is(err, qmp.ErrNotSent) || !errors.Is(err, qmp.ErrClosed) || errors.Is(err, qmp.ErrUnknownOutcome) {
		t.Errorf("afterwards: error %v, want ErrNotSent for ErrClosed", err)
	}
}

func TestAReplyBeforeTheEndIsNotLost(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		p.Reply(p.Expect("quit"), nil)
		p.Event("SHUTDOWN", map[string]any{"guest": false, "reason": "host-qmp-quit"})
		p.Close()
	})
	sub := c.Subscribe(1)
	if err := c.Execute(patient(t), "quit", nil, nil); err != nil {
		t.Error(err)
	}
	e := <-sub.C()
	if e.Event != "SHUTDOWN" || e.Data["reason"] != "host-qmp-quit" || e.Timestamp.Seconds == 0 {
		t.Errorf("event %+v, want SHUTDOWN", e)
	}
	if _, ok := <-sub.C(); ok {
		t.Error("an event after the end")
	}
}

func TestCommandsThatCannotBeSentFailWithErrNotSent(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(context.Background())
	end()
	tests := map[string]struct {
		ctx  context.Context
		args any
		want string
	}{
		"because the context has ended":           {ended, nil, "context canceled"},
		"because the arguments cannot be encoded": {context.Background(), make(chan int), "unsupported type"},
		"because a number has no JSON":            {context.Background(), math.NaN(), "unsupported value"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := scripted(t, func(p *qmptest.Peer) { p.Reply(p.Expect("query-status"), nil) })
			err := c.Execute(tt.ctx, "stop", tt.args, nil)
			if !errors.Is(err, qmp.ErrNotSent) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want ErrNotSent: %s", err, tt.want)
			}
			if err := c.Execute(context.Background(), "query-status", nil, nil); err != nil {
				t.Errorf("next command: %v", err)
			}
		})
	}
}

func TestAReplyOfTheWrongTypeIsADecodeError(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) { p.Reply(p.Next(), []int{1}) })
	err := c.Execute(patient(t), "query-status", nil, &status{})
	if err == nil || !strings.Contains(err.Error(), "qmp query-status: decode reply") {
		t.Errorf("error %v, want a decode error", err)
	}
}

func TestABlockedWriteEndsWithItsContextAndKeepsTheConnection(t *testing.T) {
	t.Parallel()
	const commands = 400 // of 4 KiB: more than fits into the buffer of the socket
	deaf := make(chan struct{})
	c := scripted(t, func(p *qmptest.Peer) {
		<-deaf
		for {
			cmd := p.Next()
			p.Reply(cmd, cmd.Name)
			if cmd.Name == "last" {
				return
			}
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error, commands)
	args := map[string]string{"fill": strings.Repeat("z", 4<<10)}
	for range commands {
		go func() { errs <- c.Execute(ctx, "stop", args, nil) }()
	}
	// Send more commands with a deadline, until one is not sent: the socket is full.
	for errors.Is(c.Execute(soon(t), "stop", args, nil), qmp.ErrUnknownOutcome) {
	}
	cancel()
	var unknown, notSent int
	for range commands {
		switch err := <-errs; {
		case errors.Is(err, qmp.ErrNotSent) && errors.Is(err, context.Canceled):
			notSent++
		case errors.Is(err, qmp.ErrUnknownOutcome) && errors.Is(err, context.Canceled):
			unknown++
		default:
			t.Errorf("error %v, want one that wraps context.Canceled", err)
		}
	}
	if unknown == 0 || notSent == 0 {
		t.Errorf("%d commands of unknown outcome, %d not sent; want some of each", unknown, notSent)
	}
	close(deaf)
	var got string
	if err := c.Execute(patient(t), "last", nil, &got); err != nil || got != "last" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
	if c.Strays() < uint64(unknown) {
		t.Errorf("%d strays, want at least %d late replies", c.Strays(), unknown)
	}
}

func TestAHalfWrittenCommandEndsTheConnection(t *testing.T) {
	t.Parallel()
	c, theirs := bare(t)
	begun := make(chan struct{})
	go func() {
		theirs.Read(make([]byte, 1))
		close(begun)
	}()
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		failed <- c.Execute(ctx, "stop", map[string]string{"fill": strings.Repeat("z", 4<<20)}, nil)
	}()
	wait(t, begun, "the beginning of the command")
	waiting := make(chan error)
	go func() { waiting <- c.Execute(patient(t), "query-status", nil, nil) }()
	cancel()
	if err := <-failed; !errors.Is(err, qmp.ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want ErrNotSent for context.Canceled", err)
	}
	if err := c.Err(); !errors.Is(err, qmp.ErrClosed) || !strings.Contains(err.Error(), "half-written") {
		t.Errorf("the connection's error is %v, want ErrClosed for a half-written command", err)
	}
	if err := <-waiting; !errors.Is(err, qmp.ErrClosed) || !errors.Is(err, qmp.ErrNotSent) {
		t.Errorf("next command: error %v, want ErrNotSent for ErrClosed", err)
	}
}

func TestACommandToAServerThatDoesNotReadIsNotSent(t *testing.T) {
	t.Parallel()
	c, theirs := bare(t)
	sub := c.Subscribe(1)
	if err := theirs.CloseRead(); err != nil {
		t.Fatal(err)
	}
	err := c.Execute(patient(t), "stop", nil, nil)
	if !errors.Is(err, qmp.ErrNotSent) || !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("error %v, want ErrNotSent for ErrClosed", err)
	}
	// Messages of the server are still read.
	if _, err := theirs.Write([]byte(`{"event": "SHUTDOWN"}` + "\n")); err != nil {
		t.Fatal(err)
	}
	if e := <-sub.C(); e.Event != "SHUTDOWN" {
		t.Errorf("event %+v, want SHUTDOWN", e)
	}
}

// bare returns a connection after its handshake, and the server's end of the socket.
func bare(t *testing.T) (c *qmp.Conn, theirs *net.UnixConn) {
	t.Helper()
	ours, theirs := pair(t)
	go func() {
		theirs.Write([]byte(plainGreeting))
		bufio.NewReader(theirs).ReadString('\n')
		theirs.Write([]byte(`{"return": {}, "id": 1}` + "\n"))
	}()
	c, err := qmp.New(patient(t), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, theirs
}

// pair returns the two ends of a connected socket.
func pair(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		end, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { end.Close() })
		ends[i] = end.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

func TestOutOfBandCommands(t *testing.T) {
	t.Parallel()
	t.Run("overtake others", func(t *testing.T) {
		heard := make(chan struct{})
		c := scripted(t, func(p *qmptest.Peer) {
			slow := p.Expect("migrate")
			close(heard)
			urgent := p.Expect("migrate-pause")
			if slow.OOB || !urgent.OOB {
				t.Errorf("out of band: migrate %v, migrate-pause %v", slow.OOB, urgent.OOB)
			}
			p.Reply(urgent, nil)
			p.Reply(slow, nil)
		})
		slow := make(chan error, 1)
		go func() { slow <- c.Execute(patient(t), "migrate", nil, nil) }()
		wait(t, heard, "the slow command")
		var got struct{}
		if err := c.ExecuteOOB(patient(t), "migrate-pause", nil, &got); err != nil {
			t.Error(err)
		}
		if err := <-slow; err != nil {
			t.Error(err)
		}
	})
	t.Run("are not sent if QEMU does not offer them", func(t *testing.T) {
		s := qmptest.NewServer(t)
		s.Script(func(p *qmptest.Peer) {
			p.Raw(plainGreeting)
			p.Reply(p.Next(), nil)
		})
		err := dial(t, s).ExecuteOOB(context.Background(), "migrate-pause", nil, nil)
		if !errors.Is(err, qmp.ErrNotSent) {
			t.Errorf("error %v, want ErrNotSent", err)
		}
	})
}
