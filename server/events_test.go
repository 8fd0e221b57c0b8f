package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

func TestEventsAreListedInPages(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	all := into[[]openapi.Event](t, a.want(t, 200, "GET", "/events", ""))
	if len(all) < 8 || all[0].Seq != 1 || all[0].Type != "template.created" {
		t.Fatalf("events %+v", all)
	}
	var paged []openapi.Event
	for path := "/events?limit=3"; path != ""; {
		r := a.want(t, 200, "GET", path, "")
		page := into[[]openapi.Event](t, r)
		paged = append(paged, page...)
		link := nextLink.FindStringSubmatch(r.Header.Get("Link"))
		if path = ""; link != nil {
			path = link[1]
		}
		if (path != "") != (len(page) == 3 && len(paged) < len(all)) {
			t.Fatalf("%d events, then %q", len(page), path)
		}
	}
	if fmt.Sprint(paged) != fmt.Sprint(all) {
		t.Errorf("in pages:\n%v\nin one list:\n%v", paged, all)
	}
	count := func(query string) int {
		return len(into[[]openapi.Event](t, a.want(t, 200, "GET", "/events?"+query, "")))
	}
	last := strconv.FormatInt(all[len(all)-1].Seq, 10)
	for query, want := range map[string]int{
		"type=vm.state&resource=vms/web-1": 2,
		"type=vm.":                         3,
		"type=vm.state&limit=1":            1,
		"resource=templates/small":         1,
		"resource=vms/web-2":               0,
		"type=vm.nothing":                  0,
		"since=" + last:                    0,
		"since=0":                          len(all),
		"since=999999":                     len(all), // from before a restored backup
		"since=1":                          len(all) - 1,
	} {
		if got := count(query); got != want {
			t.Errorf("%s: %d events, want %d", query, got, want)
		}
	}
	r := a.want(t, 200, "GET", "/events?type=operation.&resource=operations/x&limit=1&since=0", "")
	if got := r.Header.Get("Link"); got != "" {
		t.Errorf("Link %q", got)
	}
	r = a.want(t, 200, "GET", "/events?type=vm.&resource=vms/web-1&limit=1", "")
	if got := r.Header.Get("Link"); !strings.Contains(got, "type=vm.") ||
		!strings.Contains(got, "resource=vms%2Fweb-1") {
		t.Errorf("Link %q", got)
	}
	for _, query := range []string{"since=-1", "since=x", "limit=0", "limit=1001", "type=vm", "type=colour.red",
		"type=", "resource=", "resource=vms/a%20b", "after=1"} {
		a.want(t, 400, "GET", "/events?"+query, "")
	}
	a.want(t, 400, "GET", "/events", "", "Last-Event-ID", "x", "Accept", streamMedia)
}

func TestTheContractHasEveryEventType(t *testing.T) {
	t.Parallel()
	doc, _ := specification()
	var spec []string
	for _, v := range doc.Components.Schemas["EventType"].Value.Enum {
		spec = append(spec, v.(string))
	}
	slices.Sort(spec)
	ours := slices.Sorted(slices.Values(vm.EventTypes))
	if !slices.Equal(ours, spec) {
		t.Errorf("server %v\ncontract %v", ours, spec)
	}
}

func TestAStreamIsRequestedByItsMediaType(t *testing.T) {
	t.Parallel()
	for accept, want := range map[string]bool{
		"text/event-stream":                         true,
		"TEXT/Event-Stream":                         true,
		"application/json, text/event-stream;q=0.5": true,
		"text/event-stream;charset=utf-8":           true,
		"":                                          false,
		"*/*":                                       false,
		"text/*":                                    false,
		"application/json":                          false,
		"text/event-stream;q=0":                     false,
		"text/event-stream;q=x":                     false,
		";":                                         false,
	} {
		if got := wantsStream(http.Header{"Accept": {accept}}); got != want {
			t.Errorf("%q: got %v", accept, got)
		}
	}
	a := newAPI(t)
	r := a.want(t, 200, "HEAD", "/events", "", "Accept", streamMedia) // must end
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
}

// follow opens a stream of events. It is closed at the end of the test.
func (a *api) follow(t *testing.T, query string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", a.base+"/events"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	r.Header.Set("Accept", streamMedia)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != streamMedia {
		t.Fatalf("status %d, %v", resp.StatusCode, resp.Header)
	}
	if err := conforms("GET", r.URL, resp.StatusCode, resp.Header, nil); err != nil {
		t.Error(err)
	}
	return resp
}

