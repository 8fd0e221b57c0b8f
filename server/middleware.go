package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"vmand/vm"
)

const (
	headerRequestID = "X-Request-Id"
	maxRequestID    = 128
)

// An exchange is a request and its answer.
type exchange struct {
	c      echo.Context
	start  time.Time
	caller vm.Caller
	fault  *vm.Fault // the problem that was sent, or nil
	err    error     // the cause of fault
	stack  string    // of a panic, or empty
}

// middleware is the only middleware: it sets the request id, authenticates, validates,
// answers errors and logs. One function instead of a chain keeps the order of these
// steps in one place.
func (s *Server) middleware(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		x := exchange{c: c, start: time.Now()}
		x.caller = vm.Caller{Name: "anonymous", RequestID: s.setHeaders(c)}
		if x.err = s.guarded(&x, next); x.err != nil {
			s.fail(&x)
		}
		s.logRequest(&x)
		if x.err != nil && x.fault == nil {
			// The answer has begun and cannot be completed: close the connection,
			// so that the client does not take the part for the whole.
			panic(http.ErrAbortHandler)
		}
		return nil
	}
}

// setHeaders sets the headers of every answer and returns the request id.
func (s *Server) setHeaders(c echo.Context) string {
	h := c.Response().Header()
	id := newRequestID()
	if ids := c.Request().Header[headerRequestID]; len(ids) == 1 && validRequestID(ids[0]) {
		id = ids[0]
	}
	s.setCommonHeaders(h, id)
	h.Set("Vary", "Accept-Encoding")
	if len(c.Request().TransferEncoding) > 0 {
		// net/http accepts Content-Length beside Transfer-Encoding, and does not show it to
		// the handler. What follows such a body may be meant for another request (RFC 9112, 6.3).
		h.Set("Connection", "close")
	}
	return id
}

// setCommonHeaders sets the headers of every answer with this request id.
func (s *Server) setCommonHeaders(h http.Header, id string) {
	h.Set(headerRequestID, id)
	h.Set("Server", s.name)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if s.o.DryRun {
		h.Set("X-Vman-Dry-Run", "true")
	}
}

func validRequestID(id string) bool {
	for i := range len(id) {
		b := id[i]
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '.' && b != '_' && b != '-' {
			return false
		}
	}
	return id != "" && len(id) <= maxRequestID
}

// newRequestID returns 16 random hexadecimal digits. They must be unique in a log, but
// need not be secret.
func newRequestID() string {
	return strconv.FormatUint(rand.Uint64()|1<<63, 16)
}

// guarded carries out the request. It returns a panic as an error.
func (s *Server) guarded(x *exchange, next echo.HandlerFunc) (err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler { // net/http handles this value itself
			panic(p)
		}
		x.stack = string(debug.Stack())
		err = fmt.Errorf("panic: %v", p)
	}()
	if err := s.admit(x); err != nil {
		return err
	}
	if x.caller.Key != "" {
		return s.once(x, next)
	}
	if x.c.Request().Method == http.MethodOptions {
		if methods, ok := allowed(x.c); ok {
			x.c.Response().Header().Set("Allow", methods)
			return x.c.NoContent(http.StatusNoContent)
		}
	}
	return next(x.c)
}

// allowed returns the methods that the path of a request supports. It reports false if the
// path supports the method of the request, or none.
func allowed(c echo.Context) (methods string, ok bool) {
	if isServerWide(c.Request()) {
		return serverMethods, true
	}
	methods, ok = c.Get(echo.ContextKeyHeaderAllow).(string) // set by the router
	return withHead(methods), ok
}

