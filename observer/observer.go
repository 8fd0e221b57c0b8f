// Package observer keeps the records true: every few seconds it compares the records with
// the host, repairs safe differences through the [Settler], and reports the others.
//
// A whole pass compares all records. Most passes are light: they compare the active VMs and
// their disks, so that their cost depends on the number of running VMs, not of recorded ones.
//
// The observer is level-based: a pass compares states and does not follow changes. A nudge
// makes it check one VM earlier; a lost nudge only delays the check until the next pass. The
// observer changes records and host only through the Settler and through [Networks], and it
// never ends an unrecorded process or removes an unrecorded file.
//
// It also begins the restarts of VMs by their restart policy.
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
	"sync/atomic"
	"time"

	"vmand/vm"
)

// Host shows the processes and files of the host. Its methods return when ctx is done.
type Host interface {
	// Survey returns the processes and files of all VMs, for whole passes.
	Survey(ctx context.Context) (vm.Survey, error)
	// SurveyProcesses is [Host.Survey] without the lists of files, for light passes.
	SurveyProcesses(ctx context.Context) (vm.Survey, error)
	// FilesVersion returns a text that changes when files are created or removed.
	FilesVersion(ctx context.Context) (string, error)
}

// Records reads the records.
type Records interface {
	VM(ctx context.Context, id string) (vm.VM, error)
	VMs(ctx context.Context, f vm.VMFilter, p vm.Page) ([]vm.VM, error)
	VMSummaries(ctx context.Context, f vm.VMFilter, p vm.Page) ([]vm.VMSummary, error)
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
	// Settle observes the resource with its lock held and records its true state. It
	// fails with [vm.ErrBusy] at once if an operation holds the resource.
	Settle(ctx context.Context, resource vm.Resource) (vm.Repair, error)
	// Busy reports whether an operation holds the resource now.
	Busy(resource vm.Resource) bool
	// Tell records events.
	Tell(ctx context.Context, events ...vm.Event) error
	// NextEvent returns a channel that is closed when the next event is recorded.
	NextEvent() <-chan struct{}
	// Prune deletes old operations and events and returns their number.
	Prune(ctx context.Context) (int, error)
}

// Restarter restarts VMs by their policy.
type Restarter interface {
	// RestartDue begins the restart of a VM by its policy. It fails with [vm.ErrState] if
	// no restart is due.
	RestartDue(ctx context.Context, id string) (vm.Operation, error)
}

// Networks compares the networks on the host with the records.
type Networks interface {
	// Reconcile compares the networks on the host with the records, given the active VMs
	// as recorded. With repair it makes the host match the records.
	Reconcile(ctx context.Context, vms []vm.VM, repair bool) (vm.NetworkSurvey, error)
}

// Deps are the parts of vmand that an [Observer] uses. All are required.
type Deps struct {
	Host      Host
	Records   Records
	Settler   Settler
	Restarter Restarter
	Networks  Networks
	Log       *slog.Logger
}

// The values of [Options].Repair.
const (
	RepairAuto   = "auto"   // repair the issues that are safe to repair, report the others
	RepairReport = "report" // report all issues
)

// Options configures an [Observer].
type Options struct {
	Interval time.Duration // between two passes
	Repair   string        // [RepairAuto] or [RepairReport]; empty means auto
	LowMiB   int           // free storage in MiB below which it is low; 0 turns the check off
}

const (
	// passTimeout limits the reads of a pass from the host and the database.
	passTimeout = 30 * time.Second
	// settleTimeout limits one repair, which may have to end a process. The next pass
	// tries an unfinished repair again.
	settleTimeout = 10 * time.Second
	// tellTimeout limits the recording of events.
	tellTimeout = 5 * time.Second
	// maxUntold is the number of events kept while the database cannot be written.
	maxUntold = 1000
	// pruneInterval is the time between two deletions of old operations and events.
	pruneInterval = time.Hour
	// parallel is the number of concurrent repairs in a pass, so that a VM that does not
	// answer does not delay the others.
	parallel = 8
)

// Observer runs the passes. Its methods are safe for concurrent use.
type Observer struct {
	host      Host
	records   Records
	settler   Settler
	restarter Restarter
	nets      Networks
	o         Options
	log       *slog.Logger

	wake     chan struct{} // of capacity 1: nudged has a VM
	restarts *schedule
	wg       sync.WaitGroup
	pruned   time.Time // only the loop uses it
	cycle    cycle     // only the loop uses it

	telling sync.Mutex
	untold  []vm.Event // not recorded yet

	progress atomic.Pointer[time.Time] // of the loop, the last; nil before Run

	mu       sync.Mutex
	nudged   map[string]bool // ids of VMs to settle soon
	settling map[string]bool // ids of VMs being settled because of a nudge
	status   Status
	repaired []Issue                // by nudges since the last pass
	since    map[finding]*suspicion // the current findings
}

// New returns an observer that is idle until [Observer.Run].
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

// Run makes a pass at once and then one per interval. Meanwhile it settles nudged VMs and
// begins the restarts that are due. It returns when ctx is done and all running repairs have
// ended. It must be called once.
func (o *Observer) Run(ctx context.Context) {
	defer o.wg.Wait()
	o.wg.Go(func() { o.serveNudges(ctx) })
	o.wg.Go(func() { o.serveRestarts(ctx) })
	ticker := time.NewTicker(o.o.Interval)
	defer ticker.Stop()
	o.noteProgress()
	for {
		o.pass(ctx)
		o.prune(ctx)
		o.noteProgress()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// noteProgress records that the loop has made a step: it is called after each part of a pass
// that has a time limit.
func (o *Observer) noteProgress() {
	now := time.Now()
	o.progress.Store(&now)
}

// Works reports whether the loop makes progress: no step takes longer than its timeouts
// allow. A pass that fails is progress, too. It is true before [Observer.Run].
func (o *Observer) Works() bool {
	last := o.progress.Load()
	return last == nil || time.Since(*last) < overdue(o.o.Interval)
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

// Nudge requests that the observer settles one VM now, without waiting for the next pass. It
// does not block. Nudges before the VM is settled are merged. In mode [RepairReport] it is a
// no-op.
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

// settleNudged starts to settle every nudged VM. A VM that is being settled stays nudged and
// is settled once more afterwards.
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
		i := Issue{
			Type:        a.Type,
			Resource:    resource,
			Details:     a.Details,
			FirstSeenAt: at,
			Repair:      r.repair.Detail,
			RepairedAt:  at,
		}
		o.mu.Lock()
		o.repaired = append(o.repaired, i)
		o.mu.Unlock()
		o.tell(ctx, o.announce(i, &suspicion{}))
	case failed:
		if ctx.Err() == nil { // else the daemon stops and settles the VM at its next start
			o.log.Warn("cannot settle after a nudge; the next pass tries again", "resource", resource, "err", r.err)
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
		o.log.Warn("cannot delete old operations and events", "err", err)
	case n > 0:
		o.log.Info("deleted old operations and events", "count", n)
	}
}

// guard calls f and turns a panic into an error, so that a defect fails one step and does not
// end the daemon.
func guard[T any](log *slog.Logger, f func() (T, error)) (result T, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic in the observer", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}
