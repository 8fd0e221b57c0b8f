package manager

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"vmand/vm"
)

// A settler settles the resources of one kind.
type settler interface {
	// truth observes the host and returns the change that makes the records of the
	// resource true; an empty one if they are true or there is no record. It finishes
	// safe steps of interrupted operations. It must be called with the resource locked.
	truth(ctx context.Context, id string) (vm.Change, error)
	// stateName returns the name of the recorded state of the resource, "absent" without
	// a record.
	stateName(ctx context.Context, id string) (string, error)
}

// A deviceSettler is a settler for resources with devices. The devices are settled after the
// records.
type deviceSettler interface {
	// settleDevices makes the devices of the resource match the record and reports
	// whether it changed any.
	settleDevices(ctx context.Context, id string) (bool, error)
}

// Settle makes the records of a resource true: it observes the host, records the observed
// state, cleans up after an interrupted operation, and finishes its safe steps. It fails at
// once with a [vm.Fault] of code [vm.CodeBusy] if an operation holds the resource, because
// that operation records the state.
func (e *Engine) Settle(ctx context.Context, resource vm.Resource) (vm.Repair, error) {
	on, err := e.hostOf(ctx, resource)
	if err != nil {
		return vm.Repair{}, err
	}
	resources := []vm.Resource{resource}
	if on != "" {
		resources = append(resources, vm.VMResource(on))
	}
	h := &holder{what: "settling of " + resource.String(), released: make(chan struct{})}
	if _, err := e.locks.acquire(ctx, h, claim{try: true}, resources...); err != nil {
		return vm.Repair{}, err
	}
	defer e.locks.release(h)
	if now, err := e.hostOf(ctx, resource); err != nil || now != on {
		busy := &vm.Fault{Code: vm.CodeBusy, Detail: fmt.Sprintf("%s was just attached or detached", resource)}
		return vm.Repair{}, errors.Join(err, busy)
	}
	return e.settle(ctx, resource)
}

// hostOf returns the id of the VM that must be locked together with a resource: the one
// that a disk is recorded on; empty for none.
func (e *Engine) hostOf(ctx context.Context, resource vm.Resource) (string, error) {
	if resource.Kind != vm.DiskKind {
		return "", nil
	}
	d, err := e.store.Disk(ctx, resource.ID)
	return d.VMID, ignoreNotFound(err)
}

// settle is [Engine.Settle] with the locks held.
func (e *Engine) settle(ctx context.Context, resource vm.Resource) (vm.Repair, error) {
	open, err := e.store.Operations(ctx, vm.OperationFilter{Resource: resource, Open: true}, vm.Page{})
	if err != nil {
		return vm.Repair{}, err
	}
	for _, op := range open {
		if v := e.verbs[op.Kind]; v != nil {
			if err := v.cleanup(ctx, e, op); err != nil {
				return vm.Repair{}, err
			}
		}
	}
	r, err := e.settleRecords(ctx, resource)
	if err != nil {
		return vm.Repair{}, err
	}
	for _, op := range open {
		if err := e.endInterrupted(ctx, op); err != nil {
			return vm.Repair{}, err
		}
	}
	r.Changed = r.Changed || len(open) > 0
	if r.Changed {
		r.Detail = fmt.Sprintf("recorded %s in place of %s", r.Is, r.Was)
		e.log.Info("settled", "resource", resource, "was", r.Was, "is", r.Is, "op_count", len(open))
	}
	return r, nil
}

// settleRecords makes the records of a resource true, and then its devices match them.
func (e *Engine) settleRecords(ctx context.Context, resource vm.Resource) (r vm.Repair, err error) {
	s := e.settles[resource.Kind]
	if s == nil { // it is not on the host
		return vm.Repair{}, nil
	}
	if r.Was, err = s.stateName(ctx, resource.ID); err != nil {
		return r, err
	}
	c, err := s.truth(ctx, resource.ID)
	if err != nil {
		return r, err
	}
	if r.Changed = !c.Empty(); r.Changed {
		if err := e.apply(ctx, c); err != nil {
			return r, err
		}
	}
	if d, ok := s.(deviceSettler); ok {
		changed, err := d.settleDevices(ctx, resource.ID)
		if err != nil {
			return r, err
		}
		r.Changed = r.Changed || changed
	}
	r.Is, err = s.stateName(ctx, resource.ID)
	return r, err
}

