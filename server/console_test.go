package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"vmand/openapi"
	"vmand/vm"
)

// watch opens the console of web-1 as a WebSocket. header is a list of names and values.
func (a *api) watch(t *testing.T, query string, header ...string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	h := http.Header{}
	if !strings.Contains(query, "ticket=") {
		h.Set("Authorization", "Bearer "+a.token)
	}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	c, resp, err := websocket.Dial(t.Context(), a.base+"/vms/web-1/console"+query,
		&websocket.DialOptions{HTTPHeader: h})
	if err == nil {
		t.Cleanup(func() { c.CloseNow() })
	}
	return c, resp, err
}

func (a *api) mustWatch(t *testing.T, query string, header ...string) *websocket.Conn {
	t.Helper()
	c, _, err := a.watch(t, query, header...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// hear fails the test unless the next bytes from a WebSocket are want.
func hear(t *testing.T, c *websocket.Conn, want string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	got := ""
	for len(got) < len(want) {
		kind, b, err := c.Read(ctx)
		if err != nil {
			t.Fatalf("got %q, want %q: %v", got, want, err)
		}
		if kind != websocket.MessageBinary {
			t.Errorf("message of type %v", kind)
		}
		got += string(b)
	}
	if got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func say(t *testing.T, c *websocket.Conn, kind websocket.MessageType, text string) {
	t.Helper()
	if err := c.Write(t.Context(), kind, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// ended waits for the close frame and returns its code and its reason.
func ended(t *testing.T, c *websocket.Conn) (websocket.StatusCode, string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	for {
		if _, _, err := c.Read(ctx); err != nil {
			if ctx.Err() != nil {
				t.Fatal("the connection does not end")
			}
			text := err.Error()
			_, reason, _ := strings.Cut(text, "reason = ")
			return websocket.CloseStatus(err), reason
		}
	}
}

// until waits up to 20 s until holds returns true.
func until(t *testing.T, condition string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("timeout: %s", condition)
		}
	}
}

func (a *api) connected() int {
	a.consoles.mu.Lock()
	defer a.consoles.mu.Unlock()
	return len(a.consoles.open)
}

func TestAConsoleIsAWebSocket(t *testing.T) {
	t.Parallel()
	a := running(t)
	reader, writer := a.mustWatch(t, ""), a.mustWatch(t, "?write=true&scrollback=3")
	hear(t, reader, "login: ")
	hear(t, writer, "n: ")
	say(t, writer, websocket.MessageBinary, "ro")
	say(t, writer, websocket.MessageText, "öt\r")
	hear(t, writer, "roöt\r")
	hear(t, reader, "roöt\r")
	a.driver.Say("web-1", "\x00\xff\x1b[0m")
	hear(t, reader, "\x00\xff\x1b[0m")
	if got := a.connected(); got != 2 {
		t.Errorf("%d connections", got)
	}
	a.driver.Set("web-1", "gone")
	if code, _ := ended(t, reader); code != websocket.StatusNormalClosure {
		t.Errorf("code %d", code)
	}
	until(t, "all seats are released", func() bool { return a.connected() == 0 })
	if !strings.Contains(a.log.String(), `"status":101`) {
		t.Errorf("the log does not contain the upgrade: %s", a.log)
	}
}

func TestOneClientWritesAndTakeOverIsExplicit(t *testing.T) {
	t.Parallel()
	a := running(t)
	first := a.mustWatch(t, "?write=true")
	hear(t, first, "login: ")
	_, resp, err := a.watch(t, "?write=true")
	if err == nil || resp.StatusCode != 409 {
		t.Fatalf("%v %v", resp, err)
	}
	second := a.mustWatch(t, "?write=true&take_over=true&scrollback=0")
	say(t, second, websocket.MessageText, "x")
	hear(t, first, "x") // the first client can still read
	say(t, first, websocket.MessageText, "y")
	if code, reason := ended(t, first); code != websocket.StatusPolicyViolation ||
		!strings.Contains(reason, "may not write") {
		t.Errorf("%d %s", code, reason)
	}
	reader := a.mustWatch(t, "")
	say(t, reader, websocket.MessageText, "z")
	if code, _ := ended(t, reader); code != websocket.StatusPolicyViolation {
		t.Errorf("%d", code)
	}
	hear(t, second, "x")
}

// upgrade opens the console of web-1 as a plain connection, and sends early right after
// the request.
func (a *api) upgrade(t *testing.T, query, early string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c := a.dial(t)
	if _, err := io.WriteString(c,
		a.head("GET /vms/web-1/console%s", query)+"Connection: keep-alive, Upgrade\r\nUpgrade: vman-console\r\n\r\n"+
			early); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, r, resp
}

func TestAConsoleIsAPlainConnection(t *testing.T) {
	t.Parallel()
	a := running(t)
	c, r, resp := a.upgrade(t, "?write=1", "ls\r") // sent before the answer
	if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "vman-console" ||
		!strings.EqualFold(resp.Header.Get("Connection"), "Upgrade") || resp.Header.Get("X-Request-Id") == "" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	expect := func(want string) {
		t.Helper()
		b := make([]byte, len(want))
		if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
			t.Fatalf("got %q, want %q: %v", b, want, err)
		}
	}
	expect("login: ls\r")
	io.WriteString(c, "\x00\xff")
	expect("\x00\xff")
	a.driver.Set("web-1", "gone")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection ends with %v", err)
	}
	until(t, "the seat is released", func() bool { return a.connected() == 0 })
}

func TestAConsoleRequestMustBeAValidUpgrade(t *testing.T) {
	t.Parallel()
	a := running(t)
	const ws, raw = "websocket", "vman-console"
	key := "dGhlIHNhbXBsZSBub25jZQ=="
	for name, test := range map[string]struct {
		header []string
		status int
	}{
		"nothing":          {nil, 426},
		"only Connection":  {[]string{"Connection", "Upgrade"}, 426},
		"only Upgrade":     {[]string{"Upgrade", raw}, 426},
		"another protocol": {[]string{"Connection", "Upgrade", "Upgrade", "h2c"}, 426},
		"an old WebSocket version": {[]string{"Connection", "Upgrade", "Upgrade", ws, "Sec-WebSocket-Version", "8",
			"Sec-WebSocket-Key", key}, 426},
		"no version": {[]string{"Connection", "Upgrade", "Upgrade", ws, "Sec-WebSocket-Key", key}, 426},
		"no key":     {[]string{"Connection", "Upgrade", "Upgrade", ws, "Sec-WebSocket-Version", "13"}, 400},
		"a short key": {[]string{"Connection", "Upgrade", "Upgrade", ws, "Sec-WebSocket-Version", "13",
			"Sec-WebSocket-Key", "eA=="}, 400},
		"a page of another origin": {[]string{"Connection", "Upgrade", "Upgrade", ws, "Sec-WebSocket-Version", "13",
			"Sec-WebSocket-Key", key, "Origin", "https://evil.example"}, 403},
		"a page of another site": {[]string{"Connection", "Upgrade", "Upgrade", raw, "Sec-Fetch-Site", "cross-site"},
			403},
		"a page without an origin": {[]string{"Connection", "Upgrade", "Upgrade", raw, "Origin", "null"}, 403},
	} {
		r := a.want(t, test.status, "GET", "/vms/web-1/console", "", test.header...)
		if test.status == 426 &&
			(r.Header.Get("Upgrade") != "websocket, vman-console" || r.problem(t).Code != "upgrade-required") {
			t.Errorf("%s: %v %s", name, r.Header, r.body)
		}
	}
	a.want(t, 426, "HEAD", "/vms/web-1/console", "", "Connection", "Upgrade", "Upgrade", raw)
	a.want(t, 404, "GET", "/vms/web-2/console", "", "Connection", "Upgrade", "Upgrade", raw)
	if got := a.connected(); got != 0 {
		t.Errorf("%d seats are in use", got)
	}
	c, _, err := a.watch(t, "", "Origin", a.base)
	if err != nil {
		t.Fatalf("a page of this origin: %v", err)
	}
	hear(t, c, "login: ")
	a.want(t, 200, "POST", "/vms/web-1/actions/stop", `{"force":true}`, "Prefer", "wait=30")
	a.wantCode(t, 409, "invalid-state", "GET", "/vms/web-1/console", "", "Connection", "Upgrade", "Upgrade", raw)
}

func TestATicketOpensOneConsoleOnce(t *testing.T) {
	t.Parallel()
	a := running(t)
	a.want(t, 201, "POST", "/vms", `{"template_name":"small","name":"web-2"}`)
	a.want(t, 404, "POST", "/vms/web-3/console/tickets", "")
	r := a.want(t, 201, "POST", "/vms/web-1/console/tickets", `{"write":true}`)
	k := into[openapi.ConsoleTicket](t, r)
	if k.URL != r.Header.Get("Location") || !strings.HasPrefix(k.URL, "/vms/web-1/console?ticket=") ||
		time.Until(k.ExpiresAt.Time) > 30*time.Second || time.Until(k.ExpiresAt.Time) < 20*time.Second {
		t.Errorf("%+v", k)
	}
	_, query, _ := strings.Cut(k.URL, "?")
	c := a.mustWatch(t, "?"+query)
	hear(t, c, "login: ")
	say(t, c, websocket.MessageText, "x")
	hear(t, c, "x")
	refused := func(ticket, query string) {
		t.Helper()
		_, resp, err := a.watch(t, "?"+query)
		if err == nil || resp.StatusCode != 401 {
			t.Errorf("%s: %v %v", ticket, resp, err)
		}
	}
	refused("a used ticket", query)
	refused("an invented ticket", "ticket="+strings.Repeat("A", 43))
	k = into[openapi.ConsoleTicket](t, a.want(t, 201, "POST", "/vms/web-2/console/tickets", ""))
	refused("a ticket for another VM", "ticket="+k.Ticket)
	if _, resp, err := a.watch(t, "?ticket=short"); err == nil || resp.StatusCode != 401 {
		t.Errorf("%v %v", resp, err)
	}
	// A ticket for reading does not allow writing, regardless of the role of its creator.
	k = into[openapi.ConsoleTicket](t, a.want(t, 201, "POST", "/vms/web-1/console/tickets", `{}`))
	if _, resp, err := a.watch(t, "?write=true&take_over=true&ticket="+k.Ticket); err == nil || resp.StatusCode != 403 {
		t.Errorf("%v %v", resp, err)
	}
	// A ticket is not accepted by other requests.
	k = into[openapi.ConsoleTicket](t, a.want(t, 201, "POST", "/vms/web-1/console/tickets", `{}`))
	a.want(t, 401, "GET", "/vms/web-1/console/log?ticket="+k.Ticket, "", "Authorization", "")
	a.want(t, 401, "GET", "/vms/web-1/guest", "", "Authorization", "Bearer "+k.Ticket)
	if log := a.log.String(); strings.Contains(log, k.Ticket) || strings.Contains(log, query) {
		t.Error("the log contains a ticket")
	}
}

func TestTicketsExpireAndAreLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var k tickets
		admin := vm.Caller{Name: "token:admin", Role: vm.RoleAdmin}
		viewer := vm.Caller{Name: "token:v", Role: vm.RoleViewer}
		old, expires, err := k.issue(admin, "web-1", false)
		if err != nil || !expires.Equal(time.Now().Add(30*time.Second)) {
			t.Fatal(expires, err)
		}
		time.Sleep(ticketLife - time.Nanosecond)
		young, _, err := k.issue(viewer, "web-1", true)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Nanosecond)
		if _, err := k.redeem(old, "web-1"); !vm.HasCode(err, codeUnauthorized) {
			t.Errorf("an expired ticket is accepted: %v", err)
		}
		got, err := k.redeem(young, "web-1")
		if err != nil || got.caller.Name != viewer.Name || got.caller.Role != viewer.Role || !got.write {
			t.Errorf("%+v %v", got, err)
		}
		for range maxTickets {
			if _, _, err := k.issue(admin, "web-1", false); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := k.issue(admin, "web-1", false); !vm.HasCode(err, vm.CodeLimitReached) {
			t.Errorf("one ticket above the limit: %v", err)
		}
		last, _, err := k.issue(viewer, "web-1", false)
		if err != nil {
			t.Errorf("another caller: %v", err)
		}
		k.revoke(map[string]bool{viewer.Name: true})
		if _, err := k.redeem(last, "web-1"); err == nil {
			t.Error("the ticket of a revoked caller is accepted")
		}
		time.Sleep(ticketLife)
		if _, _, err := k.issue(admin, "web-1", false); err != nil || len(k.all) != 1 {
			t.Errorf("%d tickets: %v", len(k.all), err)
		}
	})
}

