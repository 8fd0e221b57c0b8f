package manager

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"vmand/vm"
)

// locks holds which operation changes which resource. There is no queue: an operation
// that finds its resource held is refused at once, so no two operations can wait for
// each other. Keys vanish when they are released.
type locks struct {
	mu   sync.Mutex
	held map[vm.Resource]*holder
}

// A holder holds one or more resources. opID is empty for a settling, which is short:
// an acquire waits for it and does not report it as busy.
type holder struct {
	opID string
	what string // for a person: "operation vm.start of vms/web-1 (<id>)"
	// preemptible holders are cancelled by a forced stop and by a delete.
	preemptible bool
	// reads are the resources it holds only because it copies their data. A claim cancels
	// a reader only if it says so: the copy may be the only one.
	reads []vm.Resource
	// ending is set while the outcome is recorded. A client may learn of the end before the
	// release, so an acquire waits for it as for a settling.
	ending   atomic.Bool
	cancel   context.CancelCauseFunc
	released chan struct{}
}

// claim determines how acquire treats a resource that is held.
type claim struct {
	preempt bool // cancel a preemptible holder and wait until it releases
	patient bool // wait for a holder that cannot be preempted
	try     bool // do not even wait for a settling
	// force cancels a preemptible holder that reads one of the resources. Without it the
	// claim is refused, whatever the other fields say.
	force bool
}

// preempted is the cause with which an operation is cancelled by another.
type preempted struct{ by string }

func (p preempted) Error() string { return "preempted by " + p.by }

// acquire takes all resources for h, or none, and reports whether it cancelled another
// operation for that. It fails with a [vm.Fault] of code [vm.CodeBusy] that names the
// operation that holds a resource.
func (l *locks) acquire(
	ctx context.Context, h *holder, c claim, resources ...vm.Resource,
) (didPreempt bool, err error) {
	for {
		other, on := l.tryAcquire(h, resources)
		if other == nil {
			return didPreempt, nil
		}
		reading := slices.Contains(other.reads, on)
		switch {
		case (other.opID == "" || other.ending.Load()) && !c.try:
		case reading && !(c.force && other.preemptible):
			return false, readFault(on.String(), other)
		case reading, c.preempt && other.preemptible:
			other.cancel(preempted{by: h.what})
			didPreempt = true
		case c.patient:
		default:
			return false, &vm.Fault{
				Code: vm.CodeBusy, OperationID: other.opID,
				Detail: fmt.Sprintf("%s is busy with the %s", on, other.what),
				Hint:   "wait for that operation to end and try again",
			}
		}
		select {
		case <-other.released:
		case <-ctx.Done():
			return false, fmt.Errorf("wait for %s: %w", on, context.Cause(ctx))
		}
	}
}

// readFault is the fault of a request that would take the source of a copy from its
// reader.
func readFault(source string, reader *holder) *vm.Fault {
	f := &vm.Fault{
		Code: vm.CodeBusy, OperationID: reader.opID,
		Detail: fmt.Sprintf("%s is busy: the %s needs it", source, reader.what),
		Hint:   "wait for that operation to end and try again",
	}
	if reader.preemptible {
		f.Hint = "wait for that operation to end, or cancel it, and try again"
	}
	return f
}

// tryAcquire takes all resources for h and returns nil, or takes none and returns the
// holder of one of them with that resource.
func (l *locks) tryAcquire(h *holder, resources []vm.Resource) (other *holder, on vm.Resource) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range resources {
		if other := l.held[r]; other != nil {
			return other, r
		}
	}
	if l.held == nil {
		l.held = map[vm.Resource]*holder{}
	}
	for _, r := range resources {
		l.held[r] = h
	}
	return nil, vm.Resource{}
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
func (l *locks) busy(resource vm.Resource) bool { return l.holderOf(resource) != "" }

// holderOf describes the holder of the resource; it returns "" if the resource is free.
func (l *locks) holderOf(resource vm.Resource) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.held[resource]; h != nil {
		return h.what
	}
	return ""
}
