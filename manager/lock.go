package manager

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"vmand/vm"
)

// locks holds who changes which resource. There is no queue: an operation that
// finds its resource held by another is refused at once, so that no two
// operations can wait for each other. Keys vanish when they are released.
type locks struct {
	mu   sync.Mutex
	held map[string]*holder
}

// A holder is who holds one or more resources. opID is empty for a settling,
// which is short and is waited for instead of being reported as busy.
type holder struct {
	opID string
	what string // for a person: "start of vms/web-1"
	// preemptible holders give way to a forced stop and to a delete.
	preemptible bool
	cancel      context.CancelCauseFunc
	released    chan struct{}
}

// claim says how eager an acquire is.
type claim struct {
	preempt bool // cancel a preemptible holder and wait for it to let go
	patient bool // wait for a holder that cannot be preempted
	try     bool // do not even wait for a settling
}

// preempted is the cause with which an operation is cancelled by another.
type preempted struct{ by string }

func (p preempted) Error() string { return "preempted by " + p.by }

var errHeld = errors.New("held")

// acquire takes all resources for h, or none, and reports whether it had to
// preempt another operation for that. It fails with a [Fault] of code
// [CodeBusy] that names the operation in the way.
func (l *locks) acquire(ctx context.Context, h *holder, c claim, resources ...string) (didPreempt bool, err error) {
	for {
		other := l.tryAcquire(h, resources)
		if other == nil {
			return didPreempt, nil
		}
		switch {
		case other.opID == "" && !c.try:
		case c.preempt && other.preemptible:
			other.cancel(preempted{by: h.what})
			didPreempt = true
		case c.patient:
		default:
			return false, &vm.Fault{Code: vm.CodeBusy, OperationID: other.opID, Err: errHeld,
				Detail: fmt.Sprintf("%s is busy with the %s", resources[0], other.what),
				Hint:   "wait for that operation to end and try again"}
		}
		select {
		case <-other.released:
		case <-ctx.Done():
			return false, fmt.Errorf("wait for %s: %w", resources[0], context.Cause(ctx))
		}
	}
}

func (l *locks) tryAcquire(h *holder, resources []string) (other *holder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range resources {
		if other := l.held[r]; other != nil {
			return other
		}
	}
	if l.held == nil {
		l.held = map[string]*holder{}
	}
	for _, r := range resources {
		l.held[r] = h
	}
	return nil
}

func (l *locks) release(h *holder) {
	l.mu.Lock()
	for r, other := range l.held {
		if other == h {
			delete(l.held, r)
		}
	}
	l.mu.Unlock()
	close(h.released)
}

// busy reports whether an operation or a settling holds the resource.
func (l *locks) busy(resource string) bool {
	return l.holderOf(resource) != ""
}

// holderOf says who holds the resource, in words; empty if nobody does.
func (l *locks) holderOf(resource string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.held[resource]; h != nil {
		return h.what
	}
	return ""
}
