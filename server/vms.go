package server

import (
	"context"
	"net/http"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// CreateVM implements [openapi.StrictServerInterface].
func (s *Server) CreateVM(ctx context.Context, r openapi.CreateVMRequestObject) (openapi.CreateVMResponseObject, error) {
	v, err := s.manager.CreateVM(ctx, vm.NewVM{ID: value(r.Body.Name), Template: r.Body.TemplateName, RootSizeMiB: mib(value(r.Body.RootDiskSize))})
	if err != nil {
		return nil, err
	}
	return answer{status: http.StatusCreated, body: (*wireVM)(&v), etag: etagOf(vmVersion(&v)), location: "/vms/" + v.ID}, nil
}

// ListVMs implements [openapi.StrictServerInterface].
func (s *Server) ListVMs(ctx context.Context, r openapi.ListVMsRequestObject) (openapi.ListVMsResponseObject, error) {
	f := vm.VMFilter{State: vm.State(value(r.Params.State)), Template: value(r.Params.TemplateName)}
	return newList(ctx, "/vms", query("state", string(f.State), "template_name", f.Template), r.Params.Limit, r.Params.Cursor,
		func(ctx context.Context, p vm.Page) ([]vm.VM, error) { return s.reader.VMs(ctx, f, p) },
		func(v *vm.VM) int64 { return v.Seq },
		func(v *vm.VM) any { return (*wireVM)(v) })
}

// GetVM implements [openapi.StrictServerInterface].
func (s *Server) GetVM(ctx context.Context, r openapi.GetVMRequestObject) (openapi.GetVMResponseObject, error) {
	v, err := s.reader.VM(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(vmVersion(&v)), r.Params.IfNoneMatch, func() any { return (*wireVM)(&v) }), nil
}

// DeleteVM implements [openapi.StrictServerInterface].
func (s *Server) DeleteVM(ctx context.Context, r openapi.DeleteVMRequestObject) (openapi.DeleteVMResponseObject, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	if err := s.manager.DeleteVM(ctx, r.ID, match); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// StartVM implements [openapi.StrictServerInterface].
func (s *Server) StartVM(ctx context.Context, r openapi.StartVMRequestObject) (openapi.StartVMResponseObject, error) {
	return s.act(ctx, r.ID, vm.OpStart, vm.StopOptions{}, r.Params.Prefer)
}

// StopVM implements [openapi.StrictServerInterface].
func (s *Server) StopVM(ctx context.Context, r openapi.StopVMRequestObject) (openapi.StopVMResponseObject, error) {
	return s.act(ctx, r.ID, vm.OpStop, stopOptions(r.Body.Force, r.Body.TimeoutSeconds), r.Params.Prefer)
}

// RestartVM implements [openapi.StrictServerInterface].
func (s *Server) RestartVM(ctx context.Context, r openapi.RestartVMRequestObject) (openapi.RestartVMResponseObject, error) {
	return s.act(ctx, r.ID, vm.OpRestart, stopOptions(r.Body.Force, r.Body.TimeoutSeconds), r.Params.Prefer)
}

// PauseVM implements [openapi.StrictServerInterface].
func (s *Server) PauseVM(ctx context.Context, r openapi.PauseVMRequestObject) (openapi.PauseVMResponseObject, error) {
	return s.act(ctx, r.ID, vm.OpPause, vm.StopOptions{}, r.Params.Prefer)
}

// ResumeVM implements [openapi.StrictServerInterface].
func (s *Server) ResumeVM(ctx context.Context, r openapi.ResumeVMRequestObject) (openapi.ResumeVMResponseObject, error) {
	return s.act(ctx, r.ID, vm.OpResume, vm.StopOptions{}, r.Params.Prefer)
}

// ResetVM implements [openapi.StrictServerInterface].
func (s *Server) ResetVM(ctx context.Context, r openapi.ResetVMRequestObject) (openapi.ResetVMResponseObject, error) {
	return s.act(ctx, r.ID, vm.OpReset, vm.StopOptions{}, r.Params.Prefer)
}

func stopOptions(force *bool, seconds *int) vm.StopOptions {
	o := vm.StopOptions{Force: value(force), Timeout: vm.DefaultStopTimeout}
	if seconds != nil {
		o.Timeout = time.Duration(*seconds) * time.Second
	}
	return o
}

// act begins an operation on a VM and waits for its end as long as the client
// prefers.
func (s *Server) act(ctx context.Context, id string, op vm.Op, o vm.StopOptions, prefer *string) (answer, error) {
	wait, err := parseWait(value(prefer))
	if err != nil {
		return answer{}, err
	}
	v, operation, err := s.manager.Do(ctx, id, op, o)
	if err != nil {
		return answer{}, err
	}
	if wait > 0 {
		if operation, err = s.wait(ctx, operation.ID, wait); err != nil {
			return answer{}, err
		}
	}
	switch {
	case wait == 0 || !operation.State.Ended():
		return answer{status: http.StatusAccepted, body: (*wireVM)(&v), location: "/operations/" + operation.ID}, nil
	case operation.State != vm.OpSucceeded:
		return answer{}, faultOfOperation(operation)
	}
	if v, err = s.reader.VM(ctx, id); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: (*wireVM)(&v), applied: true}, nil
}

// wait returns the operation when it is over, when the time is up, or when the
// server stops.
func (s *Server) wait(ctx context.Context, id string, timeout time.Duration) (vm.Operation, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	return s.manager.Wait(ctx, id)
}

// faultOfOperation returns why an operation did not succeed.
func faultOfOperation(o vm.Operation) *vm.Fault {
	if o.Problem == nil {
		return &vm.Fault{Code: vm.CodeInternal, OperationID: o.ID, Detail: "the operation did not succeed, and nothing says why"}
	}
	return &vm.Fault{Code: o.Problem.Code, Detail: o.Problem.Detail, Hint: o.Problem.Hint, OperationID: o.ID}
}