// nextEvent reads one event from a stream and validates it.
func nextEvent(lines *bufio.Reader) (openapi.Event, error) {
	var e openapi.Event
	fields := map[string]string{}
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return e, err
		}
		line = strings.TrimSuffix(line, "\n")
		if name, value, _ := strings.Cut(line, ": "); line != "" && name != ":" {
			fields[name] = value
		} else if len(fields) > 0 {
			break
		}
	}
	if err := json.Unmarshal([]byte(fields["data"]), &e); err != nil {
		return e, fmt.Errorf("%v: %w", fields, err)
	}
	doc, _ := specification()
	var v any
	_ = json.Unmarshal([]byte(fields["data"]), &v)
	if err := doc.Components.Schemas["Event"].Value.VisitJSON(v); err != nil {
		return e, err
	}
	if fields["id"] != strconv.FormatInt(e.Seq, 10) || fields["event"] != string(e.Type) || len(fields) != 3 {
		return e, fmt.Errorf("fields %v", fields)
	}
	return e, nil
}

func TestAStreamSendsNewEvents(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	stream := bufio.NewReader(a.follow(t, "").Body)
	vms := bufio.NewReader(a.follow(t, "?type=vm.&resource=vms/web-1").Body)
	a.want(t, 201, "POST", "/vms", webVM)
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	for _, want := range []string{"operation.started", "vm.created", "operation.ended", "vm.state",
		"operation.started", "vm.state", "operation.ended"} {
		e, err := nextEvent(stream)
		if err != nil || string(e.Type) != want {
			t.Fatalf("got %+v, %v, want %s", e, err, want)
		}
	}
	for _, want := range []string{"vm.created", "vm.state", "vm.state"} {
		e, err := nextEvent(vms)
		if err != nil || string(e.Type) != want || e.Resource != "vms/web-1" {
			t.Fatalf("got %+v, %v, want %s", e, err, want)
		}
	}
}

func TestAStreamStartsAfterTheLastEventOfTheClient(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for i := range 5 {
		a.want(t, 201, "POST", "/templates", fmt.Sprintf(`{"name":"t%d","cpu_count":1,"ram_amount":64}`, i))
	}
	for _, test := range []struct {
		query  string
		header []string
		want   int64
	}{
		{"?since=0", nil, 1},
		{"?since=2", nil, 3},
		{"?since=2", []string{"Last-Event-ID", "4"}, 5},
		{"", []string{"Last-Event-ID", "0"}, 1},
		{"?since=999999", nil, 1},
		{"?type=template.&since=1", nil, 4},
	} {
		e, err := nextEvent(bufio.NewReader(a.follow(t, test.query, test.header...).Body))
		if err != nil || e.Seq != test.want {
			t.Errorf("%s %v: got %d, %v, want %d", test.query, test.header, e.Seq, err, test.want)
		}
	}
}

// A client that reconnects many times while eight other clients make changes receives
// every event once and in order.
func TestAReconnectingClientMissesNothing(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const clients, each = 8, 40
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("t-%d-%d", c, i)
				if _, err := a.manager.Templates.Create(t.Context(), vm.Template{Name: name, CPUCount: 1, RAMMiB: 64}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	const want = clients * each * 3 // created, started, ended
	last, connections := int64(0), 0
	for n := 0; n < want; {
		connections++
		stream := a.follow(t, "?since=0", "Last-Event-ID", strconv.FormatInt(last, 10))
		lines := bufio.NewReader(stream.Body)
		for range 1 + connections*7%50 {
			e, err := nextEvent(lines)
			if err != nil {
				t.Fatal(err)
			}
			if e.Seq != last+1 {
				t.Fatalf("event %d is followed by %d", last, e.Seq)
			}
			last = e.Seq
			if n++; n == want {
				break
			}
		}
		stream.Body.Close()
	}
	<-done
	if seq, err := a.store.LastEvent(t.Context()); err != nil || seq != last || connections < 10 {
		t.Errorf("the last event is %d, %v; got %d over %d connections", seq, err, last, connections)
	}
}

// narrow is a listener for connections with small send buffers.
type narrow struct{ net.Listener }

func (n narrow) Accept() (net.Conn, error) {
	c, err := n.Listener.Accept()
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

func TestSlowClientIsDisconnectedAndCanContinue(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.tune = func(s *Server) { s.eventTimeout = 200 * time.Millisecond } })
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.base = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- a.Serve(ctx, narrow{l}) }()
	t.Cleanup(func() { cancel(); <-served })
	filler := vm.Event{Type: "daemon.started", Resource: vm.Resource{Kind: "daemon"}, Data: json.RawMessage(`{"x":"` + strings.Repeat("x", 10000) + `"}`)}
	events := slices.Repeat([]vm.Event{filler}, 1000) // 10 MB: more than any buffer on the way
	if err := a.manager.Tell(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	c := a.dial(t)
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, a.head("GET /events?since=0")+"Accept: "+streamMedia+"\r\n\r\n")
	// The client reads nothing until the server has disconnected it.
	waitFor(t, func() bool { return strings.Contains(a.log.String(), "disconnect a client of the event stream") })
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	lines, last := bufio.NewReader(resp.Body), int64(0)
	for {
		e, err := nextEvent(lines)
		if err != nil {
			break // the stream ends within an event
		}
		last = e.Seq
	}
	if last >= 1000 {
		t.Fatalf("the client was not disconnected: it received all %d events", last)
	}
	for cuts := 0; last < 1000; cuts++ { // a busy machine can be too slow again
		if cuts > 100 {
			t.Fatalf("disconnected %d times, the last time after event %d", cuts, last)
		}
		lines = bufio.NewReader(a.follow(t, "", "Last-Event-ID", strconv.FormatInt(last, 10)).Body)
		for e, err := nextEvent(lines); err == nil; e, err = nextEvent(lines) {
			if e.Seq != last+1 {
				t.Fatalf("got %d, want %d", e.Seq, last+1)
			}
			if last = e.Seq; last == 1000 {
				break
			}
		}
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(20 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("timeout")
		}
	}
}

