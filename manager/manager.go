// Package manager carries out the use cases of vmand. Its [Engine] is the only
// writer of the records: every change of a VM, a disk, an image or a network takes
// the resource's lock, asks the state machine, records the intent, acts and records
// the outcome. A failed step, a killed daemon and a host that changed by itself end
// in the same code, which asks package vm what is true.
package manager

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"vmand/vm"
)

// Options are what an [Engine] can be told.
type Options struct {
	// Base is the image that root disks are overlays of; its zero value makes
	// empty root disks. Base.SizeMiB is the image's own size.
	Base vm.DiskFile
	// Keep is how long operations that are over are remembered; 30 days if zero.
	Keep time.Duration
	// KeepEvents is how many events are remembered, and no longer than Keep;
	// 100,000 if zero.
	KeepEvents int
}

// An Engine carries out every change of a resource: it locks, records the intent,
// acts, records the outcome, and settles what a failure or a kill left behind. It
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
	locks   locks
	feed    feed

	reserved reservations
	contents contents
	before   map[string]time.Time // when VMs were last started, before the host was booted; set by AfterBoot alone

	saving sync.Mutex // held while marks are recorded; taken before mu

	mu      sync.Mutex
	running map[string]*run // operations on their way, by id
	closing bool
	marks   map[string]vm.Boot   // what was seen of guests and is not recorded yet
	marking bool                 // somebody is about to record it
	asked   map[string]time.Time // when a guest's agent was last asked for its addresses, by VM id
	booting map[string]time.Time // when a guest's cloud-init was last asked how far it is, by VM id
	wg      sync.WaitGroup
}

// Services, each holding the engine: one per kind of resource.
type (
	// Templates makes and deletes templates.
	Templates struct{ *Engine }
	// VMs makes, changes, starts, stops and deletes VMs.
	VMs struct{ *Engine }
	// Disks makes, copies, resizes, plugs and deletes data disks.
	Disks struct{ *Engine }
	// NICs plugs, unplugs and changes the NICs of VMs.
	NICs struct{ *Engine }
	// Forwards adds and removes port forwards to VMs.
	Forwards struct{ *Engine }
	// CDROMs gives VMs CD-ROM drives and takes them away.
	CDROMs struct{ *Engine }
	// CloudInits keeps the cloud-init data of VMs.
	CloudInits struct{ *Engine }
	// Networks makes, changes and deletes networks.
	Networks struct{ *Engine }
	// Images brings images in, and deletes them.
	Images struct{ *Engine }
	// Guests talks to the guests of running VMs through their agents.
	Guests struct{ *Engine }
	// Consoles connects to the serial consoles of VMs.
	Consoles struct{ *Engine }
	// Orphans adopts, terminates and deletes what the host has and no record knows.
	Orphans struct{ *Engine }
	// Operations waits for operations and cancels them.
	Operations struct{ *Engine }
)

// New returns an engine over what s records and d and n run.
func New(s vm.Store, d vm.Driver, n vm.HostNetwork, o Options, log *slog.Logger) *Engine {
	if o.Keep == 0 {
		o.Keep = 30 * 24 * time.Hour
	}
	if o.KeepEvents == 0 {
		o.KeepEvents = 100_000
	}
	e := &Engine{store: s, driver: d, network: n, o: o, log: log, running: map[string]*run{}}
	e.Templates, e.VMs, e.Disks, e.NICs = &Templates{e}, &VMs{e}, &Disks{e}, &NICs{e}
	e.Forwards, e.CDROMs, e.CloudInits, e.Networks = &Forwards{e}, &CDROMs{e}, &CloudInits{e}, &Networks{e}
	e.Images, e.Guests, e.Consoles = &Images{e}, &Guests{e}, &Consoles{e}
	e.Orphans, e.Operations = &Orphans{e}, &Operations{e}
	return e
}

// Busy reports whether an operation holds the resource right now.
func (e *Engine) Busy(resource string) bool { return e.locks.busy(resource) }

// Prune forgets the operations that have been over for longer than
// [Options].Keep and the events that are older or too many, and returns how many.
func (e *Engine) Prune(ctx context.Context) (int, error) {
	before := now().Add(-e.o.Keep)
	operations, err := e.store.PruneOperations(ctx, before)
	if err != nil {
		return operations, err
	}
	events, err := e.store.PruneEvents(ctx, before, e.o.KeepEvents)
	return operations + events, err
}

// Wait returns the operation once it is over. When ctx is done first it returns
// the operation as it is then, without an error.
func (s *Operations) Wait(ctx context.Context, id string) (vm.Operation, error) {
	s.mu.Lock()
	r := s.running[id]
	s.mu.Unlock()
	if r != nil {
		select {
		case <-r.done:
		case <-ctx.Done():
		}
		return r.snapshot(), nil
	}
	return s.store.Operation(context.WithoutCancel(ctx), id)
}

// Cancel asks an operation to give up, and waits a moment for it.
func (s *Operations) Cancel(ctx context.Context, id string) (vm.Operation, error) {
	s.mu.Lock()
	r := s.running[id]
	s.mu.Unlock()
	if r == nil {
		op, err := s.store.Operation(ctx, id)
		if err != nil {
			return vm.Operation{}, err
		}
		return op, overFault(op)
	}
	if op := r.snapshot(); op.State.Ended() {
		return op, overFault(op)
	}
	if !r.holder.preemptible {
		return r.snapshot(), &vm.Fault{Code: vm.CodeNotCancellable, OperationID: id, Detail: fmt.Sprintf("the %s cannot be cancelled", r.holder.what)}
	}
	r.holder.cancel(&vm.Fault{Code: vm.CodeCancelled, Detail: "cancelled by " + vm.CallerOf(ctx).Name})
	ctx, stop := context.WithTimeout(ctx, cancelPatience)
	defer stop()
	op, err := s.Wait(ctx, id)
	if err == nil && (op.State == vm.OpSucceeded || op.State == vm.OpFailed) {
		err = overFault(op)
	}
	return op, err
}

func overFault(op vm.Operation) *vm.Fault {
	return &vm.Fault{Code: vm.CodeNotCancellable, OperationID: op.ID, Detail: fmt.Sprintf("operation %s is over: its state is %s", op.ID, op.State)}
}

// Close refuses new operations and waits for those on their way until ctx is
// done; then it makes them give up, which their records say.
func (e *Engine) Close(ctx context.Context) {
	e.mu.Lock()
	e.closing = true
	e.mu.Unlock()
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
		e.log.Warn("operations did not give up in time; they are settled at the next start")
	}
}

const (
	cancelPatience = 10 * time.Second
	closePatience  = 10 * time.Second
	recordPatience = 30 * time.Second // for one transaction, when nobody waits for it
	settlePatience = 20 * time.Second // to find out what is true, and to end what must end
)

var errClosing = &vm.Fault{Code: vm.CodeInterrupted, Detail: "the daemon was stopped in the middle of the operation"}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
