package manager

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"vmand/failpoint"

	"vmand/vm"

	"github.com/google/uuid"
)

// A change is one operation: what to lock, what to record before, what to do,
// and what to record after. See [Engine.begin].
type change struct {
	kind        vm.Kind
	resources   []string // the first is the one the operation is of
	claim       claim
	preemptible bool
	timeout     time.Duration // of the act
	// intent looks at the resources, asks the state machine, and returns what
	// to record before anything is done.
	intent func(context.Context, *run) (vm.Change, error)
	// act does it and returns what to record when it has succeeded. Nil means
	// that recording the intent is all there is to do.
	act func(context.Context, *run) (vm.Change, error)
	// truth returns what to record when act, or the recording of its outcome,
	// has failed.
	truth func(context.Context) (vm.Change, error)
	// after, if set, is called once nothing more will be recorded.
	after func()
}

// A run is an operation on its way.
type run struct {
	holder    *holder
	preempted bool          // it cancelled another operation to get here
	done      chan struct{} // closed when the outcome is recorded and the lock released
	stepped   chan struct{} // holds one: there is a step to record
	after     func()

	mu  sync.Mutex
	op  vm.Operation
	err error // why it failed; read it after done
}

func (r *run) snapshot() vm.Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	op := r.op
	op.Log = slices.Clone(op.Log)
	return op
}

// report is the operation's [Report]: it notes a step, for [Engine.saveSteps]
// to record.
func (r *run) report(step, message string) {
	r.mu.Lock()
	r.op.Step = step
	r.op.Log = append(r.op.Log, vm.LogLine{At: now(), Step: step, Message: message})
	r.mu.Unlock()
	r.hasStepped()
}

// hasStepped tells [Engine.saveSteps] that there is something to record.
func (r *run) hasStepped() {
	select {
	case r.stepped <- struct{}{}:
	default:
	}
}

// progress is the operation's [Import].Progress: it notes how far the operation is,
// for [Engine.saveSteps] to record.
func (r *run) progress(done, total int64) {
	r.mu.Lock()
	step, _, _ := strings.Cut(r.op.Step, ":")
	if total > 0 {
		percent := int(min(done*100/total, 99)) // what follows is a part of it
		if r.op.Progress != nil && *r.op.Progress == percent {
			r.mu.Unlock()
			return
		}
		r.op.Progress = &percent
	} else {
		step = fmt.Sprintf("%s: %d MiB", step, done/progressBytes*progressBytes>>20)
		if r.op.Step == step {
			r.mu.Unlock()
			return
		}
		r.op.Step = step
	}
	r.mu.Unlock()
	r.hasStepped()
}

// progressBytes is how often progress is told of what has no known end.
const progressBytes = 64 << 20

// wait returns the operation and its error once it is over, or ctx's error. The
// operation goes on when ctx ends.
func (r *run) wait(ctx context.Context) (vm.Operation, error) {
	select {
	case <-r.done:
		return r.snapshot(), r.err
	case <-ctx.Done():
		return r.snapshot(), context.Cause(ctx)
	}
}

// begin is the one way to change a VM or a disk: take the locks, read, ask the
// state machine, record the intent in one transaction; then, without waiting,
// act and record the outcome in one transaction. It returns when the intent is
// recorded. A client that hangs up later cancels nothing.
//
// If act fails, or the daemon dies half-way, the intent stays recorded and
// truth (then) or [Engine.Settle] (later) resolves it by looking at the host.
func (e *Engine) begin(ctx context.Context, c change) (*run, error) {
	r, actCtx, err := e.newRun(ctx, c)
	if err != nil {
		return nil, err
	}
	r.preempted, err = e.locks.acquire(ctx, r.holder, c.claim, c.resources...)
	if err != nil {
		e.forget(r)
		return nil, err
	}
	intent, err := e.intend(ctx, r, c)
	if err == nil {
		if c.act == nil {
			r.end(nil)
		}
		op := r.snapshot()
		intent.Operation = &op
		intent.Events = append(intent.Events, operationEvent("operation.started", op))
		if c.act == nil {
			intent.Events = append(intent.Events, operationEvent("operation.ended", op))
		}
		failpoint.Hit(string(c.kind) + ".before-intent")
		err = e.apply(ctx, intent)
		failpoint.Hit(string(c.kind) + ".after-intent")
	}
	if err != nil {
		e.forget(r)
		e.locks.release(r.holder)
		return nil, err
	}
	if c.act == nil {
		e.finish(r)
		return r, nil
	}
	go e.carryOut(actCtx, r, c)
	return r, nil
}

func (e *Engine) newRun(ctx context.Context, c change) (*run, context.Context, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, nil, fmt.Errorf("make an operation id: %w", err)
	}
	at, caller := now(), vm.CallerOf(ctx)
	actCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r := &run{done: make(chan struct{}), stepped: make(chan struct{}, 1), after: c.after}
	r.op = vm.Operation{ID: id.String(), Kind: c.kind, Resource: c.resources[0], State: vm.OpRunning,
		RequestedBy: caller.Name, RequestID: caller.RequestID, CreatedAt: at, StartedAt: at, Log: []vm.LogLine{},
		Key: caller.Key, Fingerprint: caller.Fingerprint}
	r.holder = &holder{opID: r.op.ID, what: fmt.Sprintf("operation %s of %s (%s)", c.kind, c.resources[0], r.op.ID),
		preemptible: c.preemptible, cancel: cancel, released: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		cancel(nil)
		return nil, nil, &vm.Fault{Code: vm.CodeUnavailable, Detail: "the daemon is stopping", Hint: "try again in a moment"}
	}
	e.running[r.op.ID] = r
	e.wg.Add(1)
	return r, actCtx, nil
}

