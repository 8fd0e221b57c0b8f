package qga

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// socketpair returns the two ends of a stream socket.
func socketpair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return ends[0], ends[1]
}

// A request is a command that an agent has read.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
}

// id returns the number that a reply to guest-sync-delimited must repeat.
func (r request) id() int64 {
	var a struct {
		ID int64 `json:"id"`
	}
	if json.Unmarshal(r.Arguments, &a) != nil {
		return -1
	}
	return a.ID
}

// A script is a client with an agent that plays a script.
type script struct {
	*Client
	replies atomic.Int64 // calls of onReply
	dialed  atomic.Int64
	errs    atomic.Int64 // commands that are not JSON

	mu   sync.Mutex
	asks []string // the commands, without guest-sync-delimited
}

// A player answers a command by writing to the guest's end of the connection; n is the
// number of the command over all connections, from 1, without guest-sync-delimited.
type player func(n int, r request, w io.Writer)

// say returns a player that answers every command with text.
func say(text string) player {
	return func(n int, r request, w io.Writer) { io.WriteString(w, text) }
}

// play starts an agent that answers guest-sync-delimited correctly, and all other
// commands with answer.
func play(t testing.TB, answer player) *script {
	t.Helper()
	return playAll(t, func(n int, r request, w io.Writer) {
		if r.Execute == "guest-sync-delimited" {
			fmt.Fprintf(w, "\xff{\"return\": %d}\n", r.id())
			return
		}
		answer(n, r, w)
	})
}

// playAll starts an agent that answers all commands with answer.
func playAll(t testing.TB, answer player) *script {
	t.Helper()
	s := &script{}
	var wg sync.WaitGroup
	s.Client = NewClient(func(context.Context) (net.Conn, error) {
		s.dialed.Add(1)
		near, far := socketpair(t)
		wg.Go(func() { s.serve(far, answer) })
		return near, nil
	}, func() { s.replies.Add(1) })
	t.Cleanup(func() {
		s.Close()
		wg.Wait()
	})
	return s
}

// serve answers the commands of one connection.
func (s *script) serve(far net.Conn, answer player) {
	defer far.Close()
	in := bufio.NewReader(far)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		for len(line) > 0 && line[0] == delimiter {
			line = line[1:]
		}
		var r request
		if json.Unmarshal(line, &r) != nil {
			s.errs.Add(1)
			continue
		}
		s.mu.Lock()
		if r.Execute != "guest-sync-delimited" {
			s.asks = append(s.asks, r.Execute)
		}
		n := len(s.asks)
		s.mu.Unlock()
		answer(n, r, far)
	}
}

// asked returns the commands so far, without guest-sync-delimited.
func (s *script) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asks...)
}

// soon returns a context that ends after 200 ms.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func mustBe(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}
