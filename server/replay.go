package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"vmand/openapi"
	"vmand/vm"
)

// answerOf returns the answer to a repeated request if the answer to the first one was
// not kept, because the client or the daemon was gone. It is the answer of the handler
// for operation o, with the current record of the resource. c is the repeated request.
func (s *Server) answerOf(ctx context.Context, o vm.Operation, c echo.Context) (answer, error) {
	h, err := parseHold(c.Request().Header.Get("Prefer"), c.QueryParam("wait_for"))
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
		a, err := s.acted(ctx, v, o, h)
		return a, withNewKeyHint(err)
	case vm.ImageCreate, vm.DiskCreate:
		if a, made, err := s.madeAgain(ctx, o, id, h, c); made {
			return a, withNewKeyHint(err)
		}
	}
	if o, err = s.wait(ctx, o.ID, maxWait*time.Second); err != nil {
		return answer{}, err
	}
	if !o.State.Ended() {
		return answer{}, &vm.Fault{
			Code:        vm.CodeUnavailable,
			OperationID: o.ID,
			Detail:      "the operation of the first request with this key is still running",
			Hint:        "repeat the request later",
		}
	}
	switch o.Kind {
	case vm.DiskAttach, vm.DiskDetach:
		return s.movedBy(ctx, o, id, h.wait > 0)
	case vm.NICAttach, vm.NICDetach:
		return s.pluggedBy(ctx, o, id, c.Param("slot"))
	}
	if o.State != vm.OpSucceeded {
		return answer{}, withNewKeyHint(faultOfOperation(o))
	}
	if o.Kind == vm.NICUpdate {
		return s.nicAnswer(ctx, id, slotOf(c.Param("slot")))
	}
	return s.succeeded(ctx, o, id, h, c)
}

// succeeded returns the answer to the request of operation o, which has succeeded on
// the resource with this id.
func (s *Server) succeeded(ctx context.Context, o vm.Operation, id string, h hold, c echo.Context) (answer, error) {
	switch o.Kind {
	case vm.TemplateDelete, vm.VMDelete, vm.DiskDelete, vm.ImageDelete, vm.NetworkDelete,
		vm.ForwardRemove, vm.CDROMEject:
		return answer{status: http.StatusNoContent}, nil
	case vm.VMAdopt, vm.DiskAdopt, vm.OrphanTerminate, vm.OrphanDelete:
		return answer{status: http.StatusOK, body: apiOperation(&o)}, nil
	}
	switch o.Kind {
	case vm.ForwardAdd:
		a, err := s.forwardCreated(ctx, id, o.Step)
		return a, withOperation(o, err)
	case vm.CDROMAttach:
		a, err := s.cdromAttached(ctx, id, o.Step)
		return a, withOperation(o, err)
	case vm.CloudInitSet:
		view, err := s.manager.CloudInit(ctx, id)
		if err != nil {
			return answer{}, err
		}
		return cloudInitAnswer(id, &view)
	}
	return s.changed(ctx, o, id, h, c)
}

// changed returns the answer to the request of operation o with the current record of
// the resource.
func (s *Server) changed(ctx context.Context, o vm.Operation, id string, h hold, c echo.Context) (answer, error) {
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
		if err == nil && o.Kind == vm.VMCreate {
			if a, started, err := s.startedAgain(ctx, v, o, h, c); started {
				return a, err
			}
		}
		a = s.vmAnswer(&v)
	case "images":
		var i vm.Image
		i, err = s.reader.Image(ctx, id)
		a = imageAnswer(&i)
	case "networks":
		var n vm.Network
		n, err = s.reader.Network(ctx, id)
		a = networkAnswer(&n)
	default:
		var d vm.Disk
		d, err = s.reader.Disk(ctx, id)
		a = diskAnswer(&d)
	}
	switch o.Kind {
	case vm.TemplateCreate, vm.VMCreate, vm.DiskCreate, vm.NetworkCreate:
		a = a.created("/" + o.Resource)
	}
	return a, err
}

