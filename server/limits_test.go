package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
)

// dial opens a connection for hand-written HTTP.
func (a *api) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(a.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// head returns the first headers of a request with the token.
func (a *api) head(format string, args ...any) string {
	return fmt.Sprintf(format, args...) + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + a.token +
		"\r\nContent-Type: application/json\r\n"
}

// receive reads one answer from c.
func receive(t *testing.T, c net.Conn) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestABodyWithALargeContentLengthIsNotRead(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for name, status := range map[string]int{"with a token": 413, "without": 401} {
		c := a.dial(t)
		head := a.head("POST /templates")
		if status == 401 {
			head = strings.Replace(head, a.token, "x", 1)
		}
		fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\n", head, 100<<20)
		resp, body := receive(t, c) // no byte of the body was sent
		if resp.StatusCode != status || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: status %d: %s", name, resp.StatusCode, body)
		}
	}
}

// It measures the memory of the process, so it must not run in parallel.
func TestAnEndlessBodyIsRejectedWithoutUsingMemory(t *testing.T) {
	a := newAPI(t)
	for name, status := range map[string]int{"with a token": 411, "without": 401} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c := a.dial(t)
		head := a.head("POST /templates")
		if status == 401 {
			head = strings.Replace(head, a.token, "x", 1)
		}
		fmt.Fprintf(c, "%sTransfer-Encoding: chunked\r\n\r\n", head)
		chunk := append(append([]byte("10000\r\n"), bytes.Repeat([]byte{' '}, 64<<10)...), "\r\n"...)
		sent := 0
		go func() {
			for sent < 100<<20 {
				n, err := c.Write(chunk)
				if sent += n; err != nil {
					return
				}
			}
		}()
		if resp, body := receive(t, c); resp.StatusCode != status {
			t.Errorf("%s: status %d: %s", name, resp.StatusCode, body)
		}
		c.Close()
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 12<<20 {
			t.Errorf("%s: %d MiB were allocated", name, grown>>20)
		}
	}
}

func TestABodyOfExactlyTheLimitIsAccepted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	padded := smallTemplate + strings.Repeat(" ", maxBody-len(smallTemplate))
	a.want(t, 201, "POST", "/templates", padded)
	a.wantCode(t, 413, "payload-too-large", "POST", "/templates", padded+" ")
}

func TestASlowBodyIsA408(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.o.BodyTimeout = 150 * time.Millisecond })
	c := a.dial(t)
	fmt.Fprintf(c, "%sContent-Length: 50\r\n\r\n{", a.head("POST /templates"))
	resp, body := receive(t, c)
	if resp.StatusCode != 408 || !strings.Contains(body, "request-timeout") || !resp.Close {
		t.Errorf("status %d, close %v: %s", resp.StatusCode, resp.Close, body)
	}
	// The body of an unauthenticated request is not read, and its connection is closed
	// soon.
	c = a.dial(t)
	fmt.Fprintf(c, "%sContent-Length: 50\r\n\r\n{", strings.Replace(a.head("POST /templates"), a.token, "x", 1))
	if resp, body := receive(t, c); resp.StatusCode != 401 {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestAnUnexpectedBodyIsRejectedAtItsFirstByte(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, framing := range []string{"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
		"Content-Length: 1000000\r\n\r\n"} {
		c := a.dial(t)
		io.WriteString(c, "GET /health HTTP/1.1\r\nHost: localhost\r\n"+framing) // the body never ends
		if resp, body := receive(t, c); resp.StatusCode != 400 || !resp.Close {
			t.Errorf("status %d, close %v: %s", resp.StatusCode, resp.Close, body)
		}
	}
	c := a.dial(t) // an empty chunked body is no body
	io.WriteString(c, "GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	if resp, body := receive(t, c); resp.StatusCode != 200 {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
}

// A slowReader is a response writer that records the write deadline.
type slowReader struct {
	*httptest.ResponseRecorder
	until time.Time
}

func (w *slowReader) SetWriteDeadline(t time.Time) error {
	w.until = t
	return nil
}

func TestEveryAnswerHasAWriteDeadline(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, path := range []string{"/health", "/openapi.json", "/openapi.yaml", "/docs", "/templates",
		"/templates/none", "/nowhere"} {
		w := &slowReader{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest("GET", "http://localhost"+path, nil)
		r.Header.Set("Authorization", "Bearer "+a.token)
		a.ServeHTTP(w, r)
		if left := time.Until(w.until); left <= 0 || left > sendTimeout {
			t.Errorf("GET %s: status %d, write deadline %v", path, w.Code, w.until)
		}
	}
}

func TestABodyThatEndsEarlyIsMalformed(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.dial(t)
	fmt.Fprintf(c, "%sContent-Length: 50\r\n\r\n{", a.head("POST /templates"))
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if resp, body := receive(t, c); resp.StatusCode != 400 || !strings.Contains(body, "malformed-body") {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
}

func TestTheDeadlineOfTheBodyDoesNotEndTheWait(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.o.BodyTimeout = 100 * time.Millisecond }).withVM(t)
	a.driver.Hook = hook("Start", func(ctx context.Context) error {
		select {
		case <-time.After(400 * time.Millisecond):
		case <-ctx.Done():
		}
		return nil
	})
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "{}", "Prefer", "wait=20")
}

func TestSlowHeadersCloseTheConnection(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.tune = func(s *Server) { s.headerTimeout = 150 * time.Millisecond } })
	if readHeaderTimeout > 5*time.Second {
		t.Errorf("the header timeout is %v", readHeaderTimeout)
	}
	c := a.dial(t)
	io.WriteString(c, "GET /vms HTTP/1.1\r\nHost: local")
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the connection was not closed: %v", err)
	}
}

func TestTooManyHeadersAreRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.dial(t)
	go func() {
		io.WriteString(c, "GET /vms HTTP/1.1\r\nHost: localhost\r\n")
		for i := range 100000 {
			if _, err := fmt.Fprintf(c, "X-Flood-%d: %s\r\n", i, strings.Repeat("x", 100)); err != nil {
				return
			}
		}
	}()
	if resp, _ := receive(t, c); resp.StatusCode != 431 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestAClientThatDisconnectsCancelsNothing(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	began, release := make(chan struct{}), make(chan struct{})
	a.driver.Hook = hook("Start", func(ctx context.Context) error {
		close(began)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	c := a.dial(t)
	io.WriteString(c, a.head("POST /vms/web-1/actions/start")+"Prefer: wait=30\r\n\r\n")
	<-began
	c.Close()
	ops := into[[]openapi.Operation](t, a.want(t, 200, "GET", "/operations?kind=vm.start", ""))
	close(release)
	o, err := a.manager.Operations.Wait(t.Context(), ops[0].ID)
	if err != nil || o.State != "succeeded" {
		t.Errorf("operation %+v, %v", o, err)
	}
}

func TestStoppingAnswersHeldRequests(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	began := make(chan struct{})
	a.driver.Hook = hook("Start", func(ctx context.Context) error { close(began); <-ctx.Done(); return ctx.Err() })
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- a.Serve(ctx, l) }()
	a.base = "http://" + l.Addr().String()
	go func() { <-began; cancel() }()
	a.want(t, 202, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=300")
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the server still listens")
	}
}
