package bench

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A load is a number of clients. Each has one connection and sends its next request after the
// answer to the last.
type load struct {
	t        testing.TB
	requests [][]byte // the requests of all clients, sent round-robin
	clients  []*client
}

type client struct {
	conn net.Conn
	in   *bufio.Reader
	next int // the index of its next request
}

// newLoad connects n clients to a server, which must answer every request with 200.
func newLoad(t testing.TB, address string, n int, requests [][]byte) *load {
	t.Helper()
	l := &load{t: t, requests: requests}
	for i := range n {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		l.clients = append(l.clients, &client{conn: conn, in: bufio.NewReader(conn), next: i * len(requests) / n})
	}
	return l
}

// get returns the bytes of a GET request.
func get(path, token string) []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n"+
		"Authorization: Bearer %s\r\n\r\n", path, token)
}

func (l *load) ask(c *client) error {
	if _, err := c.conn.Write(l.requests[c.next]); err != nil {
		return err
	}
	c.next = (c.next + 1) % len(l.requests)
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s", resp.Status)
	}
	return nil
}

// run sends requests for a duration and returns the latency of each.
func (l *load) run(d time.Duration) []time.Duration {
	l.t.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for _, c := range l.clients {
		wg.Go(func() {
			var mine []time.Duration
			var err error
			for now := time.Now(); now.Before(end) && err == nil; {
				err = l.ask(c)
				then := now
				now = time.Now()
				mine = append(mine, now.Sub(then))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed != nil {
		l.t.Fatal(failed)
	}
	return all
}

// A reference is a running program of testdata/reference.
type reference struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// buildReference builds the program as `make build` builds vmand.
func buildReference(t testing.TB) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "reference")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./testdata/reference")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the reference: %v\n%s", err, out)
	}
	return program
}

func startReference(t testing.TB, program, what string, input []byte) *reference {
	t.Helper()
	file := filepath.Join(t.TempDir(), what)
	if err := os.WriteFile(file, input, 0o600); err != nil {
		t.Fatal(err)
	}
	r := &reference{t: t, cmd: exec.Command(program, what, file)}
	r.cmd.Stderr = os.Stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // like the daemon
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.out = bufio.NewReader(out)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.in.Close()
		if err := r.cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// line returns the next line of the output of the reference.
func (r *reference) line() string {
	r.t.Helper()
	line, err := r.out.ReadString('\n')
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
