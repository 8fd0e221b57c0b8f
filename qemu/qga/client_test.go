package qga

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const pong = "{\"return\": {}}\n"

func TestAConnectionIsReused(t *testing.T) {
	t.Parallel()
	s := play(t, say(pong))
	for range 3 {
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s.dialed.Load() != 1 || s.replies.Load() != 3 {
		t.Errorf("%d connections, %d replies; want 1, 3", s.dialed.Load(), s.replies.Load())
	}
}

func TestTheDescriptionOfARefusalIsCleanAndBounded(t *testing.T) {
	t.Parallel()
	desc := `no\u0007 \u001b[31mway` + strings.Repeat("é", 1000)
	s := play(t, say(`{"error": {"class": "GenericError", "desc": "`+desc+`"}}`+"\n"))
	err := s.Ping(t.Context())
	var refused *Error
	if !errors.As(err, &refused) {
		t.Fatalf("got %v", err)
	}
	mustBeClean(t, maxDesc, refused.Desc)
	if !strings.HasPrefix(refused.Desc, "no [31mwayé") || refused.Command != "guest-ping" {
		t.Errorf("got %+v", refused)
	}
	if err := s.Ping(t.Context()); !errors.As(err, &refused) || s.dialed.Load() != 1 || s.replies.Load() != 2 {
		t.Errorf("then %v on connection %d, %d replies", err, s.dialed.Load(), s.replies.Load())
	}
}

func TestAnInvalidReplyClosesTheConnection(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1)
	for name, invalid := range map[string]string{
		"not JSON":                  "hello\n",
		"an empty line":             "\n",
		"a delimiter in the middle": "{\"return\": {\"a\":\"\xff\"}}\n",
		"an array":                  "[]\n",
		"null":                      "{\"return\": null}\n",
		"an empty object":           "{}\n",
		"half an object":            "{\"return\": {\n",
		"two objects":               "{\"return\": {}}{}\n",
		"an unterminated string":    "{\"return\": \"\n",
		"too deep":                  "{\"return\": " + deep + "}\n",
		"too many values":           "{\"return\": [" + strings.Repeat("0,", maxElements+1) + "0]}\n",
		"too long a line":           "{\"return\": \"" + strings.Repeat("x", maxLine) + "\"}\n",
		"an endless line":           strings.Repeat("x", 3*maxLine),
		"an invalid and a valid":    "{\n" + pong,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var once sync.Once
			s := play(t, func(n int, r request, w io.Writer) {
				text := pong
				once.Do(func() { text = invalid })
				io.WriteString(w, text)
			})
			mustBe(t, s.Ping(t.Context()), ErrGarbage)
			if err := s.Ping(t.Context()); err != nil || s.dialed.Load() != 2 {
				t.Errorf("then %v on connection %d", err, s.dialed.Load())
			}
			if s.replies.Load() != 1 {
				t.Errorf("onReply was called %d times, want once", s.replies.Load())
			}
		})
	}
}

func TestACommandToASilentAgentEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	silence := func(n int, r request, w io.Writer) {}
	for name, s := range map[string]*script{
		"from the start": playAll(t, silence),
		"after the sync": play(t, silence),
		"in the middle of a line": play(t, func(n int, r request, w io.Writer) {
			io.WriteString(w, `{"return": {`)
		}),
	} {
		begin := time.Now()
		err := s.Ping(soon(t))
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > 2*time.Second {
			t.Errorf("%s: got %v after %v", name, err, took)
		}
	}
}

func TestAFailedDialIsErrSilent(t *testing.T) {
	t.Parallel()
	c := NewClient(func(context.Context) (net.Conn, error) { return nil, unix.ECONNREFUSED }, func() {})
	mustBe(t, c.Ping(t.Context()), ErrSilent)
	mustBe(t, c.Ping(t.Context()), unix.ECONNREFUSED)
	c.Close()
	mustBe(t, c.Ping(t.Context()), ErrClosed)
}

func TestAConnectionClosedByTheAgentIsErrSilent(t *testing.T) {
	t.Parallel()
	s := play(t, func(n int, r request, w io.Writer) { w.(net.Conn).Close() })
	mustBe(t, s.Ping(t.Context()), ErrSilent)
}

