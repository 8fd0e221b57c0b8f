package manager

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"vmand/failpoint"
	"vmand/vm"
)

// begin is the one way to change a resource. It takes the locks, has the action ask
// the state machine, and records the intent in one transaction; then, without waiting,
// it acts and records the outcome in one transaction. It returns when the intent is
// recorded. A client that disconnects cancels nothing.
//
// If the act fails, or the daemon is killed, the intent stays recorded. The
// action's truth (at once) or [Engine.Settle] (later) resolves it by looking at the
// host.
func (e *Engine) begin(ctx context.Context, q request) (*run, error) {
	r, actCtx, err := e.newRun(ctx, q)
	if err != nil {
		return nil, err
	}
	r.preempted, err = e.locks.acquire(ctx, r.holder, q.claim, q.on...)
	if err != nil {
		e.drop(r)
		return nil, err
	}
	work, performs := q.action.(performer)
	if err := e.recordIntent(ctx, r, performs); err != nil {
		e.drop(r)
		e.locks.release(r.holder)
		return nil, err
	}
	if !performs {
		e.finish(r)
		return r, nil
	}
	go e.perform(actCtx, r, work)
	return r, nil
}

// run begins an operation and waits until it is over.
func (e *Engine) run(ctx context.Context, q request) (vm.Operation, error) {
	r, err := e.begin(ctx, q)
	if err != nil {
		return vm.Operation{}, err
	}
	return r.wait(ctx)
}

// recordIntent asks the action for its intent and records it with the operation, which
// is over then unless it performs something.
func (e *Engine) recordIntent(ctx context.Context, r *run, performs bool) (err error) {
	intent, err := e.intend(ctx, r)
	if err != nil {
		return err
	}
	if !performs {
		r.end(nil)
	}
	op := r.snapshot()
	intent.Operation = &op
	intent.Events = append(intent.Events, operationEvent("operation.started", op))
	if !performs {
		intent.Events = append(intent.Events, operationEvent("operation.ended", op))
	}
	failpoint.Hit(string(r.kind) + ".before-intent")
	r.holder.ending.Store(!performs)
	r.intended, err = e.commit(ctx, intent)
	failpoint.Hit(string(r.kind) + ".after-intent")
	return err
}

// drop ends a run: nothing more will be recorded of it.
func (e *Engine) drop(r *run) {
	r.holder.cancel(nil)
	if held, ok := r.action.(releaser); ok {
		held.release()
	}
	e.mu.Lock()
	delete(e.running, r.op.ID)
	e.mu.Unlock()
	e.wg.Done()
}

// finish ends a run whose outcome is recorded. It releases what the run holds before it
// wakes those that wait for it, so that they find the resource free.
func (e *Engine) finish(r *run) {
	e.drop(r)
	e.locks.release(r.holder)
	close(r.done)
}

// perform acts and records the outcome; after a failure it records the truth.
func (e *Engine) perform(ctx context.Context, r *run, work performer) {
	defer e.finish(r)
	actCtx, stop := context.WithTimeoutCause(ctx, r.timeout, &vm.Fault{
		Code:   vm.CodeOperationFailed,
		Detail: fmt.Sprintf("the %s did not end within %s", r.kind, r.timeout),
	})
	defer stop()
	stopSaving := e.saveSteps(r)
	outcome, err := e.act(actCtx, r, work)
	stopSaving()
	if err == nil {
		failpoint.Hit(string(r.kind) + ".before-outcome")
		if err = e.record(ctx, r, outcome, nil); err == nil {
			failpoint.Hit(string(r.kind) + ".after-outcome")
			return
		}
	} else if cause := context.Cause(actCtx); cause != nil {
		err = withCause(err, cause)
	}
	settleCtx, stop := context.WithTimeout(context.WithoutCancel(ctx), settlePatience)
	defer stop()
	truth, terr := work.truth(settleCtx)
	if terr != nil {
		e.log.Warn("cannot determine the state after a failed operation; the observer tries again",
			"op", r.op.ID, "resource", r.op.Resource, "err", terr)
	}
	if rerr := e.record(ctx, r, truth, err); rerr != nil {
		e.log.Error("cannot record the outcome of an operation; the observer settles it",
			"op", r.op.ID, "resource", r.op.Resource, "err", rerr)
	}
}

// intend and act call the action and turn a panic into an error, so that a defect
// leaves no lock behind.
func (e *Engine) intend(ctx context.Context, r *run) (intent vm.Change, err error) {
	defer e.caught(r, &err)
	return r.action.intent(ctx, r)
}

func (e *Engine) act(ctx context.Context, r *run, work performer) (outcome vm.Change, err error) {
	defer e.caught(r, &err)
	return work.act(ctx, r)
}

func (e *Engine) caught(r *run, err *error) {
	if p := recover(); p != nil {
		e.log.Error("panic in an operation", "op", r.op.ID, "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic: %v", p)
	}
}

// record ends r with err and records it together with the change.
func (e *Engine) record(ctx context.Context, r *run, c vm.Change, err error) error {
	r.end(err)
	op := r.snapshot()
	c.Operation = &op
	ended := []vm.Event{operationEvent("operation.ended", op)}
	c.Events = append(c.Events, ended...)
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), recordPatience)
	defer stop()
	r.holder.ending.Store(true)
	rerr := e.apply(ctx, c)
	if rerr != nil && err != nil {
		// The resource may have changed meanwhile, but not the outcome of the operation.
		rerr = errors.Join(rerr, e.apply(ctx, vm.Change{Operation: &op, Events: ended}))
	}
	r.holder.ending.Store(rerr == nil)
	level := e.log.Info
	if err != nil {
		level = e.log.Warn
	}
	level("operation over", "op", op.ID, "kind", op.Kind, "resource", op.Resource, "state", op.State,
		"took", op.FinishedAt.Sub(op.StartedAt), "request_id", op.RequestID, "err", err)
	return rerr
}