func TestConsolesAreBounded(t *testing.T) {
	t.Parallel()
	var c consoles
	end := func(error) {}
	var seats []*seat
	for range maxConsolesPerVM {
		s, err := c.enter("web-1", "x", end)
		if err != nil {
			t.Fatal(err)
		}
		seats = append(seats, s)
	}
	if _, err := c.enter("web-1", "x", end); !vm.HasCode(err, vm.CodeLimitReached) {
		t.Errorf("%v", err)
	}
	for i := range maxConsoles - maxConsolesPerVM {
		s, err := c.enter("vm-"+strconv.Itoa(i%20), "x", end)
		if err != nil {
			t.Fatal(err)
		}
		seats = append(seats, s)
	}
	if _, err := c.enter("web-2", "x", end); !vm.HasCode(err, vm.CodeLimitReached) {
		t.Errorf("%v", err)
	}
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		c.wait(time.Minute)
	}()
	until(t, "wait is running", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.empty != nil
	})
	for _, s := range seats {
		c.leave(s)
	}
	<-waited
	if len(c.perVM) != 0 {
		t.Errorf("%v", c.perVM)
	}
	a := running(t)
	for range maxConsolesPerVM {
		if _, err := a.consoles.enter("web-1", "x", end); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/vms/web-1/console", "/vms/web-1/console/log?follow=true"} {
		a.wantCode(t, 409, "limit-reached", "GET", path, "", "Connection", "Upgrade", "Upgrade", "vman-console")
	}
	a.want(t, 200, "GET", "/vms/web-1/console/log", "")
}