// admit checks the origin, the caller and the content of a request. It reads the body
// only of an authenticated request.
func (s *Server) admit(x *exchange) error {
	r := x.c.Request()
	if r.ProtoMajor != 1 { // net/http passes the preface of HTTP/2 on
		x.c.Response().Header().Set("Connection", "close")
		fault, _ := protocolFault(http.StatusHTTPVersionNotSupported, "")
		return fault
	}
	if r.ContentLength != 0 {
		// The deadline also applies if no handler reads the body: net/http then
		// reads some of it to be able to reuse the connection.
		_ = http.NewResponseController(x.c.Response().Writer).SetReadDeadline(x.start.Add(s.o.BodyTimeout))
	}
	if err := s.origin.check(r); err != nil {
		return err
	}
	op := s.operations[routeKey{r.Method, x.c.Path()}]
	by := approach{Request: r}
	if op == nil || !op.open {
		if err := s.enter(x, op, &by); err != nil {
			return err
		}
	}
	ctx := vm.WithCaller(r.Context(), x.caller)
	if op != nil && op.connects {
		ctx = context.WithValue(ctx, approachKey{}, &by)
	}
	if op != nil && op.streams && wantsStream(r.Header) {
		ctx = context.WithValue(ctx, streamKey{}, true)
	}
	x.c.SetRequest(r.WithContext(ctx))
	if err := checkPath(x.c); err != nil {
		return err
	}
	if op == nil {
		return nil // 404 and 405 of the router
	}
	if err := op.validate(x.c); err != nil {
		return err
	}
	limit, streamed := op.streamed(r)
	if op.keyed && !streamed {
		return x.identify()
	}
	if r.Method != http.MethodGet && len(r.Header[headerKey]) > 0 {
		return invalid(vm.FieldFault{Field: headerKey, Detail: "is not allowed: this request cannot be repeated"})
	}
	if streamed {
		return s.stream(x.c, limit)
	}
	return nil
}

// enter authenticates the caller and checks the role that op needs. A console request
// may have a ticket instead of a token.
func (s *Server) enter(x *exchange, op *operation, by *approach) error {
	r := x.c.Request()
	if op != nil && op.connects {
		if err := s.origin.checkConnection(r); err != nil {
			return err
		}
		if secret := r.URL.Query().Get("ticket"); secret != "" {
			k, err := s.tickets.redeem(secret, x.c.Param("id"))
			if err != nil {
				return err
			}
			known(r.Context())
			by.ticket, x.caller.Name, x.caller.Role = k, k.caller.Name, k.caller.Role
			return nil
		}
	}
	caller, err := s.auth.authenticate(r)
	if err != nil {
		return err
	}
	known(r.Context())
	x.caller.Name, x.caller.Role = caller.Name, caller.Role
	if op == nil {
		return nil
	}
	return permit(x.caller, op.role)
}

// known records that the connection of a request has sent valid credentials.
func known(ctx context.Context) {
	if d, _ := ctx.Value(doorKey{}).(*door); d != nil && d.conn != nil {
		d.conn.gate.know(d.conn)
	}
}

// fail answers with the problem for x.err, unless the answer has begun.
func (s *Server) fail(x *exchange) {
	if x.c.Response().Committed {
		return
	}
	if x.caller.Role != "" && !drainBody(x.c) {
		x.c.Response().Header().Set("Connection", "close") // the rest of the body is not read
	}
	x.fault = faultOf(x.err)
	if x.stack != "" {
		x.fault = &vm.Fault{
			Code:   vm.CodeInternal,
			Detail: "a defect of vmand; the log contains it under this request id",
		}
	}
	if err := writeProblem(x.c, x.fault); err != nil {
		x.err = errors.Join(x.err, err)
	}
}

// logRequest writes the one log line of a request: at level error for a defect of
// vmand, at level debug for a health check, else at level info.
func (s *Server) logRequest(x *exchange) {
	r, route := x.c.Request(), x.c.Path()
	defect := false
	if x.err != nil {
		fault := x.fault
		if fault == nil { // the answer had begun
			fault = faultOf(x.err)
		}
		defect = kinds[fault.Code].status == http.StatusInternalServerError
	}
	level := slog.LevelInfo
	switch {
	case defect:
		level = slog.LevelError
	case route == "/health":
		level = slog.LevelDebug
	}
	if !s.log.Enabled(r.Context(), level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method),
		slog.String("route", route),
		slog.String("path", short(r.URL.Path)),
		slog.Int("status", x.c.Response().Status),
		slog.Duration("took", time.Since(x.start)),
		slog.String("request_id", x.caller.RequestID),
		slog.String("caller", x.caller.Name),
	}
	if x.fault != nil {
		attrs = append(attrs, slog.String("code", string(x.fault.Code)))
	}
	if defect || x.fault != nil && x.fault.Err != nil {
		attrs = append(attrs, slog.Any("err", x.err))
	}
	if x.stack != "" {
		attrs = append(attrs, slog.String("stack", x.stack))
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}
