// Package observer keeps the records true: every few seconds it compares what
// is recorded with what the host shows, has the [Settler] record the truth, and
// reports what it must not repair by itself.
//
// A whole pass compares everything that is recorded. Most passes are light: they
// compare what is active, so that they cost what runs and not what is recorded.
//
// It is level-based: a pass looks at how things are and never at what happened.
// A nudge only makes it look at one VM sooner; one that is lost costs nothing
// but the wait for the next pass. It changes nothing but through the Settler,
// and it never ends a process or removes a file that is not recorded.
//
// It also has VMs restarted when their policy says so.
package observer

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"vmand/vm"
)

// Host shows the processes and files of the host. Its methods return at the latest when
// ctx is done.
type Host interface {
	// Survey is for whole passes.
	Survey(ctx context.Context) (vm.Survey, error)
	// SurveyProcesses is for light passes: it is [Host.Survey] without lists of files.
	SurveyProcesses(ctx context.Context) (vm.Survey, error)
	// FilesVersion returns a text that changes when files are created or removed.
	FilesVersion(ctx context.Context) (string, error)
}

// Records is the recorded state.
type Records interface {
	VM(ctx context.Context, id string) (vm.VM, error)
	VMs(ctx context.Context, f vm.VMFilter, p vm.Page) ([]vm.VM, error)
	Disk(ctx context.Context, id string) (vm.Disk, error)
	Disks(ctx context.Context, f vm.DiskFilter, p vm.Page) ([]vm.Disk, error)
	Images(ctx context.Context, f vm.ImageFilter, p vm.Page) ([]vm.Image, error)
	Operations(ctx context.Context, f vm.OperationFilter, p vm.Page) ([]vm.Operation, error)
	Events(ctx context.Context, f vm.EventFilter, p vm.Page) ([]vm.Event, error)
	LastEvent(ctx context.Context) (int64, error)
	// ForeignVersion returns a number that changes when another process writes to the
	// database.
	ForeignVersion(ctx context.Context) (int64, error)
}

// Settler makes the records true.
type Settler interface {
	// Settle looks again under the resource's lock and records what is true.
	// It fails with [vm.ErrBusy] at once if an operation holds the resource.
	Settle(ctx context.Context, resource vm.Resource) (vm.Repair, error)
	// Busy reports whether an operation holds the resource now.
	Busy(resource vm.Resource) bool
	// Tell records events.
	Tell(ctx context.Context, events ...vm.Event) error
	// NextEvent returns a channel that is closed when the next event is recorded.
	NextEvent() <-chan struct{}
	// Prune forgets operations and events that are old enough.
	Prune(ctx context.Context) (int, error)
}

// Restarter restarts VMs by their policy.
type Restarter interface {
	// RestartDue begins the automatic restart of a VM. It fails with
	// [vm.ErrState] if none is due.
	RestartDue(ctx context.Context, id string) (vm.Operation, error)
}

// Networks compares the networks on the host with the records.
type Networks interface {
	// Reconcile compares the networks on the host with the records, given the active VMs
	// as recorded. With repair it makes the host match the records.
	Reconcile(ctx context.Context, vms []vm.VM, repair bool) (vm.NetworkSurvey, error)
}

// Deps are the parts of vmand an [Observer] works with. All are needed.
type Deps struct {
	Host      Host
	Records   Records
	Settler   Settler
	Restarter Restarter
	Networks  Networks
	Log       *slog.Logger
}

// What an observer does about what it finds.
const (
	RepairAuto   = "auto"   // whatever is safe
	RepairReport = "report" // nothing
)

// Options are what an [Observer] can be told.
type Options struct {
	Interval time.Duration // between two passes
	Repair   string        // [RepairAuto] or [RepairReport]; empty is auto
	// LowMiB is how much free storage is too little; 0 for any being enough.
	LowMiB int
}

const (
	// passTimeout ends a pass that the host or the database keeps waiting.
	passTimeout = 30 * time.Second
	// settleTimeout ends one repair, which may have to end a process. What it
	// leaves undone, the next pass tries again.
	settleTimeout = 10 * time.Second
	// tellTimeout ends the recording of events.
	tellTimeout = 5 * time.Second
	// maxUntold is how many events wait for a database that cannot be written.
	maxUntold = 1000
	// pruneInterval is how often what is old is forgotten.
	pruneInterval = time.Hour
	// parallel is how many repairs go on at the same time in a pass, so that a
	// mute VM does not delay the others.
	parallel = 8
)

