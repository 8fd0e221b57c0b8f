package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"vmand/openapi"
	"vmand/store"
	"vmand/vm"
	"vmand/vm/vmtest"
)

// An api is the API on a TCP address, with the real manager and database and a fake
// driver.
type api struct {
	*Server
	driver  *vmtest.Driver
	network *vmtest.Network
	store   *store.Store
	manager *vm.Manager
	token   string
	base    string // http://127.0.0.1:port
	log     *logBuffer
}

// A logBuffer collects the JSON lines of the log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// take returns the lines since the last call.
func (b *logBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

// A fixture is the configuration of newAPI. Tests change it.
type fixture struct {
	o    Options
	d    Deps
	tune func(*Server)
}

func newAPI(t testing.TB, change ...func(*fixture)) *api {
	t.Helper()
	ctx := t.Context()
	a := &api{driver: &vmtest.Driver{}, network: &vmtest.Network{}, log: &logBuffer{}}
	var err error
	a.store, err = store.Open(ctx, store.Options{Path: filepath.Join(t.TempDir(), "vman.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.store.Close() })
	if err := a.store.Apply(ctx, vm.Change{NewNetwork: &vm.Network{
		Name:    vm.DefaultNetwork,
		Mode:    vm.NetworkNAT,
		Bridge:  vm.DefaultNetwork,
		Subnet:  netip.MustParsePrefix("192.168.100.0/24"),
		Gateway: netip.MustParseAddr("192.168.100.1"),
		Domain:  "vman0.internal",
	}}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewJSONHandler(a.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a.manager = vm.NewManager(a.store, a.driver, a.network, vm.Options{}, log)
	secret, hash := NewToken()
	a.token = secret
	if err := a.store.PutToken(ctx, vm.Token{Name: "admin", Role: vm.RoleAdmin, Hash: hash}); err != nil {
		t.Fatal(err)
	}
	f := fixture{o: Options{Version: "1.2.3"}, d: Deps{Manager: a.manager, Reader: a.store, Tokens: a.store, Log: log,
		Health:   func(context.Context) Health { return Health{QEMU: Check{Detail: "QEMU 7.2"}} },
		Observer: func() ObserverStatus { return ObserverStatus{Status: "starting", CheckInterval: 5e9} }}}
	for _, c := range change {
		c(&f)
	}
	if a.Server, err = New(ctx, f.o, f.d); err != nil {
		t.Fatal(err)
	}
	if f.tune != nil {
		f.tune(a.Server)
	}
	l, err := ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.base = "http://" + l.Addr().String()
	a.serve(t, l)
	return a
}

// serve runs the server until the test ends.
func (a *api) serve(t testing.TB, l ...net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Serve(ctx, l...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		closing, stop := context.WithCancel(context.Background())
		stop()
		a.manager.Close(closing)
	})
}

// A reply is an answer, with its body, that conforms to the contract.
type reply struct {
	*http.Response
	body []byte
}

func (r reply) problem(t *testing.T) openapi.Problem {
	t.Helper()
	var p openapi.Problem
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("status %d, body %q: %v", r.StatusCode, r.body, err)
	}
	return p
}

func into[T any](t *testing.T, r reply) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatalf("status %d, body %q: %v", r.StatusCode, r.body, err)
	}
	return v
}

// ask sends a request with the token and returns the answer. header is a list of names
// and values; an empty value removes a header.
func (a *api) ask(t *testing.T, method, path, body string, header ...string) reply {
	t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, a.base+path, content)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			r.Header.Del(header[i])
		} else {
			r.Header.Add(header[i], header[i+1])
		}
	}
	return send(t, http.DefaultClient, r)
}

// want is ask; it fails the test if the answer has another status.
func (a *api) want(t *testing.T, status int, method, path, body string, header ...string) reply {
	t.Helper()
	r := a.ask(t, method, path, body, header...)
	if r.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d; body %s", method, path, r.StatusCode, status, r.body)
	}
	return r
}

// wantCode is want for a problem; it fails the test if the problem has another code.
func (a *api) wantCode(t *testing.T, status int, code, method, path, body string, header ...string) {
	t.Helper()
	if p := a.want(t, status, method, path, body, header...).problem(t); string(p.Code) != code {
		t.Errorf("%s %s: %+v, want the code %s", method, path, p, code)
	}
}

// operation returns the operation that r has in its Location.
func (a *api) operation(t *testing.T, r reply) openapi.Operation {
	t.Helper()
	return into[openapi.Operation](t, a.want(t, 200, "GET", r.Header.Get("Location"), ""))
}

func send(t *testing.T, client *http.Client, r *http.Request) reply {
	t.Helper()
	resp, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: read the answer: %v", r.Method, r.URL, err)
	}
	if err := conforms(r.Method, r.URL, resp.StatusCode, resp.Header, body); err != nil {
		t.Errorf("%s %s: status %d: the answer does not conform to the contract: %v\n%s", r.Method, r.URL,
			resp.StatusCode, err, body)
	}
	return reply{resp, body}
}

// specification returns the contract and a kin-openapi router for it.
var specification = sync.OnceValues(func() (*openapi3.T, routers.Router) {
	doc, err := openapi.Load()
	if err != nil {
		panic(err)
	}
	doc.Servers = nil // accept every address
	for _, media := range []string{"application/yaml", "text/html", "text/event-stream"} {
		openapi3filter.RegisterBodyDecoder(media, openapi3filter.PlainBodyDecoder)
	}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		panic(err)
	}
	return doc, router
})

// conforms returns an error if an answer does not conform to the contract.
func conforms(method string, u *url.URL, status int, header http.Header, body []byte) error {
	doc, router := specification()
	if method == http.MethodHead {
		return nil // not in the contract
	}
	r := &http.Request{Method: method, URL: u, Header: http.Header{}}
	route, params, err := router.FindRoute(r)
	if err != nil || status == http.StatusMethodNotAllowed {
		return conformsNowhere(doc, status, header, body)
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, Route: route, PathParams: params},
		Status:                 status, Header: header, Body: io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	return openapi3filter.ValidateResponse(context.Background(), in)
}

// conformsNowhere is conforms for a request that is no operation of the contract: the
// answer must be a problem.
func conformsNowhere(doc *openapi3.T, status int, header http.Header, body []byte) error {
	if status == http.StatusNoContent && header.Get("Allow") != "" {
		return nil // OPTIONS
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	for _, name := range []string{"X-Request-Id", "Server"} {
		if header.Get(name) == "" {
			return &openapi3filter.ResponseError{Reason: name + " is missing"}
		}
	}
	return doc.Components.Schemas["Problem"].Value.VisitJSON(v, openapi3.MultiErrors())
}

// Bodies of common requests.
const (
	smallTemplate = `{"name":"small","cpu_count":2,"ram_amount":512}`
	webVM         = `{"template_name":"small","name":"web-1"}`
)

func (a *api) withVM(t *testing.T) *api {
	t.Helper()
	a.want(t, 201, "POST", "/templates", smallTemplate)
	a.want(t, 201, "POST", "/vms", webVM)
	return a
}
