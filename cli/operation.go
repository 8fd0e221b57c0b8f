package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"vmand/openapi/client"
)

// pollPause is the time after which a resource is read again without an event about it.
const pollPause = 2 * time.Second

// errDetached says that a command did not wait for its operation, as requested.
var errDetached = errors.New("not waited for")

// settle waits for the operation that a request has begun, and returns the resource after
// it, which read requests. Without an operation it returns the reply.
func settle[T any](ctx context.Context, a *app, subject string, r reply[T], err error,
	read func() (*http.Request, error)) (reply[T], error) {
	id := r.operation()
	if err != nil || id == "" {
		return r, err
	}
	if a.noWait {
		a.progress.clear()
		_, err := fmt.Fprintln(a.std.Out, id)
		return r, errors.Join(err, errDetached)
	}
	if _, err := a.follow(ctx, subject, id); err != nil {
		return r, err
	}
	if read == nil {
		return r, nil
	}
	return call[T](ctx, a)(read())
}

// detached reports whether err only says that the command did not wait, and removes that.
func detached(err error) (bool, error) {
	if errors.Is(err, errDetached) {
		return true, nil
	}
	return false, err
}

// follow waits for the end of an operation and shows its steps. It fails with the problem
// of the operation.
func (a *app) follow(ctx context.Context, subject, id string) (client.Operation, error) {
	ctx, stop := a.limited(ctx)
	defer stop()
	shown := 0
	op, err := watch(ctx, a, client.ListEventsParams{Resource: new("operations/" + id)},
		func() (*http.Request, error) { return client.NewGetOperationRequest(server, id, nil) },
		func(op client.Operation) (bool, error) {
			shown = a.showLog(subject, op, shown)
			if op.Progress != nil && !hasEnded(op) && a.progress.terminal {
				a.progress.step(subject, fmt.Sprintf("%s %d %%", value(op.Step), *op.Progress))
			}
			return hasEnded(op), nil
		})
	if err != nil {
		return op.value, stillRunning(ctx, err, id)
	}
	return op.value, operationError(op.value)
}

// showLog shows the steps in the log of an operation after the first shown ones, and returns
// their number.
func (a *app) showLog(subject string, op client.Operation, shown int) int {
	for _, line := range op.Log[min(shown, len(op.Log)):] {
		a.progress.step(subject, line.Message)
	}
	return max(shown, len(op.Log))
}

func hasEnded(op client.Operation) bool {
	return op.State != client.OperationStatePending && op.State != client.OperationStateRunning
}

// operationError returns the problem of an operation that did not succeed.
func operationError(op client.Operation) error {
	switch {
	case op.State == client.OperationStateSucceeded:
		return nil
	case op.Problem == nil:
		return failf(exitFailed, "operation %s is %s", op.ID, op.State)
	}
	p := *op.Problem
	p.OperationID = op.ID
	return failureOf(p, p.Status, "")
}

// stillRunning says how to follow an operation that the command no longer waits for.
func stillRunning(ctx context.Context, err error, id string) error {
	status, why := exitTimedOut, "gave up waiting"
	if f := new(failure); errors.As(err, &f) && f.status == exitNoDaemon {
		return f.hint("operation %s may continue: vman op wait %s follows it", id, id)
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errInterrupted):
		status, why = exitInterrupted, "interrupted"
	case !errors.Is(cause, context.DeadlineExceeded):
		return err
	}
	return failf(status, "%s; operation %s continues", why, id).
		hint("vman op wait %s follows it, vman op cancel %s cancels it", id, id)
}

// whileAway repeats a request during a wait while no daemon answers, for [restartPatience].
func whileAway[T any](ctx context.Context, send func() (reply[T], error)) (reply[T], error) {
	for began := time.Now(); ; {
		r, err := send()
		var f *failure
		if !errors.As(err, &f) || f.status != exitNoDaemon || time.Since(began) >= restartPatience {
			return r, err
		}
		if !pause(ctx, dialPause) {
			return r, context.Cause(ctx)
		}
	}
}

// watch reads a resource until ended reports true for it. It reads it again after each event
// that matches the filter, and after [pollPause].
func watch[T any](ctx context.Context, a *app, filter client.ListEventsParams, read func() (*http.Request, error),
	ended func(T) (bool, error)) (reply[T], error) {
	r, err := call[T](ctx, a)(read())
	if err != nil {
		return r, err
	}
	if done, err := ended(r.value); done || err != nil {
		return r, err
	}
	var listener sync.WaitGroup
	defer listener.Wait()
	listening, stop := context.WithCancel(ctx)
	defer stop()
	news := make(chan struct{}, 1)
	listener.Go(func() {
		a.listen(listening, filter, func(client.Event, json.RawMessage) error {
			select {
			case news <- struct{}{}:
			default:
			}
			return nil
		})
	})
	for {
		select {
		case <-news:
		case <-time.After(pollPause):
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
		next, err := whileAway(ctx, func() (reply[T], error) { return call[T](ctx, a)(read()) })
		if err != nil {
			return r, err
		}
		r = next
		if done, err := ended(r.value); done || err != nil {
			return r, err
		}
	}
}
