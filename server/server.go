// Package server is the REST API of vmand. It authenticates callers, validates every
// request against the contract, calls [vm.Manager] or reads the records, and answers
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
	"io"
	"log/slog"
	"net"
	"net/http"
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
}

// A Manager carries out requests; see [vm.Manager].
type Manager interface {
	CreateTemplate(ctx context.Context, t vm.Template) (vm.Template, error)
	DeleteTemplate(ctx context.Context, name string, match vm.Match) error
	CreateVM(ctx context.Context, n vm.NewVM) (vm.VM, error)
	DeleteVM(ctx context.Context, id string, match vm.Match) error
	Do(ctx context.Context, id string, op vm.Op, o vm.StopOptions) (vm.VM, vm.Operation, error)
	Wait(ctx context.Context, id string) (vm.Operation, error)
	CreateDisk(ctx context.Context, n vm.NewDisk) (vm.Disk, error)
	DeleteDisk(ctx context.Context, id string, match vm.Match) error
	AttachDisk(ctx context.Context, id, vmID, mountPoint string) (vm.Disk, vm.Operation, error)
	DetachDisk(ctx context.Context, id string) (vm.Disk, vm.Operation, error)
	ResizeDisk(ctx context.Context, id string, sizeMiB int64, match vm.Match) (vm.Disk, error)
	CopyDisk(ctx context.Context, n vm.NewDisk) (vm.Disk, vm.Operation, error)
	CreateImage(ctx context.Context, n vm.NewImage) (vm.Image, vm.Operation, error)
	UploadImage(ctx context.Context, n vm.NewImage, r io.Reader, more bool) (vm.Image, vm.Operation, error)
	ContinueUpload(ctx context.Context, name string, offset int64, r io.Reader,
		more bool) (vm.Image, vm.Operation, error)
	UpdateImage(ctx context.Context, name string, e vm.ImageEdits, match vm.Match) (vm.Image, error)
	DeleteImage(ctx context.Context, name string, match vm.Match) error
	OpenImage(ctx context.Context, name string) (vm.Image, io.ReadSeekCloser, error)
	CancelOperation(ctx context.Context, id string) (vm.Operation, error)
	UpdateVM(ctx context.Context, id string, e vm.VMEdits, match vm.Match) (vm.VM, error)
	Why(ctx context.Context, id string) (vm.Why, error)
	AdoptOrphan(ctx context.Context, resource, template string) (vm.Operation, error)
	TerminateOrphan(ctx context.Context, resource string) (vm.Operation, error)
	DeleteOrphan(ctx context.Context, resource string) (vm.Operation, error)
	NextEvent() <-chan struct{}
	CreateNetwork(ctx context.Context, n vm.Network) (vm.Network, error)
	UpdateNetwork(ctx context.Context, name string, e vm.NetworkEdits, match vm.Match) (vm.Network, error)
	DeleteNetwork(ctx context.Context, name string, match vm.Match) error
	NetworkStatus(ctx context.Context, name string) (vm.NetworkReport, error)
	AttachNIC(ctx context.Context, vmID string, n vm.NewNIC) (vm.NIC, vm.Operation, error)
	DetachNIC(ctx context.Context, vmID string, slot int, match vm.Match) (vm.NIC, bool, vm.Operation, error)
	UpdateNIC(ctx context.Context, vmID string, slot int, e vm.NICEdits, match vm.Match) (vm.NIC, error)
	AddForward(ctx context.Context, vmID string, f vm.PortForward) (vm.PortForward, error)
	RemoveForward(ctx context.Context, vmID, forwardID string, match vm.Match) error
	AttachCDROM(ctx context.Context, vmID string, n vm.NewCDROM) (vm.CDROM, error)
	EjectCDROM(ctx context.Context, vmID, id string, match vm.Match) error
	CloudInit(ctx context.Context, vmID string) (vm.CloudInitView, error)
	SetCloudInit(ctx context.Context, vmID string, c vm.CloudInit, reprovision bool,
		match vm.Match) (vm.CloudInitView, error)
	Await(ctx context.Context, vmID string, c vm.Condition) (vm.VM, error)
	CanAwait(ctx context.Context, vmID string, c vm.Condition) error
	Agent(id string) vm.Agent
	GuestInfo(ctx context.Context, id string) (vm.GuestInfo, error)
	Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error)
	ReadFile(ctx context.Context, id, path string, w io.Writer) error
	WriteFile(ctx context.Context, id, path string, r io.Reader) error
	SetPassword(ctx context.Context, id, user, password string) error
	Trim(ctx context.Context, id string) error
	Console(ctx context.Context, id string, o vm.ConsoleOptions) (vm.Console, error)
	ConsoleLog(ctx context.Context, id string, offset int64) (log io.ReadCloser, end int64, err error)
}

// Records reads the records and keeps answers; see [vm.Store].
type Records interface {
	vm.Reader
	KeepReply(ctx context.Context, operationID string, r vm.Reply) error
}

// Deps are the dependencies of a [Server]. All are required.
type Deps struct {
	Manager  Manager
	Reader   Records
	Tokens   vm.TokenStore
	Health   func(context.Context) Health
	Observer func() ObserverStatus
	Log      *slog.Logger
}

// A Server serves the API.
type Server struct {
	o          Options
	manager    Manager
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
	echo       *echo.Echo
	name       string // value of the Server header

	headerTimeout time.Duration // constant, but shorter in tests
	heartbeat     time.Duration
	eventTimeout  time.Duration

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
		manager:       d.Manager,
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
	if r.Method == http.MethodHead {
		get := *r
		get.Method, get.Header = http.MethodGet, r.Header.Clone()
		get.Header.Del("Accept") // a HEAD must not start a stream
		get.Header.Del("Upgrade")
		r = get.WithContext(context.WithValue(r.Context(), headKey{}, true))
	}
	s.echo.ServeHTTP(w, r)
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
		s.log.Warn("close connections: requests did not end in time", "timeout", s.o.StopTimeout)
		_ = web.Close() // its errors are about connections that are closed already
	}
	for range left {
		<-ended
	}
	s.consoles.wait(2 * stopPatience) // Shutdown does not wait for upgraded connections
	return failed
}
