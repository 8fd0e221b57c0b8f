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

// Why a connection to a console ends, besides what the console itself says.
var (
	errStopping = &vm.Fault{Code: vm.CodeUnavailable, Detail: "the daemon is stopping"}
	errRevoked  = &vm.Fault{Code: codeForbidden, Detail: "the token is no longer good"}
	errReader   = &vm.Fault{Code: vm.CodeState, Detail: "this connection only reads"}
)

const (
	defaultScrollback = 64 << 10
	// logInterval is how often a log that is followed is looked at.
	logInterval = 200 * time.Millisecond
	// consoleBuffer is how many bytes of a console are passed on at a time.
	consoleBuffer = 16 << 10
)

// An approach is a request that may become a connection to a console.
type approach struct {
	*http.Request
	ticket *ticket // it came with, nil for none
}

type approachKey struct{}

// OpenConsole implements [openapi.StrictServerInterface].
func (s *Server) OpenConsole(ctx context.Context, r openapi.OpenConsoleRequestObject) (openapi.Response, error) {
	a, _ := ctx.Value(approachKey{}).(*approach)
	if a == nil {
		return nil, errors.New("the request of a console is not in its context")
	}
	o := vm.ConsoleOptions{Scrollback: defaultScrollback, Write: value(r.Params.Write), TakeOver: value(r.Params.TakeOver)}
	if r.Params.Scrollback != nil {
		o.Scrollback = int64(*r.Params.Scrollback)
	}
	if o.TakeOver && !o.Write {
		return nil, invalid(vm.FieldFault{Field: "take_over", Detail: "needs write=true"})
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
	return &connection{s: s, ctx: ctx, seat: seat, console: c, writes: o.Write, protocol: protocol, request: a.Request}, nil
}

func (a *approach) mayWrite(c vm.Caller) error {
	if a.ticket != nil && !a.ticket.write {
		return &vm.Fault{Code: codeForbidden, Detail: "the ticket is for reading only", Hint: "make one with write"}
	}
	return permit(c, vm.RoleOperator)
}

// CreateConsoleTicket implements [openapi.StrictServerInterface].
func (s *Server) CreateConsoleTicket(ctx context.Context, r openapi.CreateConsoleTicketRequestObject) (openapi.Response, error) {
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
	out := &openapi.ConsoleTicket{Ticket: secret, ExpiresAt: openapi.Time{Time: expires.UTC()}, URL: "/vms/" + r.ID + "/console?" + query.Encode()}
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
	follow := value(r.Params.Follow) && ctx.Value(headKey{}) == nil // of nothing there is no end
	if follow {
		ctx, end := context.WithCancelCause(ctx)
		var err error
		if l.seat, err = s.consoles.enter(r.ID, vm.CallerOf(ctx).Name, end); err != nil {
			end(nil)
			return nil, err
		}
		l.ctx = ctx
	}
	if r.Params.Tail != nil && offset == 0 { // nothing of the end, and not all of it
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

// A consoleLog answers with what a guest wrote, and goes on with it if it has a
// seat. It reads by offsets, so nothing is missing and nothing comes twice.
type consoleLog struct {
	s    *Server
	ctx  context.Context
	id   string
	seat *seat // nil: it does not go on
	log  io.ReadCloser
	end  int64 // of what log has
	skip bool  // what log has is not sent
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
		// It is found out before the last look, or the end of the log is missed.
		v, err := l.s.reader.VM(l.ctx, l.id)
		over := err != nil || v.State == vm.Stopped || v.State == vm.Errored
		if err := l.more(out); err != nil {
			return nil // the client is gone, or the log: there is nobody to tell
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

// more sends what the guest wrote since the last look.
func (l *consoleLog) more(out *byteStream) error {
	var err error
	if l.log, l.end, err = l.s.Consoles.Log(l.ctx, l.id, l.end); err != nil {
		return err
	}
	return l.send(out)
}

// send sends what there is in log and closes it.
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
