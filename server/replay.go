package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"vmand/openapi"
	"vmand/vm"
)

// answerOf returns what the request that began o is answered when its own answer
// was not kept, because the client or the daemon was gone before: what the
// handler would have answered, with the resource as it is now. c is of the
// repeated request.
func (s *Server) answerOf(ctx context.Context, o vm.Operation, c echo.Context) (answer, error) {
	h, err := parseHold(c.Request().Header.Get("Prefer"), c.QueryParam("wait_for"))
	if err != nil {
		return answer{}, err
	}
	id := o.Resource.ID
	switch o.Kind {
	case vm.VMStart, vm.VMStop, vm.VMRestart, vm.VMPause, vm.VMResume, vm.VMReset:
		v, err := s.reader.VM(ctx, id)
		if err != nil {
			return answer{}, err
		}
		a, err := s.acted(ctx, v, o, h)
		return a, anew(err)
	case vm.ImageCreate, vm.DiskCreate:
		if a, made, err := s.madeAgain(ctx, o, id, h, c); made {
			return a, anew(err)
		}
	}
	if o, err = s.wait(ctx, o.ID, maxWait*time.Second); err != nil {
		return answer{}, err
	}
	if !o.State.Ended() {
		return answer{}, &vm.Fault{Code: vm.CodeUnavailable, OperationID: o.ID, Detail: "the operation of the first request with this key is not over yet",
			Hint: "repeat the request in a moment"}
	}
	switch o.Kind {
	case vm.DiskAttach, vm.DiskDetach:
		return s.movedBy(ctx, o, id, h.wait > 0)
	case vm.NICAttach, vm.NICDetach:
		return s.pluggedBy(ctx, o, id, c.Param("slot"))
	}
	if o.State != vm.OpSucceeded {
		return answer{}, anew(faultOfOperation(o))
	}
	if o.Kind == vm.NICUpdate {
		return s.nicAnswer(ctx, id, slotOf(c.Param("slot")))
	}
	return s.succeeded(ctx, o, id, h, c)
}

// succeeded answers the request that began o, on the resource of this id.
func (s *Server) succeeded(ctx context.Context, o vm.Operation, id string, h hold, c echo.Context) (answer, error) {
	switch o.Kind {
	case vm.TemplateDelete, vm.VMDelete, vm.DiskDelete, vm.ImageDelete, vm.NetworkDelete, vm.ForwardRemove, vm.CDROMEject:
		return answer{status: http.StatusNoContent}, nil
	case vm.VMAdopt, vm.DiskAdopt, vm.OrphanTerminate, vm.OrphanDelete:
		return answer{status: http.StatusOK, body: apiOperation(&o)}, nil
	}
	switch o.Kind {
	case vm.ForwardAdd:
		a, err := s.forwardCreated(ctx, id, o.Target.Forward)
		return a, since(o, err)
	case vm.CDROMAttach:
		a, err := s.cdromAttached(ctx, id, o.Target.CDROM)
		return a, since(o, err)
	case vm.CloudInitSet:
		view, err := s.CloudInits.Get(ctx, id)
		if err != nil {
			return answer{}, err
		}
		return cloudInitAnswer(ctx, id, &view)
	}
	return s.changed(ctx, o, id, h, c)
}

// changed answers the request that began o with the resource as it is now.
func (s *Server) changed(ctx context.Context, o vm.Operation, id string, h hold, c echo.Context) (answer, error) {
	var a answer
	var err error
	switch o.Resource.Kind {
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
		a = a.created("/" + o.Resource.String())
	}
	return a, err
}

// startedAgain goes on with a request to create a VM and to start it, which has
// created v: the first start since then is its own. It reports false if the
// request asks for none.
func (s *Server) startedAgain(ctx context.Context, v vm.VM, created vm.Operation, h hold, c echo.Context) (a answer, started bool, err error) {
	var b openapi.CreateVM
	if err := c.Bind(&b); err != nil || !value(b.Start) {
		return a, err != nil, err
	}
	starts, err := s.reader.Operations(ctx, vm.OperationFilter{Resource: vm.VMResource(v.ID), Kind: vm.VMStart}, vm.Page{After: created.Seq, Limit: 1})
	if err != nil {
		return a, true, err
	}
	if len(starts) == 0 {
		a, err = s.startCreated(ctx, v, h)
	} else {
		a, err = s.startedCreated(ctx, v, starts[0], h)
	}
	return a, true, anew(err)
}

// madeAgain answers the request to import an image or to copy a disk, which goes on
// after the first answer. It reports false for another one.
func (s *Server) madeAgain(ctx context.Context, o vm.Operation, id string, h hold, c echo.Context) (a answer, made bool, err error) {
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
		return a, true, faultOfOperation(o) // and it is gone
	}
	if err != nil {
		return a, true, err
	}
	a, err = s.made(ctx, meanwhile, o, h.wait, now)
	return a, true, err
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

// pluggedBy answers the request to attach or to detach a NIC, whose slot is in
// the path only when it is to be detached.
func (s *Server) pluggedBy(ctx context.Context, o vm.Operation, id, slot string) (answer, error) {
	if o.Kind == vm.NICDetach && o.State == vm.OpSucceeded {
		return answer{status: http.StatusNoContent}, nil
	}
	if o.Kind == vm.NICAttach {
		slot = strconv.Itoa(*o.Target.NIC)
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
	return answer{}, anew(fault)
}

// slotOf returns the number of a slot, -1 of what is none.
func slotOf(s string) int {
	slot, err := strconv.Atoi(s)
	if err != nil {
		return -1
	}
	return slot
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

// since says of what an operation has made, and is gone since, which one that was.
func since(o vm.Operation, err error) error {
	var f *vm.Fault
	if !errors.As(err, &f) {
		return err
	}
	told := *f
	told.OperationID = o.ID
	return &told
}