// Observer is the loop. Its methods may be called at the same time.
type Observer struct {
	host      Host
	records   Records
	settler   Settler
	restarter Restarter
	nets      Networks
	o         Options
	log       *slog.Logger

	wake     chan struct{} // holds one: a VM is in nudged
	restarts *schedule
	wg       sync.WaitGroup
	pruned   time.Time // only the loop uses it
	cycle    cycle     // only the loop uses it

	telling sync.Mutex
	untold  []vm.Event // that could not be recorded yet

	mu       sync.Mutex
	nudged   map[string]bool // ids of VMs to settle soon
	settling map[string]bool // ids of VMs being settled because of a nudge
	status   Status
	repaired []Issue                // by nudges since the last pass
	since    map[finding]*suspicion // findings of the last pass, and those it did not look at again
}

// New returns an observer that does nothing before [Observer.Run].
func New(o Options, d Deps) *Observer {
	o.Repair = cmp.Or(o.Repair, RepairAuto)
	return &Observer{
		host:      d.Host,
		records:   d.Records,
		settler:   d.Settler,
		restarter: d.Restarter,
		nets:      d.Networks,
		o:         o,
		log:       d.Log,
		wake:      make(chan struct{}, 1),
		restarts:  newSchedule(),
		nudged:    map[string]bool{},
		settling:  map[string]bool{},
		since:     map[finding]*suspicion{},
		status:    Status{Status: StatusStarting, CheckInterval: o.Interval},
	}
}

// Run makes a pass at once and then one in every interval, and meanwhile settles
// nudged VMs and restarts those that are due. It returns when ctx is done and
// every repair under way has come to its end. Call it once.
func (o *Observer) Run(ctx context.Context) {
	defer o.wg.Wait()
	o.wg.Go(func() { o.serveNudges(ctx) })
	o.wg.Go(func() { o.serveRestarts(ctx) })
	ticker := time.NewTicker(o.o.Interval)
	defer ticker.Stop()
	for {
		o.pass(ctx)
		o.prune(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (o *Observer) serveNudges(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
			o.settleNudged(ctx)
		}
	}
}

// Nudge asks for a look at one VM soon, without waiting for the next pass. It
// never blocks; any number of nudges before that look are one. Where nothing is
// to be repaired it does nothing.
func (o *Observer) Nudge(vmID string) {
	if o.o.Repair == RepairReport {
		return
	}
	o.mu.Lock()
	o.nudged[vmID] = true
	o.mu.Unlock()
	o.wakeUp()
}

func (o *Observer) wakeUp() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// settleNudged starts to settle every nudged VM that is not being settled
// already; those have their turn again afterwards.
func (o *Observer) settleNudged(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range slices.Collect(maps.Keys(o.nudged)) {
		if o.settling[id] {
			continue
		}
		delete(o.nudged, id)
		o.settling[id] = true
		o.wg.Go(func() {
			o.settleOne(ctx, id)
			o.mu.Lock()
			defer o.mu.Unlock()
			delete(o.settling, id)
			if o.nudged[id] {
				o.wakeUp()
			}
		})
	}
}

func (o *Observer) settleOne(ctx context.Context, id string) {
	resource := vm.VMResource(id)
	a := Action{Type: VMStateMismatch, Resource: resource, Settle: true}
	r := o.settle(ctx, a)
	switch r.outcome {
	case repaired:
		a.Details = fmt.Sprintf("recorded as %s, found %s", r.repair.Was, r.repair.Is)
		at := time.Now()
		i := Issue{Type: a.Type, Resource: resource, Details: a.Details, FirstSeenAt: at, Repair: r.repair.Detail, RepairedAt: at}
		o.mu.Lock()
		o.repaired = append(o.repaired, i)
		o.mu.Unlock()
		o.tell(ctx, o.announce(i, &suspicion{}))
	case failed:
		if ctx.Err() == nil { // else the daemon ends, and the next one settles
			o.log.Warn("cannot settle after an event; the next pass will try", "resource", resource, "err", r.err)
		}
	}
}

func (o *Observer) prune(ctx context.Context) {
	if time.Since(o.pruned) < pruneInterval {
		return
	}
	o.pruned = time.Now()
	n, err := guard(o.log, func() (int, error) { return o.settler.Prune(ctx) })
	switch {
	case err != nil && ctx.Err() == nil:
		o.log.Warn("cannot forget what is old", "err", err)
	case n > 0:
		o.log.Info("forgot old operations and events", "count", n)
	}
}

// guard calls f and turns a panic into an error, so that a defect costs one
// repair and not the daemon.
func guard[T any](log *slog.Logger, f func() (T, error)) (result T, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic in the observer", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}