func TestStoppingEndsStreamsAtOnce(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- a.Serve(ctx, l) }()
	a.base = "http://" + l.Addr().String()
	var streams []*http.Response
	for range 6 {
		streams = append(streams, a.follow(t, ""))
	}
	begun := time.Now()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second || strings.Contains(a.log.String(), "did not end in time") {
		t.Errorf("stopped after %v: %s", took, a.log)
	}
	for _, s := range streams {
		if b, err := io.ReadAll(s.Body); err != nil || len(b) != 0 {
			t.Errorf("got %q, %v", b, err)
		}
	}
}

func TestStoppingDoesNotWaitForASlowClient(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.base = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- a.Serve(ctx, narrow{l}) }()
	sent := make(chan struct{}, 1000)
	reader := a.reader
	a.reader = telling{reader, sent}
	filler := vm.Event{Type: "daemon.started", Resource: vm.Resource{Kind: "daemon"}, Data: json.RawMessage(`{"x":"` + strings.Repeat("x", 10000) + `"}`)}
	if err := a.manager.Tell(t.Context(), slices.Repeat([]vm.Event{filler}, 1000)...); err != nil {
		t.Fatal(err)
	}
	c := a.dial(t)
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, a.head("GET /events?since=0")+"Accept: "+streamMedia+"\r\n\r\n")
	<-sent // the server now sends a page that does not fit into the buffers
	begun := time.Now()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second || strings.Contains(a.log.String(), "did not end in time") {
		t.Errorf("stopped after %v: %s", took, a.log)
	}
}

// telling wraps records and signals each read of events.
type telling struct {
	Records
	read chan struct{}
}

func (r telling) Events(ctx context.Context, f vm.EventFilter, p vm.Page) ([]vm.Event, error) {
	events, err := r.Records.Events(ctx, f, p)
	r.read <- struct{}{}
	return events, err
}

// blind wraps records without events; reading events returns err.
type blind struct {
	Records
	err error
}

func (b blind) Events(context.Context, vm.EventFilter, vm.Page) ([]vm.Event, error) {
	return nil, b.err
}
func (b blind) LastEvent(context.Context) (int64, error) { return 0, nil }

// quiet never has a new event.
type quiet struct{}

func (quiet) NextEvent() <-chan struct{} { return nil }

// A sink is a response writer that collects the body.
type sink struct {
	null
	mu  sync.Mutex
	got strings.Builder
}

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(b)
}

func (s *sink) Flush() {}

// take returns the bytes written since the last call.
func (s *sink) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.got.Reset()
	return s.got.String()
}

func TestIdleStreamSendsComments(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(t.Context(), Options{}, Deps{Services: Services{Events: quiet{}}, Reader: blind{}, Tokens: oneToken{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		st, err := s.newStream(ctx, vm.EventFilter{}, openapi.ListEventsParams{})
		if err != nil {
			t.Fatal(err)
		}
		w := &sink{null: null{header: http.Header{}}}
		ended := make(chan error)
		go func() { ended <- st.Respond(w) }()
		synctest.Wait()
		if got := w.take(); got != "" || w.status != 200 {
			t.Errorf("status %d, first bytes %q", w.status, got)
		}
		for range 3 {
			<-time.After(heartbeat - time.Nanosecond)
			synctest.Wait()
			if got := w.take(); got != "" {
				t.Errorf("%q is sent too early", got)
			}
			<-time.After(time.Nanosecond)
			synctest.Wait()
			if got := w.take(); got != ":\n\n" {
				t.Errorf("the comment is %q", got)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestAStreamThatCannotReadEventsIsClosed(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.d.Reader = blind{f.d.Reader, errors.New("the disk has failed")} })
	a.want(t, 500, "GET", "/events", "")
	c := a.dial(t)
	io.WriteString(c, a.head("GET /events")+"Accept: "+streamMedia+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("the stream ended without an error")
	}
	waitFor(t, func() bool { return strings.Contains(a.log.String(), "the disk has failed") })
}

func TestAnEventWithoutDataHasAnEmptyObject(t *testing.T) {
	t.Parallel()
	if got := string(apiEvent(&vm.Event{}).Data); got != "{}" {
		t.Errorf("got %s", got)
	}
}
