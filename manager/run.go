package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"vmand/vm"
)

// A run is a running operation.
type run struct {
	request
	holder    *holder
	preempted bool          // the run cancelled another operation to get its resources
	done      chan struct{} // closed when the outcome is recorded and the lock released
	stepped   chan struct{} // of capacity 1: a step must be recorded
	intended  vm.Applied    // the rows written by the intent; valid after begin

	mu  sync.Mutex
	op  vm.Operation
	err error // the error of the operation; valid after done
}

// newRun registers a run of r and returns it with the context of its act, which
// outlives the caller's. It fails when the engine is closing.
func (e *Engine) newRun(ctx context.Context, q request) (*run, context.Context, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, nil, fmt.Errorf("make an operation id: %w", err)
	}
	at, caller := now(), vm.CallerOf(ctx)
	actCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r := &run{request: q, done: make(chan struct{}), stepped: make(chan struct{}, 1)}
	r.op = vm.Operation{
		ID: id.String(), Kind: q.kind, Resource: q.on[0], State: vm.OpRunning,
		RequestedBy: caller.Name, RequestID: caller.RequestID,
		CreatedAt: at, StartedAt: at, Log: []vm.LogLine{},
		Key: caller.Key, Fingerprint: caller.Fingerprint,
	}
	r.holder = &holder{
		opID:        r.op.ID,
		what:        fmt.Sprintf("operation %s of %s (%s)", q.kind, q.on[0], r.op.ID),
		preemptible: q.preemptible,
		reads:       q.reads,
		cancel:      cancel,
		released:    make(chan struct{}),
	}
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

// snapshot returns a copy of the current operation.
func (r *run) snapshot() vm.Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	op := r.op
	op.Log = slices.Clone(op.Log)
	return op
}

// aim sets the operation's target.
func (r *run) aim(t vm.Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.op.Target = t
}

// report is the operation's [vm.Report]: it notes a step for [Engine.saveSteps].
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

// progressBytes is how much progress is reported at a time while the total is unknown.
const progressBytes = 64 << 20

// progress is the Progress of a [vm.Import]: it notes how far the operation is, for
// [Engine.saveSteps].
func (r *run) progress(done, total int64) {
	r.mu.Lock()
	changed := false
	if total > 0 {
		percent := int(min(done*100/total, 99)) // the rest of the operation is a part of it
		changed = r.op.Progress == nil || *r.op.Progress != percent
		r.op.Progress = &percent
	} else {
		step, _, _ := strings.Cut(r.op.Step, ":")
		step = fmt.Sprintf("%s: %d MiB", step, done/progressBytes*progressBytes>>20)
		changed = r.op.Step != step
		r.op.Step = step
	}
	r.mu.Unlock()
	if changed {
		r.hasStepped()
	}
}

// wait returns the operation and its error once it has ended, or ctx's error. The operation
// continues after ctx is done.
func (r *run) wait(ctx context.Context) (vm.Operation, error) {
	select {
	case <-r.done:
		return r.snapshot(), r.err
	case <-ctx.Done():
		return r.snapshot(), context.Cause(ctx)
	}
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
	r.err = withOperation(err, r.op.ID)
}

// withOperation returns err with the id of the operation that failed.
func withOperation(err error, id string) error {
	var f *vm.Fault
	if !errors.As(err, &f) {
		return err
	}
	named := *f
	named.OperationID = id
	return &named
}

// withCause replaces the error of an operation by the cause of the end of its context, if
// the cause has more details.
func withCause(err, cause error) error {
	var p preempted
	var f *vm.Fault
	switch {
	case errors.As(cause, &p):
		return &vm.Fault{Code: vm.CodeCancelled, Detail: p.Error(), Err: err}
	case errors.As(cause, &f):
		because := *f
		because.Err = err
		return &because
	}
	return err
}

// Steps shorter than stepDelay are not written on their own; they are saved with the
// next step, since each write waits for an fsync.
const stepDelay = 200 * time.Millisecond

// saveSteps records the steps of r in the background while r runs. The returned
// function ends that and waits for an unfinished write.
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

// saveStep records a step, best effort: an error does not stop the operation.
func (e *Engine) saveStep(op vm.Operation) {
	ctx, stop := context.WithTimeout(context.Background(), recordPatience)
	defer stop()
	err := e.apply(ctx, vm.Change{Operation: &op, Events: []vm.Event{operationEvent("operation.step", op)}})
	if err != nil {
		e.log.Warn("cannot record a step of an operation", "op", op.ID, "step", op.Step, "err", err)
	}
}

func ptr[T any](v T) *T { return &v }
