package server

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"vmand/vm"
)

// answerOf returns the answer to a repeated request if the first answer was not stored, because
// the client disconnected or the daemon ended before it was sent. o is the operation that the
// first request began; c is of the repeated request. The answer shows the current resource.
func (s *Server) answerOf(ctx context.Context, o vm.Operation, c echo.Context) (answer, error) {
	a, err := s.replay(ctx, o, c)
	var f *vm.Fault
	if !errors.As(err, &f) {
		return a, err
	}
	fault := *f
	switch fault.Code {
	case vm.CodeNotFound: // it was deleted since
		fault.OperationID = cmp.Or(fault.OperationID, o.ID)
	case vm.CodeInterrupted:
		fault.Hint = "repeat the request with a new Idempotency-Key"
	}
	return answer{}, &fault
}

func (s *Server) replay(ctx context.Context, o vm.Operation, c echo.Context) (answer, error) {
	h, err := parseHold(c.Request().Header.Get("Prefer"), c.QueryParam("wait_for"))
	if err != nil {
		return answer{}, err
	}
	var body struct {
		Start    bool   `json:"start"`
		FromDisk string `json:"from_disk"`
	}
	if o.Kind == vm.VMCreate || o.Kind == vm.DiskCreate {
		if err := c.Bind(&body); err != nil {
			return answer{}, err
		}
	}
	// An action changes what a resource does; the answer shows the resource without a tag.
	action := c.Request().Method == http.MethodPost && s.Operations.Answer(o.Kind) == vm.AnswerResource
	if action && o.Resource.Kind == vm.VMKind || o.Kind == vm.ImageCreate || body.FromDisk != "" {
		meanwhile, err := s.shown(ctx, o)
		if err != nil && o.State.Ended() && o.State != vm.OpSucceeded {
			return answer{}, faultOfOperation(o) // the failure removed the resource
		}
		if err != nil {
			return answer{}, err
		}
		return s.held(ctx, meanwhile, o, h)
	}
	if o, err = s.wait(ctx, o.ID, maxWait*time.Second); err != nil {
		return answer{}, err
	}
	switch {
	case !o.State.Ended():
		return answer{}, &vm.Fault{
			Code: vm.CodeUnavailable, OperationID: o.ID,
			Detail: "the operation of the first request with this key is not over yet",
			Hint:   "repeat the request in a moment",
		}
	case o.State != vm.OpSucceeded:
		return s.failed(ctx, o)
	case body.Start:
		return s.resumeStart(ctx, o, h)
	}
	a, err := s.shown(ctx, o)
	if action {
		a.etag, a.applied = "", h.wait > 0
	}
	return a, err
}

// failed returns the answer to a request whose operation did not succeed. A disk or NIC
// that QEMU or the guest has not plugged or unplugged yet is still accepted.
func (s *Server) failed(ctx context.Context, o vm.Operation) (answer, error) {
	fault := faultOfOperation(o)
	if !errors.Is(fault, vm.ErrUnavailable) {
		return answer{}, fault
	}
	switch o.Kind {
	case vm.DiskAttach, vm.DiskDetach:
		d, err := s.reader.Disk(ctx, o.Resource.ID)
		if err != nil || d.State.Transitional() {
			return moved(d, o, false, err)
		}
	case vm.NICDetach:
		_, n, err := s.nic(ctx, o.Resource.ID, value(o.Target.NIC))
		switch {
		case errors.Is(err, vm.ErrNotFound):
			return answer{status: http.StatusNoContent}, nil
		case err != nil:
			return answer{}, err
		case n.State == vm.NICDetaching:
			return nicAccepted(&n, o), nil
		}
	}
	return answer{}, fault
}