func TestAClientThatDoesNotReadAConsoleIsDisconnected(t *testing.T) {
	t.Parallel()
	a := running(t, func(f *fixture) { f.tune = func(s *Server) { s.eventTimeout = 100 * time.Millisecond } })
	_, _, resp := a.upgrade(t, "", "")
	if resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	a.mustWatch(t, "")
	flood := strings.Repeat("0123456789abcdef", 1<<16)
	for range 32 { // 32 MiB: far more than the buffers of two sockets
		a.driver.Say("web-1", flood)
	}
	until(t, "both clients are disconnected", func() bool { return a.connected() == 0 })
}

func TestAWebSocketThatDoesNotAnswerIsCutOff(t *testing.T) {
	t.Parallel()
	a := running(t, func(f *fixture) {
		f.tune = func(s *Server) { s.eventTimeout, s.heartbeat = 200*time.Millisecond, 20*time.Millisecond }
	})
	alive := a.mustWatch(t, "")
	received := make(chan string, 10)
	go func() { // Read answers pings
		for {
			_, b, err := alive.Read(context.Background())
			if err != nil {
				close(received)
				return
			}
			received <- string(b)
		}
	}()
	<-received
	a.mustWatch(t, "")
	until(t, "the silent client is connected", func() bool { return a.connected() == 2 })
	until(t, "the silent client is disconnected", func() bool { return a.connected() == 1 })
	a.driver.Say("web-1", "x")
	if got := <-received; got != "x" {
		t.Errorf("got %q", got)
	}
}

