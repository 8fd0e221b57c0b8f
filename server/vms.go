package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// VMs creates, changes, starts, stops and deletes VMs.
type VMs interface {
	Create(ctx context.Context, n vm.NewVM) (vm.VM, error)
	Update(ctx context.Context, id string, e vm.VMEdits, match vm.Match) (vm.VM, error)
	Delete(ctx context.Context, id string, match vm.Match, force bool) error
	Do(ctx context.Context, id string, op vm.Op, o vm.StopOptions) (vm.VM, vm.Operation, error)
	Await(ctx context.Context, id string, c vm.Condition) (vm.VM, error)
	CanAwait(ctx context.Context, id string, c vm.Condition) error
	RunsOrWill(ctx context.Context, id string) (vm.VM, bool, error)
	Why(ctx context.Context, id string) (vm.Why, error)
}

// CreateVM implements [openapi.StrictServerInterface].
func (s *Server) CreateVM(ctx context.Context, r openapi.CreateVMRequestObject) (openapi.Response, error) {
	b := r.Body
	h, err := parseHold(value(r.Params.Prefer), value(r.Params.WaitFor))
	if err != nil {
		return nil, err
	}
	if h.until != (vm.Condition{}) && !value(b.Start) {
		return nil, invalid(vm.FieldFault{
			Field:  "wait_for",
			Detail: "requires \"start\": true",
		})
	}
	edits := vm.VMEdits{
		Description: b.Description,
		Labels:      (*map[string]string)(b.Labels),
		Restart:     (*vm.RestartPolicy)(b.RestartPolicy),
		BootDevice:  bootDevice(b.BootDevice),

		ShutdownTimeout: seconds(b.ShutdownTimeout),
		ShutdownAction:  (*vm.ShutdownAction)(b.ShutdownAction),
	}
	if start, some := mergeAutostart(vm.Autostart{}, b.Autostart, b.AutostartOrder, b.AutostartDelay); some {
		edits.Autostart = &start
	}
	var p addressParser
	nics := newNICs(&p, b.NICs)
	if err := p.err(); err != nil {
		return nil, err
	}
	rootMiB, err := mibOf(b.RootDiskSize, b.RootDiskSizeBytes, "/root_disk_size")
	if err != nil {
		return nil, err
	}
	cloudInit, err := newCloudInit(b.CloudInit, "/cloud_init")
	if err != nil {
		return nil, err
	}
	n := vm.NewVM{
		ID:          value(b.Name),
		Template:    b.TemplateName,
		RootSizeMiB: rootMiB,
		VMEdits:     edits,
		NICs:        nics,
		Image:       value(b.Image),
		FullClone:   value(b.FullClone),
		CloudInit:   cloudInit,
	}
	for _, c := range value(b.CDROMs) {
		n.CDROMs = append(n.CDROMs, newCDROM(&c))
	}
	v, err := s.VMs.Create(ctx, n)
	if err != nil {
		return nil, err
	}
	if value(b.Start) {
		return s.startCreated(ctx, v, h)
	}
	return s.vmAnswer(&v).created("/vms/" + v.ID), nil
}

// startCreated starts v, which the request has created, and returns the answer. If the
// start fails, the VM remains.
func (s *Server) startCreated(ctx context.Context, v vm.VM, h hold) (answer, error) {
	caller := vm.CallerOf(ctx)
	caller.Key, caller.Fingerprint = "", "" // they belong to the creation
	started, o, err := s.VMs.Do(vm.WithCaller(ctx, caller), v.ID, vm.OpStart, vm.StopOptions{})
	if err != nil {
		return answer{}, notStarted(v.ID, err)
	}
	return s.startedCreated(ctx, started, o, h)
}

