package vm

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Options are what a [Manager] can be told.
type Options struct {
	// Base is the image that root disks are overlays of; its zero value makes
	// empty root disks. Base.SizeMiB is the image's own size.
	Base DiskFile
	// Keep is how long operations that are over are remembered; 30 days if zero.
	Keep time.Duration
	// KeepEvents is how many events are remembered, and no longer than Keep;
	// 100,000 if zero.
	KeepEvents int
}

// Manager carries out the use cases: it is the only one who changes a VM or a
// disk. All of its methods may be called at the same time.
type Manager struct {
	store   Store
	driver  Driver
	network HostNetwork
	o       Options
	log     *slog.Logger
	locks   locks
	feed    feed

	reserved reservations
	contents contents
	before   map[string]time.Time // when VMs were last started, before the host was booted; set by AfterBoot alone

	saving sync.Mutex // held while marks are recorded; taken before mu

	mu      sync.Mutex
	running map[string]*run // operations on their way, by id
	closing bool
	marks   map[string]Boot      // what was seen of guests and is not recorded yet
	marking bool                 // somebody is about to record it
	asked   map[string]time.Time // when a guest's agent was last asked for its addresses, by VM id
	booting map[string]time.Time // when a guest's cloud-init was last asked how far it is, by VM id
	wg      sync.WaitGroup
}

// NewManager returns a manager of what is recorded in s and runs on d.
func NewManager(s Store, d Driver, n HostNetwork, o Options, log *slog.Logger) *Manager {
	if o.Keep == 0 {
		o.Keep = 30 * 24 * time.Hour
	}
	if o.KeepEvents == 0 {
		o.KeepEvents = 100_000
	}
	return &Manager{store: s, driver: d, network: n, o: o, log: log, running: map[string]*run{}}
}

// A Version identifies one state of one resource. Seq is never used twice, so a
// VM made anew under an old name has another version.
type Version struct{ Seq, Revision int64 }

// A Match is a precondition on the resource to change: nil for none, else one
// of the versions must be the present one.
type Match []Version

func (m Match) check(resource string, now Version) error {
	if m == nil || slices.Contains(m, now) {
		return nil
	}
	return &Fault{Code: CodePrecondition, Detail: resource + " has changed since the version in If-Match",
		Hint: "read it again and repeat the request with its new ETag"}
}

// Busy reports whether an operation holds the resource right now.
func (m *Manager) Busy(resource string) bool { return m.locks.busy(resource) }

// Prune forgets the operations that have been over for longer than
// [Options].Keep and the events that are older or too many, and returns how many.
func (m *Manager) Prune(ctx context.Context) (int, error) {
	before := now().Add(-m.o.Keep)
	operations, err := m.store.PruneOperations(ctx, before)
	if err != nil {
		return operations, err
	}
	events, err := m.store.PruneEvents(ctx, before, m.o.KeepEvents)
	return operations + events, err
}

// Wait returns the operation once it is over. When ctx is done first it returns
// the operation as it is then, without an error.
func (m *Manager) Wait(ctx context.Context, id string) (Operation, error) {
	m.mu.Lock()
	r := m.running[id]
	m.mu.Unlock()
	if r != nil {
		select {
		case <-r.done:
		case <-ctx.Done():
		}
		return r.snapshot(), nil
	}
	return m.store.Operation(context.WithoutCancel(ctx), id)
}

// CancelOperation asks an operation to give up, and waits a moment for it.
func (m *Manager) CancelOperation(ctx context.Context, id string) (Operation, error) {
	m.mu.Lock()
	r := m.running[id]
	m.mu.Unlock()
	if r == nil {
		op, err := m.store.Operation(ctx, id)
		if err != nil {
			return Operation{}, err
		}
		return op, overFault(op)
	}
	if op := r.snapshot(); op.State.Ended() {
		return op, overFault(op)
	}
	if !r.holder.preemptible {
		return r.snapshot(), &Fault{Code: CodeNotCancellable, OperationID: id, Detail: fmt.Sprintf("the %s cannot be cancelled", r.holder.what)}
	}
	r.holder.cancel(&Fault{Code: CodeCancelled, Detail: "cancelled by " + CallerOf(ctx).Name})
	ctx, stop := context.WithTimeout(ctx, cancelPatience)
	defer stop()
	op, err := m.Wait(ctx, id)
	if err == nil && (op.State == OpSucceeded || op.State == OpFailed) {
		err = overFault(op)
	}
	return op, err
}

func overFault(op Operation) *Fault {
	return &Fault{Code: CodeNotCancellable, OperationID: op.ID, Detail: fmt.Sprintf("operation %s is over: its state is %s", op.ID, op.State)}
}

// Close refuses new operations and waits for those on their way until ctx is
// done; then it makes them give up, which their records say.
func (m *Manager) Close(ctx context.Context) {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	idle := make(chan struct{})
	go func() {
		m.wg.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return
	case <-ctx.Done():
	}
	m.mu.Lock()
	for _, r := range m.running {
		r.holder.cancel(errClosing)
	}
	m.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(closePatience):
		m.log.Warn("operations did not give up in time; they are settled at the next start")
	}
}

const (
	cancelPatience = 10 * time.Second
	closePatience  = 10 * time.Second
	recordPatience = 30 * time.Second // for one transaction, when nobody waits for it
	settlePatience = 20 * time.Second // to find out what is true, and to end what must end
)

var errClosing = &Fault{Code: CodeInterrupted, Detail: "the daemon was stopped in the middle of the operation"}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
