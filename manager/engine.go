// Package manager carries out the use cases of vmand. Its [Engine] is the only
// writer of the records: every change of a VM, a disk, an image or a network takes
// the resource's lock, asks the state machine, records the intent, acts and records
// the outcome. A failed step, a killed daemon and a change of the host are handled by the
// same code, which lets package vm determine the true state.
//
// Each kind of resource has a service, and each kind of operation has a verb in the file of its
// use case: docs/adding.md says how to add one.
package manager

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"vmand/vm"
)

// Options are the settings of an [Engine].
type Options struct {
	// Base is the image that root disks are overlays of; its zero value makes
	// empty root disks. Base.SizeMiB is the image's own size.
	Base vm.DiskFile
	// Keep is how long operations are remembered after their end; 30 days if zero.
	Keep time.Duration
	// KeepEvents is how many events are remembered, none for longer than Keep;
	// 100,000 if zero.
	KeepEvents int
}

// An Engine carries out every change of a resource: it locks the resource, records the
// intent, acts, records the outcome, and settles the resource after a failure or a kill. It
// is safe for concurrent use.
//
// The use cases are the methods of its services, one per kind of resource.
type Engine struct {
	Templates  *Templates
	VMs        *VMs
	Disks      *Disks
	NICs       *NICs
	Forwards   *Forwards
	CDROMs     *CDROMs
	CloudInits *CloudInits
	Networks   *Networks
	Images     *Images
	Guests     *Guests
	Consoles   *Consoles
	Orphans    *Orphans
	Operations *Operations

	store   vm.Store
	driver  vm.Driver
	network vm.HostNetwork
	o       Options
	log     *slog.Logger
	verbs   map[vm.Kind]*verb
	settles map[vm.ResourceKind]settler
	locks   locks
	feed    feed

	ctx  context.Context // done when the engine closes: for work that the next daemon repeats
	stop context.CancelFunc

	mu      sync.Mutex
	running map[string]*run // running operations, by id
	closing bool
	wg      sync.WaitGroup // of the operations and of the services' background work
}

// New returns an engine over what s records and d and n run.
func New(s vm.Store, d vm.Driver, n vm.HostNetwork, o Options, log *slog.Logger) *Engine {
	if o.Keep == 0 {
		o.Keep = 30 * 24 * time.Hour
	}
	if o.KeepEvents == 0 {
		o.KeepEvents = 100_000
	}
	e := &Engine{store: s, driver: d, network: n, o: o, log: log, running: map[string]*run{}, verbs: map[vm.Kind]*verb{}}
	e.ctx, e.stop = context.WithCancel(context.Background())
	for _, v := range allVerbs() {
		e.verbs[v.kind] = v
	}
	e.Templates = &Templates{e}
	e.VMs = &VMs{Engine: e}
	e.Disks = &Disks{e}
	e.NICs = &NICs{Engine: e}
	e.Forwards = &Forwards{e}
	e.CDROMs = &CDROMs{e}
	e.CloudInits = &CloudInits{Engine: e}
	e.Networks = &Networks{e}
	e.Images = &Images{Engine: e}
	e.Guests = &Guests{Engine: e}
	e.Consoles = &Consoles{e}
	e.Orphans = &Orphans{e}
	e.Operations = &Operations{e}
	e.settles = map[vm.ResourceKind]settler{
		vm.VMKind:      e.VMs,
		vm.DiskKind:    e.Disks,
		vm.ImageKind:   e.Images,
		vm.NetworkKind: e.Networks,
	}
	return e
}

// Busy reports whether an operation holds the resource now.
func (e *Engine) Busy(resource vm.Resource) bool { return e.locks.busy(resource) }

// Prune deletes the operations that ended more than [Options].Keep ago and the events
// that are older or too many, and returns how many.
func (e *Engine) Prune(ctx context.Context) (int, error) {
	before := now().Add(-e.o.Keep)
	operations, err := e.store.PruneOperations(ctx, before)
	if err != nil {
		return operations, err
	}
	events, err := e.store.PruneEvents(ctx, before, e.o.KeepEvents)
	return operations + events, err
}

// background runs f in a goroutine that Close waits for, unless the engine is closing.
// It must be called with mu held.
func (e *Engine) background(f func()) {
	if !e.closing {
		e.wg.Go(f)
	}
}

// Close refuses new operations and waits for the running ones until ctx is done; then
// it cancels them, and their records say so.
func (e *Engine) Close(ctx context.Context) {
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
	e.stop()
	idle := make(chan struct{})
	go func() {
		e.wg.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return
	case <-ctx.Done():
	}
	e.mu.Lock()
	for _, r := range e.running {
		r.holder.cancel(errClosing)
	}
	e.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(closePatience):
		e.log.Warn("operations did not end in time; they are settled at the next start")
	}
}

const (
	cancelPatience = 10 * time.Second
	closePatience  = 10 * time.Second
	recordPatience = 30 * time.Second // for one transaction that no request waits for
	settlePatience = 20 * time.Second // to determine the true state and to end a process
)

var errClosing = &vm.Fault{Code: vm.CodeInterrupted, Detail: "the daemon was stopped in the middle of the operation"}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