// startedCreated returns the answer to the request that has created v and starts it
// with operation o.
func (s *Server) startedCreated(ctx context.Context, v vm.VM, o vm.Operation, h hold) (answer, error) {
	a, err := s.held(ctx, s.vmAnswer(&v), o, h)
	if err != nil {
		return a, notStarted(v.ID, err)
	}
	if a.status != http.StatusOK {
		return a, nil
	}
	a.etag = a.body.(*wireVM).etag()
	return a.created("/vms/" + v.ID), nil
}

// resumeStart answers a repeated request to create and start a VM, whose creation
// succeeded. It starts the VM unless the first request began the start: that is the first
// start after the creation.
func (s *Server) resumeStart(ctx context.Context, created vm.Operation, h hold) (answer, error) {
	v, err := s.reader.VM(ctx, created.Resource.ID)
	if err != nil {
		return answer{}, err
	}
	filter := vm.OperationFilter{Resource: created.Resource, Kind: vm.VMStart}
	starts, err := s.reader.Operations(ctx, filter, vm.Page{After: created.Seq, Limit: 1})
	if err != nil {
		return answer{}, err
	}
	if len(starts) == 0 {
		return s.startCreated(ctx, v, h)
	}
	return s.startedCreated(ctx, v, starts[0], h)
}

// notStarted adds to the detail of a fault that the VM was created.
func notStarted(id string, err error) error {
	var f *vm.Fault
	if !errors.As(err, &f) {
		return err
	}
	longer := *f
	longer.Detail = fmt.Sprintf("VM %s was created, but: %s", id, f.Detail)
	return &longer
}

// ListVMs implements [openapi.StrictServerInterface].
func (s *Server) ListVMs(ctx context.Context, r openapi.ListVMsRequestObject) (openapi.Response, error) {
	f := vm.VMFilter{
		State:    vm.State(value(r.Params.State)),
		Template: value(r.Params.TemplateName),
		Network:  value(r.Params.Network),
	}
	label := value(r.Params.Label)
	var one wireVM // reused for each VM of the list
	f.Label, f.LabelValue, _ = strings.Cut(label, "=")
	return newList(ctx, "/vms",
		query("state", string(f.State), "template_name", f.Template, "network", f.Network, "label", label),
		r.Params.Limit, r.Params.Cursor, r.Params.IfNoneMatch,
		func(ctx context.Context, p vm.Page) ([]vm.VM, error) { return s.reader.VMs(ctx, f, p) },
		func(v *vm.VM) int64 { return v.Seq },
		func(v *vm.VM) any { one = wireVM{v, s.Guests.Agent(v.ID)}; return &one })
}