// forget ends a run that recorded nothing.
func (e *Engine) forget(r *run) {
	r.holder.cancel(nil)
	if r.after != nil {
		r.after()
	}
	e.mu.Lock()
	delete(e.running, r.op.ID)
	e.mu.Unlock()
	e.wg.Done()
}

// finish lets go of a run whose outcome is recorded. Those who wait for it come
// last, so that they find its resource free.
func (e *Engine) finish(r *run) {
	e.locks.release(r.holder)
	e.forget(r)
	close(r.done)
}

func (e *Engine) carryOut(ctx context.Context, r *run, c change) {
	defer e.finish(r)
	actCtx, stop := context.WithTimeoutCause(ctx, c.timeout, &vm.Fault{Code: vm.CodeOperationFailed,
		Detail: fmt.Sprintf("the %s was not over after %s", c.kind, c.timeout)})
	defer stop()
	stopSaving := e.saveSteps(r)
	outcome, err := e.act(actCtx, r, c)
	stopSaving()
	if err == nil {
		failpoint.Hit(string(c.kind) + ".before-outcome")
		if err = e.record(ctx, r, outcome, nil); err == nil {
			failpoint.Hit(string(c.kind) + ".after-outcome")
			return
		}
	} else if cause := context.Cause(actCtx); cause != nil {
		err = causeFault(cause, err)
	}
	settleCtx, stop := context.WithTimeout(context.WithoutCancel(ctx), settlePatience)
	defer stop()
	truth, terr := c.truth(settleCtx)
	if terr != nil {
		e.log.Warn("cannot see what is true after a failed operation; the observer will", "operation", r.op.ID, "resource", r.op.Resource, "err", terr)
	}
	if rerr := e.record(ctx, r, truth, err); rerr != nil {
		e.log.Error("cannot record how an operation ended; it is settled later", "operation", r.op.ID, "resource", r.op.Resource, "err", rerr)
	}
}

// intend and act run c.intent and c.act and turn a panic into an error, so that
// a defect leaves no lock behind.
func (e *Engine) intend(ctx context.Context, r *run, c change) (intent vm.Change, err error) {
	defer e.caught(r, &err)
	return c.intent(ctx, r)
}

func (e *Engine) act(ctx context.Context, r *run, c change) (outcome vm.Change, err error) {
	defer e.caught(r, &err)
	return c.act(ctx, r)
}

func (e *Engine) caught(r *run, err *error) {
	if p := recover(); p != nil {
		e.log.Error("panic in an operation", "operation", r.op.ID, "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic: %v", p)
	}
}

// record ends r with err and records it together with what else is true now.
func (e *Engine) record(ctx context.Context, r *run, truth vm.Change, err error) error {
	r.end(err)
	op := r.snapshot()
	truth.Operation = &op
	ended := []vm.Event{operationEvent("operation.ended", op)}
	truth.Events = append(truth.Events, ended...)
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), recordPatience)
	defer stop()
	rerr := e.apply(ctx, truth)
	if rerr != nil && err != nil {
		// What is true may have moved on; how the operation ended has not.
		rerr = errors.Join(rerr, e.apply(ctx, vm.Change{Operation: &op, Events: ended}))
	}
	level := e.log.Info
	if err != nil {
		level = e.log.Warn
	}
	level("operation over", "operation", op.ID, "kind", op.Kind, "resource", op.Resource, "state", op.State,
		"took", op.FinishedAt.Sub(op.StartedAt), "request_id", op.RequestID, "err", err)
	return rerr
}

// end sets the final state of the operation in memory.
func (r *run) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.op.FinishedAt = now()
	r.op.Problem = vm.ProblemOf(err)
	r.op.Progress = nil
	switch {
	case err == nil:
		r.op.State = vm.OpSucceeded
		r.op.Progress = ptr(100)
	case r.op.Problem.Code == vm.CodeCancelled:
		r.op.State = vm.OpCancelled
	default:
		r.op.State = vm.OpFailed
	}
	var f *vm.Fault
	if errors.As(err, &f) {
		told := *f
		told.OperationID = r.op.ID
		err = &told
	}
	r.err = err
}

// causeFault says why an operation's context ended.
func causeFault(cause, err error) error {
	var p preempted
	var f *vm.Fault
	switch {
	case errors.As(cause, &p):
		return &vm.Fault{Code: vm.CodeCancelled, Detail: p.Error(), Err: err}
	case errors.As(cause, &f):
		told := *f
		told.Err = err
		return &told
	}
	return err
}

// stepDelay is how long a step lasts at least to be recorded by itself: each
// record is a write that is waited for until it is on the disk. The
// record of what is over sooner comes with that of what follows.
const stepDelay = 200 * time.Millisecond

// saveSteps records the steps of r while it goes on, without making it wait. It
// returns a function that ends that: what follows is the outcome.
func (e *Engine) saveSteps(r *run) (stop func()) {
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-r.stepped:
			case <-ended:
				return
			}
			select {
			case <-time.After(stepDelay):
				e.saveStep(r.snapshot())
			case <-ended:
				return
			}
		}
	}()
	return func() {
		close(ended)
		<-done
	}
}

// saveStep records a step while the operation goes on. That it could not be
// recorded is no reason to stop.
func (e *Engine) saveStep(op vm.Operation) {
	ctx, stop := context.WithTimeout(context.Background(), recordPatience)
	defer stop()
	if err := e.apply(ctx, vm.Change{Operation: &op, Events: []vm.Event{operationEvent("operation.step", op)}}); err != nil {
		e.log.Warn("cannot record an operation's step", "operation", op.ID, "step", op.Step, "err", err)
	}
}

func ptr[T any](v T) *T { return &v }
