package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// Consoles connects to the serial consoles of VMs.
type Consoles interface {
	Open(ctx context.Context, id string, o vm.ConsoleOptions) (vm.Console, error)
	Log(ctx context.Context, id string, offset int64) (log io.ReadCloser, end int64, err error)
}

// Reasons for the end of a console connection, in addition to the errors of the
// console.
var (
	errStopping = &vm.Fault{Code: vm.CodeUnavailable, Detail: "the daemon is shutting down"}
	errRevoked  = &vm.Fault{Code: codeForbidden, Detail: "the token was removed or changed"}
	errReader   = &vm.Fault{Code: vm.CodeState, Detail: "this connection only reads"}
)

const (
	defaultScrollback = 64 << 10
	// logInterval is the time between two reads of a log that is followed.
	logInterval = 200 * time.Millisecond
	// consoleBuffer is the maximum number of bytes of one write to a client.
	consoleBuffer = 16 << 10
)

// An approach is a request that may be upgraded to a console connection.
type approach struct {
	*http.Request
	ticket *ticket // of the request, or nil
}

type approachKey struct{}

// OpenConsole implements [openapi.StrictServerInterface].
func (s *Server) OpenConsole(ctx context.Context, r openapi.OpenConsoleRequestObject) (openapi.Response, error) {
	a, _ := ctx.Value(approachKey{}).(*approach)
	if a == nil {
		return nil, errors.New("the context of a console request does not contain the request")
	}
	o := vm.ConsoleOptions{
		Scrollback: defaultScrollback,
		Write:      value(r.Params.Write),
		TakeOver:   value(r.Params.TakeOver),
	}
	if r.Params.Scrollback != nil {
		o.Scrollback = int64(*r.Params.Scrollback)
	}
	if o.TakeOver && !o.Write {
		return nil, invalid(vm.FieldFault{Field: "take_over", Detail: "requires write=true"})
	}
	if o.Write {
		if err := a.mayWrite(vm.CallerOf(ctx)); err != nil {
			return nil, err
		}
	}
	protocol, err := upgradeOf(a.Request)
	if err != nil {
		return nil, err
	}
	ctx, end := context.WithCancelCause(ctx)
	seat, err := s.consoles.enter(r.ID, vm.CallerOf(ctx).Name, end)
	if err != nil {
		end(nil)
		return nil, err
	}
	c, err := s.Consoles.Open(ctx, r.ID, o)
	if err != nil {
		s.consoles.leave(seat)
		end(nil)
		return nil, err
	}
	return &connection{
		s:        s,
		ctx:      ctx,
		seat:     seat,
		console:  c,
		writes:   o.Write,
		protocol: protocol,
		request:  a.Request,
	}, nil
}

// mayWrite returns an error if the caller may not write to the console.
func (a *approach) mayWrite(c vm.Caller) error {
	if a.ticket != nil && !a.ticket.write {
		return &vm.Fault{
			Code:   codeForbidden,
			Detail: "the ticket does not allow writing",
			Hint:   "create a ticket with write",
		}
	}
	return permit(c, vm.RoleOperator)
}

// CreateConsoleTicket implements [openapi.StrictServerInterface].
func (s *Server) CreateConsoleTicket(ctx context.Context,
	r openapi.CreateConsoleTicketRequestObject) (openapi.Response, error) {
	write := r.Body != nil && value(r.Body.Write)
	caller := vm.CallerOf(ctx)
	if write {
		if err := permit(caller, vm.RoleOperator); err != nil {
			return nil, err
		}
	}
	if _, err := s.reader.VM(ctx, r.ID); err != nil {
		return nil, err
	}
	secret, expires, err := s.tickets.issue(caller, r.ID, write)
	if err != nil {
		return nil, err
	}
	query := url.Values{"ticket": {secret}}
	if write {
		query.Set("write", "true")
	}
	out := &openapi.ConsoleTicket{
		Ticket:    secret,
		ExpiresAt: openapi.Time{Time: expires.UTC()},
		URL:       "/vms/" + r.ID + "/console?" + query.Encode(),
	}
	return answer{body: out}.created(out.URL), nil
}

// GetConsoleLog implements [openapi.StrictServerInterface].
func (s *Server) GetConsoleLog(ctx context.Context, r openapi.GetConsoleLogRequestObject) (openapi.Response, error) {
	offset := value(r.Params.Offset)
	if tail := r.Params.Tail; tail != nil {
		if r.Params.Offset != nil {
			return nil, invalid(vm.FieldFault{Field: "tail", Detail: "must not be given together with offset"})
		}
		offset = -*tail
	}
	l := &consoleLog{s: s, ctx: ctx, id: r.ID}
	follow := value(r.Params.Follow) && ctx.Value(headKey{}) == nil // the answer to a HEAD must end
	if follow {
		ctx, end := context.WithCancelCause(ctx)
		var err error
		if l.seat, err = s.consoles.enter(r.ID, vm.CallerOf(ctx).Name, end); err != nil {
			end(nil)
			return nil, err
		}
		l.ctx = ctx
	}
	if r.Params.Tail != nil && offset == 0 { // an empty tail, not the whole log
		offset = -1
		l.skip = true
	}
	var err error
	if l.log, l.end, err = s.Consoles.Log(ctx, r.ID, offset); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// A consoleLog is the answer with the console log of a VM. With a seat it follows the
// log. It reads by offsets, so it has no gaps and no duplicates.
type consoleLog struct {
	s    *Server
	ctx  context.Context
	id   string
	seat *seat // nil if the log is not followed
	log  io.ReadCloser
	end  int64 // offset of the end of log
	skip bool  // do not send the first log
}

func (l *consoleLog) close() {
	if l.seat != nil {
		l.s.consoles.leave(l.seat)
		l.seat.end(nil)
	}
}

// Respond implements [openapi.Response].
func (l *consoleLog) Respond(w http.ResponseWriter) error {
	defer l.close()
	w.Header().Set("X-Vman-Console-End", strconv.FormatInt(l.end, 10))
	out := &byteStream{w: w}
	if err := l.send(out); err != nil || l.seat == nil {
		return err
	}
	rc := http.NewResponseController(w)
	tick := time.NewTicker(logInterval)
	defer tick.Stop()
	for {
		// Read the state before the log, or the end of the log can be missed.
		v, err := l.s.reader.VM(l.ctx, l.id)
		over := err != nil || v.State == vm.Stopped || v.State == vm.Errored
		if err := l.more(out); err != nil {
			return nil // the client has disconnected or the log was deleted; the answer has begun
		}
		if err := rc.Flush(); err != nil || over {
			return nil
		}
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			return nil
		case <-l.s.stopping.Done():
			return nil
		}
	}
}

// more sends the output since the last call.
func (l *consoleLog) more(out *byteStream) error {
	var err error
	if l.log, l.end, err = l.s.Consoles.Log(l.ctx, l.id, l.end); err != nil {
		return err
	}
	return l.send(out)
}

// send sends log and closes it.
func (l *consoleLog) send(out *byteStream) error {
	defer l.log.Close()
	out.begin()
	if l.skip {
		l.skip = false
		return nil
	}
	_, err := io.CopyBuffer(out, l.log, make([]byte, consoleBuffer))
	return err
}