// GetVM implements [openapi.StrictServerInterface].
func (s *Server) GetVM(ctx context.Context, r openapi.GetVMRequestObject) (openapi.Response, error) {
	h, err := parseHold(value(r.Params.Prefer), value(r.Params.WaitFor))
	if err != nil {
		return nil, err
	}
	if err := permitCondition(ctx, h.until); err != nil {
		return nil, err
	}
	met := true
	if h.until != (vm.Condition{}) {
		if met, err = s.awaitVM(ctx, r.ID, h); err != nil {
			return nil, err
		}
	}
	v, err := s.reader.VM(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	if !met {
		return s.vmAccepted(&v, ""), nil
	}
	w := s.wire(&v)
	a := resource(w.etag(), r.Params.IfNoneMatch, func() any { return w })
	a.applied = h.until != (vm.Condition{})
	return a, nil
}

// permitCondition returns a fault if the caller must not wait for c: a check of it runs a program
// in the guest, or connects to a port of the guest.
func permitCondition(ctx context.Context, c vm.Condition) error {
	if c.Port == 0 && !c.CloudInit {
		return nil
	}
	err := permit(vm.CallerOf(ctx), vm.RoleOperator)
	if f := (*vm.Fault)(nil); errors.As(err, &f) {
		f.Detail = "wait_for=port:N and wait_for=cloud-init need the role " + string(vm.RoleOperator)
	}
	return err
}

// awaitVM waits for the condition of h and reports whether it was met in time. It fails if
// too many requests are held, and as [VMs].Await.
func (s *Server) awaitVM(ctx context.Context, id string, h hold) (met bool, err error) {
	if err := s.VMs.CanAwait(ctx, id, h.until); err != nil {
		return false, err
	}
	held, release, err := s.hold(ctx, h.wait)
	if err != nil {
		return false, err
	}
	defer release()
	_, err = s.VMs.Await(held, id, h.until)
	if err != nil && held.Err() != nil {
		return false, nil
	}
	return err == nil, err
}

// vmAccepted answers 202 with a VM, for the time being. location is that of an operation,
// empty for none.
func (s *Server) vmAccepted(v *vm.VM, location string) answer {
	return answer{status: http.StatusAccepted, body: s.wire(v), location: location}
}

// UpdateVM implements [openapi.StrictServerInterface].
func (s *Server) UpdateVM(ctx context.Context, r openapi.UpdateVMRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	b := r.Body
	edits := vm.VMEdits{
		Description: b.Description,
		Labels:      (*map[string]string)(b.Labels),
		Restart:     (*vm.RestartPolicy)(b.RestartPolicy),
		BootDevice:  bootDevice(b.BootDevice),
		Desired:     (*vm.Desired)(b.DesiredState),

		ShutdownTimeout: seconds(b.ShutdownTimeout),
		ShutdownAction:  (*vm.ShutdownAction)(b.ShutdownAction),
	}
	v, err := s.updateVM(ctx, r.ID, edits, match, func(a vm.Autostart) (vm.Autostart, bool) {
		return mergeAutostart(a, b.Autostart, b.AutostartOrder, b.AutostartDelay)
	})
	if err != nil {
		return nil, err
	}
	return s.vmAnswer(&v), nil
}

// updateVM changes a VM. A partial change of its autostart is merged with the recorded
// value and retried if the VM changes in between.
func (s *Server) updateVM(ctx context.Context, id string, edits vm.VMEdits, match vm.Match,
	merge func(vm.Autostart) (vm.Autostart, bool)) (vm.VM, error) {
	if _, some := merge(vm.Autostart{}); !some {
		return s.VMs.Update(ctx, id, edits, match)
	}
	for try := 1; ; try++ {
		read, err := s.reader.VM(ctx, id)
		if err != nil {
			return vm.VM{}, err
		}
		start, _ := merge(read.Autostart)
		edits.Autostart = &start
		now := match
		if match == nil || slices.Contains(match, vmVersion(&read)) {
			now = vm.Match{vmVersion(&read)}
		}
		v, err := s.VMs.Update(ctx, id, edits, now)
		if match != nil || !vm.HasCode(err, vm.CodePrecondition) {
			return v, err
		}
		if try == updateTries {
			return v, &vm.Fault{
				Code:   vm.CodeBusy,
				Detail: fmt.Sprintf("VM %s is changed too often by other requests", id),
				Hint:   "try again",
			}
		}
	}
}

// updateTries is the number of attempts of updateVM.
const updateTries = 10

// mergeAutostart returns a with the values that are not nil, and whether there are any.
func mergeAutostart(a vm.Autostart, enabled *bool, order, delay *int) (vm.Autostart, bool) {
	if enabled != nil {
		a.Enabled = *enabled
	}
	if order != nil {
		a.Order = *order
	}
	if delay != nil {
		a.Delay = time.Duration(*delay) * time.Second
	}
	return a, enabled != nil || order != nil || delay != nil
}

// DeleteVM implements [openapi.StrictServerInterface].
func (s *Server) DeleteVM(ctx context.Context, r openapi.DeleteVMRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	if err := s.VMs.Delete(ctx, r.ID, match, value(r.Params.Force)); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// StartVM implements [openapi.StrictServerInterface].
func (s *Server) StartVM(ctx context.Context, r openapi.StartVMRequestObject) (openapi.Response, error) {
	a, err := s.act(ctx, r.ID, vm.OpStart, vm.StopOptions{}, r.Params.Prefer, r.Params.WaitFor)
	if r.Params.WaitFor == nil || !vm.HasCode(err, vm.CodeState) && !vm.HasCode(err, vm.CodeBusy) {
		return a, err
	}
	return s.awaitStarted(ctx, r.ID, value(r.Params.Prefer), *r.Params.WaitFor, err)
}

// awaitStarted answers a request that starts a VM and waits for its guest, if the start was
// refused because the VM runs already, starts or restarts. In other states it fails with
// refusal.
func (s *Server) awaitStarted(ctx context.Context, id, prefer, waitFor string, refusal error) (answer, error) {
	h, err := parseHold(prefer, waitFor)
	if err != nil {
		return answer{}, err
	}
	v, runs, err := s.VMs.RunsOrWill(ctx, id)
	if err != nil {
		return answer{}, err
	}
	if v.State == vm.Paused || !runs {
		return answer{}, refusal
	}
	location := ""
	if f := (*vm.Fault)(nil); errors.As(refusal, &f) && f.OperationID != "" {
		location = "/operations/" + f.OperationID
	}
	met, err := s.awaitVM(ctx, id, h)
	if err != nil && !vm.HasCode(err, codeTooMany) { // waiting is a preference (RFC 7240)
		return answer{}, err
	}
	if v, err = s.reader.VM(ctx, id); err != nil {
		return answer{}, err
	}
	if !met {
		return s.vmAccepted(&v, location), nil
	}
	return answer{status: http.StatusOK, body: s.wire(&v), applied: true}, nil
}

// StopVM implements [openapi.StrictServerInterface].
func (s *Server) StopVM(ctx context.Context, r openapi.StopVMRequestObject) (openapi.Response, error) {
	o := stopOptions(r.Body.Force, r.Body.TimeoutSeconds)
	o.HostShutdown = value(r.Body.Reason) == openapi.StopRequestReasonHostShutdown
	return s.act(ctx, r.ID, vm.OpStop, o, r.Params.Prefer, nil)
}

// RestartVM implements [openapi.StrictServerInterface].
func (s *Server) RestartVM(ctx context.Context, r openapi.RestartVMRequestObject) (openapi.Response, error) {
	return s.act(ctx, r.ID, vm.OpRestart, stopOptions(r.Body.Force, r.Body.TimeoutSeconds), r.Params.Prefer,
		r.Params.WaitFor)
}

// PauseVM implements [openapi.StrictServerInterface].
func (s *Server) PauseVM(ctx context.Context, r openapi.PauseVMRequestObject) (openapi.Response, error) {
	return s.act(ctx, r.ID, vm.OpPause, vm.StopOptions{}, r.Params.Prefer, nil)
}

// ResumeVM implements [openapi.StrictServerInterface].
func (s *Server) ResumeVM(ctx context.Context, r openapi.ResumeVMRequestObject) (openapi.Response, error) {
	return s.act(ctx, r.ID, vm.OpResume, vm.StopOptions{}, r.Params.Prefer, nil)
}

// ResetVM implements [openapi.StrictServerInterface].
func (s *Server) ResetVM(ctx context.Context, r openapi.ResetVMRequestObject) (openapi.Response, error) {
	return s.act(ctx, r.ID, vm.OpReset, vm.StopOptions{}, r.Params.Prefer, nil)
}

// SendNMI implements [openapi.StrictServerInterface].
func (s *Server) SendNMI(ctx context.Context, r openapi.SendNMIRequestObject) (openapi.Response, error) {
	return s.act(ctx, r.ID, vm.OpNMI, vm.StopOptions{}, r.Params.Prefer, nil)
}

func stopOptions(force *bool, seconds *int) vm.StopOptions {
	o := vm.StopOptions{Force: value(force), OwnTimeout: seconds == nil}
	if seconds != nil {
		o.Timeout = time.Duration(*seconds) * time.Second
	}
	return o
}

// seconds returns a number of seconds as a duration, nil for nil.
func seconds(n *int) *time.Duration {
	if n == nil {
		return nil
	}
	return new(time.Duration(*n) * time.Second)
}

// act starts an operation on a VM, and waits for its end and for the condition in
// waitFor as long as the client prefers.
func (s *Server) act(ctx context.Context, id string, op vm.Op, o vm.StopOptions,
	prefer, waitFor *string) (answer, error) {
	h, err := parseHold(value(prefer), value(waitFor))
	if err != nil {
		return answer{}, err
	}
	if h.until != (vm.Condition{}) { // before the operation starts
		if err := s.VMs.CanAwait(ctx, id, h.until); err != nil {
			return answer{}, err
		}
	}
	v, operation, err := s.VMs.Do(ctx, id, op, o)
	if err != nil {
		return answer{}, err
	}
	return s.held(ctx, s.vmAnswer(&v), operation, h)
}

// vmAnswer answers with a VM.
func (s *Server) vmAnswer(v *vm.VM) answer {
	w := s.wire(v)
	return answer{status: http.StatusOK, body: w, etag: w.etag()}
}

// held answers a request whose operation goes on after the answer. It waits for the end of
// the operation, and then for h.until, for as long as the client prefers, and answers with
// meanwhile if that takes longer, or if too many requests wait.
func (s *Server) held(ctx context.Context, meanwhile answer, o vm.Operation, h hold) (answer, error) {
	accepted := answer{status: http.StatusAccepted, body: meanwhile.body, location: "/operations/" + o.ID}
	if h.wait == 0 {
		return accepted, nil
	}
	held, release, err := s.hold(ctx, h.wait)
	if err != nil { // waiting is a preference (RFC 7240)
		return accepted, nil
	}
	defer release()
	o, err = s.Operations.Wait(held, o.ID)
	switch {
	case err != nil:
		return answer{}, err
	case !o.State.Ended():
		return accepted, nil
	case o.State != vm.OpSucceeded:
		return answer{}, faultOfOperation(o)
	}
	late := false
	if h.until != (vm.Condition{}) {
		_, err := s.VMs.Await(held, o.Resource.ID, h.until)
		late = err != nil && held.Err() != nil
		if err != nil && !late {
			return answer{}, err
		}
	}
	a, err := s.shown(ctx, o)
	if late {
		accepted.body = a.body
		return accepted, err
	}
	if s.Operations.Answer(o.Kind) == vm.AnswerResource {
		a.etag = "" // the answer to an action
	}
	a.applied = true
	return a, err
}

// wait waits for the end of an operation, until timeout, or until the server stops.
func (s *Server) wait(ctx context.Context, id string, timeout time.Duration) (vm.Operation, error) {
	held, release, err := s.hold(ctx, timeout)
	if err != nil {
		return vm.Operation{}, err
	}
	defer release()
	return s.Operations.Wait(held, id)
}

// hold returns a context for work that an answer waits for. It is done after timeout
// and when the server stops. The caller must call release. It fails if too many requests
// are held.
func (s *Server) hold(ctx context.Context, timeout time.Duration) (held context.Context, release func(), err error) {
	leave, err := s.waiting.enter(vm.CallerOf(ctx).Name)
	if err != nil {
		return nil, nil, err
	}
	held, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(s.stopping, cancel)
	return held, func() { stop(); cancel(); leave() }, nil
}

// faultOfOperation returns the problem of a failed or cancelled operation as a fault.
func faultOfOperation(o vm.Operation) *vm.Fault {
	if o.Problem == nil {
		return &vm.Fault{
			Code:        vm.CodeInternal,
			OperationID: o.ID,
			Detail:      "the operation did not succeed, and its record has no reason",
		}
	}
	return &vm.Fault{Code: o.Problem.Code, Detail: o.Problem.Detail, Hint: o.Problem.Hint, OperationID: o.ID}
}