// endInterrupted records the outcome of an interrupted operation: it has succeeded if
// its goal is met, and was interrupted otherwise.
func (e *Engine) endInterrupted(ctx context.Context, op vm.Operation) error {
	reached := false
	if v := e.verbs[op.Kind]; v != nil {
		var err error
		if reached, err = v.reached(ctx, e, op); err != nil {
			return err
		}
	}
	op.FinishedAt = now()
	op.State, op.Progress = vm.OpSucceeded, ptr(100)
	if !reached {
		op.State, op.Progress = vm.OpFailed, nil
		op.Key = "" // so that the same request, repeated, is carried out
		op.Problem = &vm.Problem{
			Code:   vm.CodeInterrupted,
			Detail: "the daemon ended in the middle of the operation",
			Hint:   "repeat the request",
		}
	}
	op.Log = append(op.Log, vm.LogLine{
		At: op.FinishedAt, Step: "settled", Message: "the daemon found the operation open and settled it",
	})
	return e.apply(ctx, vm.Change{Operation: &op, Events: []vm.Event{operationEvent("operation.ended", op)}})
}

// recorded reports whether the records have the resource.
func (e *Engine) recorded(ctx context.Context, resource vm.Resource) (bool, error) {
	var err error
	switch resource.Kind {
	case vm.VMKind:
		_, err = e.store.VM(ctx, resource.ID)
	case vm.DiskKind:
		_, err = e.store.Disk(ctx, resource.ID)
	case vm.ImageKind:
		_, err = e.store.Image(ctx, resource.ID)
	case vm.NetworkKind:
		_, err = e.store.Network(ctx, resource.ID)
	case vm.TemplateKind:
		_, err = e.store.Template(ctx, resource.ID)
	default:
		return false, nil
	}
	if errors.Is(err, vm.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func ignoreNotFound(err error) error {
	if errors.Is(err, vm.ErrNotFound) {
		return nil
	}
	return err
}

// recoverParallel bounds how many resources are settled at once. Each waits for a few
// answers of a QEMU, which take long on a busy host, and does little itself; a QEMU that
// does not answer costs its deadline.
const recoverParallel = 64

// Recover settles the resources that may have changed since the daemon last ended: those of
// all open operations, all VMs that are not stopped and all images without content. It must
// be called before the engine is used. The observer retries the resources that cannot be
// settled now.
func (e *Engine) Recover(ctx context.Context) error {
	todo, err := e.unsettled(ctx)
	if err != nil {
		return err
	}
	slots := make(chan struct{}, recoverParallel)
	var wg sync.WaitGroup
	for resource := range todo {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := e.Settle(ctx, resource); err != nil {
				e.log.Warn("cannot settle at start; the observer tries again", "resource", resource, "err", err)
			}
		})
	}
	wg.Wait()
	return e.Guests.recoverClocks(ctx)
}

// unsettled returns the resources that may have changed since the daemon last ended.
func (e *Engine) unsettled(ctx context.Context) (map[vm.Resource]bool, error) {
	todo := map[vm.Resource]bool{}
	open, err := e.store.Operations(ctx, vm.OperationFilter{Open: true}, vm.Page{})
	if err != nil {
		return nil, fmt.Errorf("read the open operations: %w", err)
	}
	for _, op := range open {
		todo[op.Resource] = true
	}
	vms, err := e.store.VMSummaries(ctx, vm.VMFilter{Active: true}, vm.Page{})
	if err != nil {
		return nil, fmt.Errorf("read the active VMs: %w", err)
	}
	for _, v := range vms {
		if v.State != vm.Stopped {
			todo[vm.VMResource(v.ID)] = true
		}
	}
	images, err := e.store.Images(ctx, vm.ImageFilter{Unavailable: true}, vm.Page{})
	if err != nil {
		return nil, fmt.Errorf("read the images without content: %w", err)
	}
	for _, i := range images {
		todo[vm.ImageResource(i.Name)] = true
	}
	return todo, nil
}