func TestStoppingDoesNotWaitForConsoles(t *testing.T) {
	t.Parallel()
	a := running(t)
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- a.Serve(ctx, l) }()
	a.base = "http://" + l.Addr().String()
	ws := a.mustWatch(t, "")
	hear(t, ws, "login: ")
	conn, r, _ := a.upgrade(t, "", "")
	if _, err := io.ReadFull(r, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	mute := a.mustWatch(t, "") // a client that never reads
	follower := a.followLog(t, "?follow=1")
	if _, err := io.ReadFull(follower.Body, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	said := make(chan string)
	go func() {
		code, reason := ended(t, ws)
		said <- fmt.Sprint(int(code), reason)
	}()
	begun := time.Now()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if got := <-said; !strings.HasPrefix(got, "1001") {
		t.Errorf("%s", got)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("the plain connection is still open")
	}
	if got := a.connected(); got != 0 {
		t.Errorf("%d connections are open", got)
	}
	_, _ = conn, mute
}

func TestARevokedTokenEndsItsConsoles(t *testing.T) {
	t.Parallel()
	a := running(t)
	operator := a.as(t, vm.RoleOperator)
	stays := a.mustWatch(t, "")
	hear(t, stays, "login: ")
	ends := a.mustWatch(t, "", "Authorization", operator[3])
	hear(t, ends, "login: ")
	secret, _, err := a.tickets.issue(vm.Caller{Name: "token:operator-1", Role: vm.RoleOperator}, "web-1", false)
	if err != nil {
		t.Fatal(err)
	}
	a.as(t, vm.RoleOperator) // replaces the token
	if code, reason := ended(t, ends); code != websocket.StatusPolicyViolation || !strings.Contains(reason, "token") {
		t.Errorf("%d %s", code, reason)
	}
	if _, _, err := a.watch(t, "?ticket="+secret); err == nil {
		t.Error("a ticket of the old token is accepted")
	}
	a.driver.Say("web-1", "x")
	hear(t, stays, "x")
}

// followLog requests the console log of web-1. The caller reads the body.
func (a *api) followLog(t *testing.T, query string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", a.base+"/vms/web-1/console/log"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestAConsoleLogIsReadFromAnyOffset(t *testing.T) {
	t.Parallel()
	a := running(t)
	a.driver.Say("web-1", "root\r\n\xff")
	for query, want := range map[string]string{
		"": "login: root\r\n\xff", "?offset=0": "login: root\r\n\xff", "?offset=7": "root\r\n\xff", "?offset=999": "",
		"?tail=3": "\r\n\xff", "?tail=0": "", "?tail=999": "login: root\r\n\xff", "?follow=0": "login: root\r\n\xff",
	} {
		r := a.want(t, 200, "GET", "/vms/web-1/console/log"+query, "")
		if string(r.body) != want || r.Header.Get("X-Vman-Console-End") != "14" ||
			r.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s: %q %v", query, r.body, r.Header)
		}
	}
	a.want(t, 200, "HEAD", "/vms/web-1/console/log?follow=true", "") // must end
	a.want(t, 404, "GET", "/vms/web-2/console/log", "")
	a.want(t, 200, "POST", "/vms/web-1/actions/stop", `{"force":true}`, "Prefer", "wait=30")
	if r := a.want(t, 200, "GET", "/vms/web-1/console/log?follow=1", ""); string(r.body) != "login: root\r\n\xff" {
		t.Errorf("%q", r.body)
	}
}

