// Package server is the REST API of vmand: it lets the callers in, checks every
// request against the specification, hands it to a service or reads the
// records, and answers in JSON, errors as problems (RFC 9457).
//
// It decides nothing about virtual machines. Every error of the domain becomes
// an HTTP status in one table (problem.go), whoever noticed it: the router, the
// validation, the decoding of a body, a handler or a panic.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"vmand/openapi"
	"vmand/vm"
)

// Options are what a [Server] can be told.
type Options struct {
	Version string   // of vmand: X.Y.Z
	DryRun  bool     // every answer says that no QEMU is ever started
	Group   string   // name or number of the group that may use the unix socket; empty for none
	Hosts   []string // names, besides IP addresses, localhost and the host's own, the server is called by
	// BodyTimeout is how long the body of a request may take to arrive; 10 s if zero.
	BodyTimeout time.Duration
	// StopTimeout is how long requests may take to end when the server stops; 10 s if zero.
	StopTimeout time.Duration
}

// Services are the use cases that the handlers call, one service per kind of resource. The
// file that uses a service declares its interface.
type Services struct {
	Templates  Templates
	VMs        VMs
	Disks      Disks
	Images     Images
	Networks   Networks
	NICs       NICs
	Forwards   Forwards
	CDROMs     CDROMs
	CloudInits CloudInits
	Guests     Guests
	Consoles   Consoles
	Orphans    Orphans
	Operations Operations
	Events     Events
}

// Records are what is recorded, and where answers are kept; see [vm.Store].
type Records interface {
	vm.Reader
	KeepReply(ctx context.Context, operationID string, r vm.Reply) error
}

// Deps are the parts of vmand a [Server] works with. All are needed.
type Deps struct {
	Services
	Reader   Records
	Tokens   vm.TokenStore
	Health   func(context.Context) Health
	Observer func() ObserverStatus
	Log      *slog.Logger
}

// A Server answers the API's requests.
type Server struct {
	o Options
	Services
	reader     Records
	health     func(context.Context) Health
	observer   func() ObserverStatus
	log        *slog.Logger
	auth       auth
	origin     *origin
	operations map[routeKey]*operation
	keys       turns // of the requests with an Idempotency-Key
	tickets    tickets
	consoles   consoles
	echo       *echo.Echo
	name       string // value of the Server header

	headerTimeout time.Duration // these are constants, but for tests
	heartbeat     time.Duration
	eventTimeout  time.Duration

	stopping context.Context // ends when the server begins to stop
	stop     context.CancelFunc
}

var _ openapi.StrictServerInterface = (*Server)(nil)

// New returns a server. It loads the tokens, and of the specification what
// requests are held to, which takes some 7 ms.
func New(ctx context.Context, o Options, d Deps) (*Server, error) {
	if o.BodyTimeout == 0 {
		o.BodyTimeout = 10 * time.Second
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 10 * time.Second
	}
	doc, err := openapi.Requests()
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, Services: d.Services, reader: d.Reader, health: d.Health, observer: d.Observer, log: d.Log,
		auth: auth{store: d.Tokens, group: o.Group}, origin: newOrigin(o.Hosts), operations: compile(doc),
		echo: echo.New(), name: "vmand/" + o.Version, headerTimeout: readHeaderTimeout,
		heartbeat: heartbeat, eventTimeout: eventTimeout}
	if _, err := s.auth.reload(ctx); err != nil {
		return nil, err
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.echo.Binder = binder{}
	s.echo.Use(s.middleware)
	openapi.RegisterHandlers(s.echo, openapi.NewStrictHandler(s))
	s.registerDocs()
	return s, nil
}

// ReloadTokens reads the tokens anew, after one was added, replaced or removed.
// Who came with one that is no longer what it was is no longer connected to any
// console.
func (s *Server) ReloadTokens(ctx context.Context) error {
	gone, err := s.auth.reload(ctx)
	s.tickets.revoke(gone)
	s.consoles.revoke(gone)
	return err
}

// headKey marks the context of a HEAD, which is answered like a GET.
type headKey struct{}

// ServeHTTP implements [http.Handler]. A HEAD is answered like a GET that takes
// any form: net/http leaves the body out.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead {
		get := *r
		get.Method, get.Header = http.MethodGet, r.Header.Clone()
		get.Header.Del("Accept") // or it could be held by a stream, of nothing
		get.Header.Del("Upgrade")
		r = get.WithContext(context.WithValue(r.Context(), headKey{}, true))
	}
	s.echo.ServeHTTP(w, r)
}

// Limits of a connection. There is no limit on the time of a whole request, as
// one may be held for minutes; bodies and lists have their own.
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 32 << 10
)

// Serve answers what comes in by the listeners, and closes them. When ctx ends
// it takes no more requests, answers those that wait for an operation at once,
// gives the others [Options].StopTimeout to end, and returns nil. It returns an
// error only if a listener fails. It can be called once.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	if len(listeners) == 0 {
		return errors.New("serve the API: there is nothing to listen on")
	}
	web := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       enter,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { ended <- web.Serve(l) }()
	}
	var failed error
	left := len(listeners)
	select {
	case <-ctx.Done():
	case err := <-ended:
		failed = fmt.Errorf("serve the API: %w", err)
		left--
	}
	s.stop()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.StopTimeout)
	defer cancel()
	if err := web.Shutdown(grace); err != nil {
		s.log.Warn("requests did not end in time and are cut off", "timeout", s.o.StopTimeout)
		_ = web.Close() // what it could report is that a connection was gone already
	}
	for range left {
		<-ended
	}
	s.consoles.wait(2 * stopPatience) // they are nothing a web server waits for
	return failed
}
