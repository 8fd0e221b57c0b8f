package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"vmand/vm"
)

// answerOf returns what the request that began o is answered when its own answer
// was not kept, because the client or the daemon was gone before: what the
// handler would have answered, with the resource as it is now.
func (s *Server) answerOf(ctx context.Context, o vm.Operation, prefer string) (answer, error) {
	wait, err := parseWait(prefer)
	if err != nil {
		return answer{}, err
	}
	_, id, _ := strings.Cut(o.Resource, "/")
	switch o.Kind {
	case vm.VMStart, vm.VMStop, vm.VMRestart, vm.VMPause, vm.VMResume, vm.VMReset:
		v, err := s.reader.VM(ctx, id)
		if err != nil {
			return answer{}, err
		}
		a, err := s.acted(ctx, v, o, wait)
		return a, anew(err)
	}
	if o, err = s.wait(ctx, o.ID, maxWait*time.Second); err != nil {
		return answer{}, err
	}
	if !o.State.Ended() {
		return answer{}, &vm.Fault{Code: vm.CodeUnavailable, OperationID: o.ID, Detail: "the operation of the first request with this key is not over yet",
			Hint: "repeat the request in a moment"}
	}
	if o.Kind == vm.DiskAttach || o.Kind == vm.DiskDetach {
		return s.movedBy(ctx, o, id, wait > 0)
	}
	if o.State != vm.OpSucceeded {
		return answer{}, anew(faultOfOperation(o))
	}
	return s.succeeded(ctx, o, id)
}

// succeeded answers the request that began o, on the resource of this id.
func (s *Server) succeeded(ctx context.Context, o vm.Operation, id string) (answer, error) {
	switch o.Kind {
	case vm.TemplateDelete, vm.VMDelete, vm.DiskDelete:
		return answer{status: http.StatusNoContent}, nil
	case vm.VMAdopt, vm.DiskAdopt, vm.OrphanTerminate, vm.OrphanDelete:
		return answer{status: http.StatusOK, body: apiOperation(&o)}, nil
	}
	var a answer
	var err error
	switch kind, _, _ := strings.Cut(o.Resource, "/"); kind {
	case "templates":
		var t vm.Template
		t, err = s.reader.Template(ctx, id)
		a = templateAnswer(&t)
	case "vms":
		var v vm.VM
		v, err = s.reader.VM(ctx, id)
		a = vmAnswer(&v)
	default:
		var d vm.Disk
		d, err = s.reader.Disk(ctx, id)
		a = diskAnswer(&d)
	}
	switch o.Kind {
	case vm.TemplateCreate, vm.VMCreate, vm.DiskCreate:
		a = a.created("/" + o.Resource)
	}
	return a, err
}

// movedBy answers the request to attach or detach a disk.
func (s *Server) movedBy(ctx context.Context, o vm.Operation, id string, waited bool) (answer, error) {
	d, err := s.reader.Disk(ctx, id)
	if o.State == vm.OpSucceeded || err != nil {
		return moved(d, o, waited, err)
	}
	fault := faultOfOperation(o)
	if errors.Is(fault, vm.ErrUnavailable) && d.State.Transitional() {
		return moved(d, o, waited, nil)
	}
	return answer{}, anew(fault)
}

// anew makes the hint of a problem that is answered again and again say how to
// get another answer.
func anew(err error) error {
	var fault *vm.Fault
	if !errors.As(err, &fault) || fault.Code != vm.CodeInterrupted {
		return err
	}
	told := *fault
	told.Hint = "repeat the request with a new Idempotency-Key"
	return &told
}