func TestAConsoleLogIsFollowedWithoutLossUntilTheVMEnds(t *testing.T) {
	t.Parallel()
	a := running(t)
	resp := a.followLog(t, "?follow=1&tail=2")
	want := ": "
	go func() {
		for i := range 200 {
			a.driver.Say("web-1", fmt.Sprintf("line %d\r\n", i))
		}
	}()
	for i := range 200 {
		want += fmt.Sprintf("line %d\r\n", i)
	}
	b := make([]byte, len(want))
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != want {
		t.Fatalf("%q %v", b, err)
	}
	a.driver.Say("web-1", "bye")
	a.want(t, 200, "POST", "/vms/web-1/actions/stop", `{"force":true}`, "Prefer", "wait=30")
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != "bye" {
		t.Errorf("%q %v", rest, err)
	}
	until(t, "the seat is released", func() bool { return a.connected() == 0 })
}

func TestCloseReasonsFitInAFrame(t *testing.T) {
	t.Parallel()
	long := &vm.Fault{Code: vm.CodeState, Detail: strings.Repeat("ä", 100)}
	for name, test := range map[string]struct {
		why  error
		code websocket.StatusCode
	}{
		"the end of the VM": {io.EOF, websocket.StatusNormalClosure},
		"stopping":          {errStopping, websocket.StatusGoingAway},
		"too slow": {fmt.Errorf("x: %w", &vm.Fault{
			Code:   vm.CodeUnavailable,
			Detail: "slow",
		}), websocket.StatusTryAgainLater},
		"a write of a reader": {long, websocket.StatusPolicyViolation},
		"a defect":            {io.ErrUnexpectedEOF, websocket.StatusInternalError},
		"another error":       {&url.Error{Err: io.ErrNoProgress}, websocket.StatusInternalError},
	} {
		if code, reason := closeCode(test.why); code != test.code || len(reason) > maxReason {
			t.Errorf("%s: %d %q", name, code, reason)
		}
	}
}
