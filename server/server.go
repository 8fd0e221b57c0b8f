// Package server is the REST API of vmand. It authenticates callers, validates every
// request against the contract, calls a service or reads the records, and answers
// in JSON; errors are problems (RFC 9457).
//
// It decides nothing about virtual machines. One table (problem.go) maps all errors to
// HTTP statuses: those of the router, the validation, the decoding of bodies, the
// handlers, and panics.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/labstack/echo/v4"

	"vmand/openapi"
	"vmand/vm"
)

// Options configure a [Server].
type Options struct {
	Version string   // version of vmand, X.Y.Z
	DryRun  bool     // every answer has the header X-Vman-Dry-Run
	Group   string   // name or number of the group that may use the unix socket, or empty
	Hosts   []string // names of the server in addition to IP addresses, localhost and the host name
	// BodyTimeout is how long the body of a request may take to arrive. The default
	// is 10 s.
	BodyTimeout time.Duration
	// StopTimeout is how long requests may take to end when the server stops. The
	// default is 10 s.
	StopTimeout time.Duration
	// Guest reports whether the connection from peer to local, both TCP, comes from the
	// user-mode network of a guest; such a connection is closed. If it is nil, none does.
	Guest func(peer, local netip.AddrPort) bool
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

// Records reads the records and keeps answers; see [vm.Store].
type Records interface {
	vm.Reader
	KeepReply(ctx context.Context, operationID string, r vm.Reply) error
}

// Deps are the dependencies of a [Server]. All are required.
type Deps struct {
	Services
	Reader   Records
	Tokens   vm.TokenStore
	Health   func(context.Context) Health
	Observer func() ObserverStatus
	Log      *slog.Logger
}

// A Server serves the API.
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
	keys       keyLock // of requests with an Idempotency-Key
	tickets    tickets
	consoles   consoles
	tail       tail
	streams    *quota // of event streams
	waiting    *quota // of held requests
	echo       *echo.Echo
	name       string // value of the Server header

	headerTimeout time.Duration // constant, but shorter in tests
	heartbeat     time.Duration
	eventTimeout  time.Duration
	limits        connectionLimits // of each listener

	stopping context.Context // done when the server starts to stop
	stop     context.CancelFunc
}

var _ openapi.StrictServerInterface = (*Server)(nil)

// New returns a server. It loads the tokens and the part of the contract that
// describes requests, which takes about 7 ms.
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
	s := &Server{
		o:             o,
		Services:      d.Services,
		reader:        d.Reader,
		health:        d.Health,
		observer:      d.Observer,
		log:           d.Log,
		auth:          auth{store: d.Tokens, group: o.Group},
		origin:        newOrigin(o.Hosts),
		operations:    compile(doc),
		echo:          echo.New(),
		name:          "vmand/" + o.Version,
		headerTimeout: readHeaderTimeout,
		heartbeat:     heartbeat,
		eventTimeout:  eventTimeout,
		limits:        defaultLimits(),
		tail:          tail{reader: d.Reader, events: d.Events},
		streams:       newQuota("event streams", maxStreams, maxCallerStreams),
		waiting:       newQuota("held requests", maxHeld, maxCallerHeld),
	}
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

// ReloadTokens rereads the tokens. Console connections and tickets of removed or
// changed tokens are revoked.
func (s *Server) ReloadTokens(ctx context.Context) error {
	gone, err := s.auth.reload(ctx)
	s.tickets.revoke(gone)
	s.consoles.revoke(gone)
	return err
}

// headKey marks the context of a HEAD request, which is handled as a GET.
type headKey struct{}

// ServeHTTP implements [http.Handler]. A HEAD is handled as a GET without an Accept
// header; net/http discards the body.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d, _ := r.Context().Value(doorKey{}).(*door); d != nil && d.conn != nil {
		d.conn.handling.Store(true)
	}
	r = canonical(r)
	if r.Method == http.MethodHead {
		get := *r
		get.Method, get.Header = http.MethodGet, r.Header.Clone()
		get.Header.Del("Accept") // a HEAD must not start a stream
		get.Header.Del("Upgrade")
		r = get.WithContext(context.WithValue(r.Context(), headKey{}, true))
	}
	if !wantsGzip(r.Header) {
		s.echo.ServeHTTP(w, r)
		return
	}
	c := &compressor{ResponseWriter: w}
	s.echo.ServeHTTP(c, r)
	_ = c.close() // fails if the client has disconnected; not reached if the answer broke off
}

// Limits of a connection. A whole request has no time limit, since it may be held for
// minutes; the body and the answer have their own limits.
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 32 << 10
)

// Serve serves requests on the listeners, and closes them. When ctx is done it accepts
// no more requests, answers held requests at once, waits up to [Options].StopTimeout
// for the others and returns nil. It returns an error only if a listener fails. It must
// be called once.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	if len(listeners) == 0 {
		return errors.New("serve the API: no listeners")
	}
	web := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       enter,
		ConnState:         trackIdle,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),

		DisableGeneralOptionsHandler: true, // for OPTIONS *; allowed answers it
	}
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		g := newGate(l, s.limits, s.o.Guest, s.log)
		g.replace = s.protocolProblem
		go func() { ended <- web.Serve(g) }()
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
		s.log.Warn("close connections: requests did not end in time", "timeout", s.o.StopTimeout)
		_ = web.Close() // its errors are about connections that are closed already
	}
	for range left {
		<-ended
	}
	s.consoles.wait(2 * stopPatience) // Shutdown does not wait for upgraded connections
	return failed
}