// startedAgain continues a request that has created v and also starts it. The first
// start after the creation is the one of the request. It reports false if the request
// does not start the VM.
func (s *Server) startedAgain(ctx context.Context, v vm.VM, created vm.Operation, h hold,
	c echo.Context) (a answer, started bool, err error) {
	var b openapi.CreateVM
	if err := c.Bind(&b); err != nil || !value(b.Start) {
		return a, err != nil, err
	}
	starts, err := s.reader.Operations(ctx, vm.OperationFilter{
		Resource: vm.VMResource(v.ID),
		Kind:     vm.VMStart,
	}, vm.Page{After: created.Seq, Limit: 1})
	if err != nil {
		return a, true, err
	}
	if len(starts) == 0 {
		a, err = s.startCreated(ctx, v, h)
	} else {
		a, err = s.startedCreated(ctx, v, starts[0], h)
	}
	return a, true, withNewKeyHint(err)
}

// madeAgain returns the answer to a request to import an image or to copy a disk, which
// continues after its first answer. It reports false for other requests.
func (s *Server) madeAgain(ctx context.Context, o vm.Operation, id string, h hold,
	c echo.Context) (a answer, made bool, err error) {
	now := func() (answer, error) { return s.imageNow(ctx, id) }
	if o.Kind == vm.DiskCreate {
		var b openapi.CreateDisk
		if err := c.Bind(&b); err != nil || b.FromDisk == nil {
			return a, err != nil, err
		}
		now = func() (answer, error) { return s.diskNow(ctx, id) }
	}
	meanwhile, err := now()
	if err != nil && o.State.Ended() && o.State != vm.OpSucceeded {
		return a, true, faultOfOperation(o) // which removed the resource
	}
	if err != nil {
		return a, true, err
	}
	a, err = s.made(ctx, meanwhile, o, h.wait, now)
	return a, true, err
}

// movedBy returns the answer to a request to attach or detach a disk.
func (s *Server) movedBy(ctx context.Context, o vm.Operation, id string, waited bool) (answer, error) {
	d, err := s.reader.Disk(ctx, id)
	if o.State == vm.OpSucceeded || err != nil {
		return moved(d, o, waited, err)
	}
	fault := faultOfOperation(o)
	if errors.Is(fault, vm.ErrUnavailable) && d.State.Transitional() {
		return moved(d, o, waited, nil)
	}
	return answer{}, withNewKeyHint(fault)
}

// pluggedBy returns the answer to a request to attach or detach a NIC. The path of the
// request has a slot only for a detach.
func (s *Server) pluggedBy(ctx context.Context, o vm.Operation, id, slot string) (answer, error) {
	if o.Kind == vm.NICDetach && o.State == vm.OpSucceeded {
		return answer{status: http.StatusNoContent}, nil
	}
	if o.Kind == vm.NICAttach {
		slot = strings.TrimPrefix(o.Step, "nic-")
	}
	v, n, err := s.nic(ctx, id, slotOf(slot))
	if o.State == vm.OpSucceeded {
		return shownNIC(&v, &n).created(nicPath(id, slotOf(slot))), err
	}
	fault := faultOfOperation(o)
	gone := errors.Is(err, vm.ErrNotFound)
	if err != nil && !gone {
		return answer{}, err
	}
	switch {
	case !errors.Is(fault, vm.ErrUnavailable):
	case o.Kind == vm.NICDetach && gone:
		return answer{status: http.StatusNoContent}, nil
	case o.Kind == vm.NICDetach && n.State == vm.NICDetaching:
		return nicAccepted(&n, o), nil
	}
	return answer{}, withNewKeyHint(fault)
}

// slotOf parses a slot. It returns -1 for an invalid one.
func slotOf(s string) int {
	slot, err := strconv.Atoi(s)
	if err != nil {
		return -1
	}
	return slot
}

// withNewKeyHint replaces the hint of an interrupted operation: every repetition under
// the same key receives the same problem.
func withNewKeyHint(err error) error {
	var fault *vm.Fault
	if !errors.As(err, &fault) || fault.Code != vm.CodeInterrupted {
		return err
	}
	hinted := *fault
	hinted.Hint = "repeat the request with a new Idempotency-Key"
	return &hinted
}

// withOperation adds the id of the operation to a fault about a resource that the
// operation created and that does not exist any more.
func withOperation(o vm.Operation, err error) error {
	var f *vm.Fault
	if !errors.As(err, &f) {
		return err
	}
	named := *f
	named.OperationID = o.ID
	return &named
}