func TestLateReplyIsNotMatchedToAnotherCommand(t *testing.T) {
	t.Parallel()
	// The guest has one port for all connections: the second connection first gets the
	// rest of the replies to the first.
	s := playAll(t, func(n int, r request, w io.Writer) {
		switch {
		case r.Execute == "guest-get-host-name" && n == 1:
			return // the reply comes on the second connection
		case r.Execute == "guest-sync-delimited" && n == 1:
			io.WriteString(w, "half a li\xffne}\n{\"return\": {\"host-name\": \"old\"}}\n\xff{\"return\": 5}\n")
		}
		if r.Execute == "guest-sync-delimited" {
			io.WriteString(w, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n")
			fmt.Fprintf(w, "\xff{\"return\":%d}\n", r.id())
			return
		}
		io.WriteString(w, `{"return": {"host-name": "new"}}`+"\n")
	})
	if name, err := s.Hostname(soon(t)); !errors.Is(err, context.DeadlineExceeded) || name != "" {
		t.Fatalf("got %q, %v", name, err)
	}
	if name, err := s.Hostname(t.Context()); err != nil || name != "new" {
		t.Errorf("got %q, %v", name, err)
	}
}

func TestAnUnrequestedReplyIsIgnored(t *testing.T) {
	t.Parallel()
	s := play(t, func(n int, r request, w io.Writer) {
		// One write, so that the client reads both replies before its next command.
		const reply = "{\"return\": {\"host-name\": %q}}\n"
		fmt.Fprintf(w, reply+reply, strconv.Itoa(n), "forged")
	})
	for _, want := range []string{"1", "2"} {
		if name, err := s.Hostname(t.Context()); err != nil || name != want {
			t.Errorf("got %q, %v; want %q", name, err, want)
		}
	}
}

// This test is not parallel: it measures the allocations of the process.
func TestFloodUsesBoundedMemory(t *testing.T) {
	flood := func(text string) player {
		return func(n int, r request, w io.Writer) {
			for {
				if _, err := io.WriteString(w, text); err != nil {
					return
				}
			}
		}
	}
	for name, s := range map[string]*script{
		"of answers":  playAll(t, flood(strings.Repeat("\xff{\"return\": 1}\n", 4096))),
		"of one line": playAll(t, flood(strings.Repeat("x", 1<<16))),
	} {
		begin := time.Now()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		mustBe(t, s.Ping(t.Context()), ErrGarbage)
		runtime.ReadMemStats(&after)
		took, used := time.Since(begin), after.TotalAlloc-before.TotalAlloc
		if took > 5*time.Second || used > 64<<20 {
			t.Errorf("a flood %s: %v and %d MiB", name, took, used>>20)
		}
	}
}

func TestSmallReadsAreFollowedByPauses(t *testing.T) {
	t.Parallel()
	near, far := socketpair(t)
	defer far.Close()
	defer near.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			if _, err := far.Write([]byte("x")); err != nil {
				return
			}
		}
	})
	reads := &countingReader{Conn: near}
	ctx := soon(t)
	stop := context.AfterFunc(ctx, func() { near.Close() })
	defer stop()
	if _, err := (&lines{from: reads}).next(ctx, maxLong); err == nil {
		t.Fatal("next returns a line that has no end")
	}
	// Without pauses there are about 100,000 reads in that time.
	if reads.n > 1000 {
		t.Errorf("%d reads in 200 ms", reads.n)
	}
}

type countingReader struct {
	net.Conn
	n int
}

func (c *countingReader) Read(b []byte) (int, error) {
	c.n++
	return c.Conn.Read(b)
}

func TestAGuestThatDoesNotReadBlocksUntilTheDeadline(t *testing.T) {
	t.Parallel()
	var far net.Conn
	c := NewClient(func(context.Context) (net.Conn, error) {
		near, other := socketpair(t)
		far = other
		return near, nil
	}, func() {})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	begin := time.Now()
	err := c.write(ctx, 1, make([]byte, 1<<20))
	if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
		t.Errorf("got %v after %v", err, took)
	}
	if far == nil {
		t.Fatal("nothing was sent")
	}
	far.Close()
}

func TestCallsWaitForTheirTurnUntilTheirContextEnds(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := play(t, func(n int, r request, w io.Writer) {
		if n == 1 {
			<-release
		}
		io.WriteString(w, pong)
	})
	var wg sync.WaitGroup
	first := make(chan error, 1)
	wg.Go(func() { first <- s.Ping(t.Context()) })
	for len(s.asked()) == 0 {
		runtime.Gosched()
	}
	mustBe(t, s.Ping(soon(t)), context.DeadlineExceeded)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mustBe(t, s.Ping(ctx), context.Canceled)
	mustBe(t, s.call(t.Context(), 10*time.Millisecond, maxLine, "guest-ping", nil, nil), ErrBusy)
	for range 10 {
		wg.Go(func() {
			if err := s.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	if err := <-first; err != nil {
		t.Error(err)
	}
	if len(s.asked()) != 11 || s.dialed.Load() != 1 {
		t.Errorf("%d commands on %d connections", len(s.asked()), s.dialed.Load())
	}
}

func TestDropEndsARunningCommand(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	s := play(t, func(n int, r request, w io.Writer) {
		if n == 1 {
			close(asked)
			return
		}
		io.WriteString(w, pong)
	})
	go func() {
		<-asked
		s.Drop()
	}()
	mustBe(t, s.Ping(t.Context()), ErrSilent)
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	s.Close()
	mustBe(t, s.Ping(t.Context()), ErrClosed)
}

// This test is not parallel: it takes all slots of longReplies.
func TestTheNumberOfLongRepliesIsLimited(t *testing.T) {
	out := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("y"), 3<<20))
	s := play(t, func(n int, r request, w io.Writer) {
		if r.Execute == "guest-exec" {
			io.WriteString(w, `{"return": {"pid": 7}}`+"\n")
			return
		}
		const reply = `{"return": {"exited": true, "exitcode": 3, "out-truncated": true, "out-data": "%s"}}`
		fmt.Fprintf(w, reply+"\n", out)
	})
	for range cap(longReplies) {
		longReplies <- struct{}{}
	}
	_, err := s.Exec(soon(t), Program{Path: "yes"}, time.Minute)
	mustBe(t, err, context.DeadlineExceeded)
	for range cap(longReplies) {
		<-longReplies
	}
	for range 2 {
		r, err := s.Exec(t.Context(), Program{Path: "yes"}, time.Minute)
		if err != nil || !r.Exited || r.ExitCode != 3 || len(r.Stdout) != 3<<20 || !r.Truncated {
			t.Errorf("got %v of %d bytes, %v", r.ExitCode, len(r.Stdout), err)
		}
	}
	if len(longReplies) != 0 {
		t.Error("a slot is not returned")
	}
	if !slices.Contains(s.asked(), "guest-exec-status") {
		t.Error("guest-exec-status was not called")
	}
}
