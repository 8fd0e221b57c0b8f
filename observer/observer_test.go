package observer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmand/vm"
)

const interval = 5 * time.Second

var discard = slog.New(slog.DiscardHandler)

// A world is a fake host with fake records and a fake manager.
type world struct {
	mu       sync.Mutex
	vms      map[string]vm.VM
	disks    map[string]vm.Disk
	images   []vm.Image
	open     []vm.Operation
	seen     vm.Survey
	surveys  int
	settled  []string
	busy     map[string]bool
	held     map[string]chan struct{} // channels that Settle of a resource waits for
	mute     map[string]bool          // resources for which Settle waits until its context is done
	fail     error                    // error of Survey
	failRead map[string]error         // errors of reading "vms", "disks" or "operations"
	settle   func(resource string) (vm.Repair, error)
	onSurvey func()
	onSettle func(v *vm.VM) // changes the VM that Settle records
	stuck    chan struct{}  // Survey waits for it and ignores its context
	prunes   int
	pruneErr error
	events   []vm.Event
	tellErr  error
	news     chan struct{}
	drift    []vm.Drift
	problems []vm.NetworkProblem
	driftErr error
	foreign  int64            // incremented by change
	light    int              // light passes among surveys
	repairs  []bool           // arguments of Reconcile
	restarts []string         // ids that RestartDue was called with
	refuse   map[string]error // errors of RestartDue, by id
}

func newWorld() *world {
	return &world{
		vms:      map[string]vm.VM{},
		disks:    map[string]vm.Disk{},
		busy:     map[string]bool{},
		held:     map[string]chan struct{}{},
		mute:     map[string]bool{},
		failRead: map[string]error{},
		refuse:   map[string]error{},
		news:     make(chan struct{}),
		seen: vm.Survey{
			VMs:       map[string]vm.Observation{},
			VMFiles:   map[string]bool{},
			DiskFiles: map[string]int64{},
		},
	}
}

// run adds a VM that is recorded as running and runs.
func (w *world) run(id string) {
	w.vms[id] = vm.VM{ID: id, State: vm.Running, Reason: vm.ReasonRequested}
	w.seen.VMFiles[id] = true
	w.seen.VMs[id] = vm.Observation{PID: 42, Status: vm.StatusRunning}
}

// change changes the world under its lock, as another process does: with a foreign write.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.foreign++
	f()
}

func (w *world) ForeignVersion(context.Context) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.foreign, nil
}

func (w *world) FilesVersion(context.Context) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprint(w.seen.VMFiles, w.seen.DiskFiles, w.seen.Images), nil
}

func (w *world) SurveyProcesses(ctx context.Context) (vm.Survey, error) {
	seen, err := w.Survey(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.light++
	light := vm.Survey{VMs: seen.VMs, VMFiles: map[string]bool{}, Storage: seen.Storage}
	for id := range seen.VMs {
		light.VMFiles[id] = seen.VMFiles[id]
	}
	return light, err
}

// recorded returns the record of a VM.
func (w *world) recorded(id string) vm.VM {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vms[id]
}

// ReconcileNetworks finds what the test has said, and repairs what has no error.
func (w *world) Reconcile(_ context.Context, _ []vm.VM, repair bool) (vm.NetworkSurvey, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.repairs = append(w.repairs, repair)
	drift := slices.Clone(w.drift)
	for i := range drift {
		drift[i].Repaired = repair && drift[i].Err == nil
	}
	return vm.NetworkSurvey{Drift: drift, Problems: w.problems}, w.driftErr
}

// did returns the number of surveys, the settled resources, and the number of prunings.
func (w *world) did() (surveys int, settled []string, prunes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.surveys, slices.Clone(w.settled), w.prunes
}

// settlings returns the number of calls of Settle by resource.
func (w *world) settlings() map[string]int {
	count := map[string]int{}
	_, settled, _ := w.did()
	for _, r := range settled {
		count[r]++
	}
	return count
}

func (w *world) Survey(context.Context) (vm.Survey, error) {
	w.mu.Lock()
	stuck := w.stuck
	w.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.surveys++
	if w.onSurvey != nil {
		w.onSurvey()
	}
	seen := vm.Survey{
		VMs:       maps.Clone(w.seen.VMs),
		VMFiles:   maps.Clone(w.seen.VMFiles),
		DiskFiles: maps.Clone(w.seen.DiskFiles),
		Storage:   w.seen.Storage,
	}
	return seen, w.fail
}

func (w *world) VM(_ context.Context, id string) (vm.VM, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v, ok := w.vms[id]
	if !ok {
		return v, vm.NotFound("VM", id)
	}
	return v, w.failRead["vm"]
}

func (w *world) Events(_ context.Context, f vm.EventFilter, p vm.Page) ([]vm.Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []vm.Event
	for _, e := range w.events {
		if e.Seq > p.After && strings.HasPrefix(e.Type, f.Type) && len(out) < p.Limit {
			out = append(out, e)
		}
	}
	return out, w.failRead["events"]
}

func (w *world) LastEvent(context.Context) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(len(w.events)), w.failRead["last event"]
}

// happen records events. It must be called with mu held.
func (w *world) happen(events ...vm.Event) {
	for _, e := range events {
		e.Seq = int64(len(w.events)) + 1
		w.events = append(w.events, e)
	}
	close(w.news)
	w.news = make(chan struct{})
}

// put records a VM as the manager does.
func (w *world) put(v vm.VM) {
	w.change(func() {
		w.vms[v.ID] = v
		w.happen(vm.NewEvent("vm.state", vm.VMResource(v.ID), map[string]any{}))
	})
}

func (w *world) Tell(_ context.Context, events ...vm.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tellErr == nil {
		w.happen(events...)
	}
	return w.tellErr
}

func (w *world) NextEvent() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.news
}

// ownEvents returns the observer's own events as "type resource data".
func (w *world) ownEvents() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.events {
		if strings.HasPrefix(e.Type, "observer.") {
			out = append(out, fmt.Sprintf("%s %s %s", e.Type, e.Resource, e.Data))
		}
	}
	return out
}

func (w *world) VMs(_ context.Context, f vm.VMFilter, _ vm.Page) ([]vm.VM, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []vm.VM
	for _, v := range w.vms {
		unsettled := slices.ContainsFunc(v.NICs, func(n vm.NIC) bool { return n.State != vm.NICAttached })
		if !f.Active || v.State != vm.Stopped || !v.RestartAt.IsZero() || unsettled {
			out = append(out, v)
		}
	}
	return out, w.failRead["vms"]
}

func (w *world) VMSummaries(context.Context, vm.VMFilter, vm.Page) ([]vm.VMSummary, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []vm.VMSummary
	for _, v := range w.vms {
		out = append(out, vm.VMSummary{Seq: v.Seq, ID: v.ID, State: v.State, Reason: v.Reason, Revision: v.Revision})
	}
	return out, w.failRead["summaries"]
}

func (w *world) Disk(_ context.Context, id string) (vm.Disk, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, ok := w.disks[id]
	if !ok {
		return d, vm.NotFound("disk", id)
	}
	return d, w.failRead["disk"]
}

func (w *world) Images(context.Context, vm.ImageFilter, vm.Page) ([]vm.Image, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.images), w.failRead["images"]
}

func (w *world) Disks(_ context.Context, f vm.DiskFilter, _ vm.Page) ([]vm.Disk, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []vm.Disk
	for _, d := range w.disks {
		if f.VMID == "" || d.VMID == f.VMID {
			out = append(out, d)
		}
	}
	return out, w.failRead["disks"]
}

func (w *world) Operations(_ context.Context, f vm.OperationFilter, _ vm.Page) ([]vm.Operation, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !f.Open {
		return nil, errors.New("the observer must read only the open operations")
	}
	return slices.Clone(w.open), w.failRead["operations"]
}

// Settle records the verdict of vm.Settle, as the manager does.
func (w *world) Settle(ctx context.Context, on vm.Resource) (vm.Repair, error) {
	resource := on.String()
	w.mu.Lock()
	w.settled = append(w.settled, resource)
	held, mute, custom := w.held[resource], w.mute[resource], w.settle
	w.mu.Unlock()
	if mute {
		<-ctx.Done()
		return vm.Repair{}, context.Cause(ctx)
	}
	if held != nil {
		<-held
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[resource] {
		return vm.Repair{}, fmt.Errorf("%s: %w", resource, vm.ErrBusy)
	}
	if custom != nil {
		return custom(resource)
	}
	id := resource[len("vms/"):]
	v, ok := w.vms[id]
	if !ok {
		return vm.Repair{}, vm.NotFound("VM", id)
	}
	verdict := vm.Settle(v.State, v.Reason, w.seen.VMs[id])
	was := v.State
	v.State, v.Reason = verdict.State, verdict.Reason
	if w.onSettle != nil {
		w.onSettle(&v)
	}
	w.vms[id] = v
	if was != v.State {
		w.happen(vm.NewEvent("vm.state", vm.VMResource(id), map[string]any{}))
	}
	return vm.Repair{Changed: was != v.State, Was: string(was), Is: string(v.State), Detail: "recorded the truth"}, nil
}

func (w *world) Busy(on vm.Resource) bool {
	resource := on.String()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.busy[resource]
}

func (w *world) Prune(context.Context) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.prunes++
	return w.prunes, w.pruneErr
}

// observe runs an observer of w in a synctest bubble, waits for its first pass, calls f and
// stops the observer.
func observe(t *testing.T, w *world, f func(o *Observer)) {
	t.Helper()
	observeWith(t, w, Options{Interval: interval}, f)
}

func observeWith(t *testing.T, w *world, options Options, f func(o *Observer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		// A channel belongs to the bubble that made it.
		w.news = make(chan struct{})
		o := New(options, Deps{w, w, w, w, w, discard})
		if s := o.Status(); s.Status != StatusStarting || s.CheckInterval != interval || s.Repair == "" || !s.LastRunAt.IsZero() {
			t.Errorf("status before the first pass is %+v, want starting", s)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			o.Run(ctx)
			close(done)
		}()
		synctest.Wait()
		f(o)
		stop()
		<-done
	})
}

// after advances the time of the bubble and waits until all goroutines block.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func issuesOf(o *Observer) []string {
	var out []string
	for _, i := range o.Status().Issues {
		line := string(i.Type) + " " + i.Resource.String()
		if i.Repair != "" {
			line += ": " + i.Repair
		}
		out = append(out, line)
	}
	return out
}

func expectIssues(t *testing.T, o *Observer, want ...string) {
	t.Helper()
	if got := issuesOf(o); !slices.Equal(got, want) {
		t.Errorf("issues %q, want %q", got, want)
	}
}

func TestPassWithoutFindings(t *testing.T) {
	w := newWorld()
	w.run("a")
	observe(t, w, func(o *Observer) {
		after(3 * interval)
		if surveys, settled, _ := w.did(); surveys != 4 || len(settled) != 0 {
			t.Errorf("%d surveys and settled %q after three intervals, want 4 and none", surveys, settled)
		}
		if s := o.Status(); s.Status != StatusOK || s.Error != "" || time.Since(s.LastRunAt) != 0 {
			t.Errorf("status %+v, want ok and a pass just now", s)
		}
		expectIssues(t, o)
	})
}

func TestPassRecordsAVanishedProcess(t *testing.T) {
	w := newWorld()
	w.run("a")
	observe(t, w, func(o *Observer) {
		w.change(func() { delete(w.seen.VMs, "a") })
		after(interval)
		if v := w.recorded("a"); v.State != vm.Errored || v.Reason != vm.ReasonCrashed {
			t.Errorf("recorded %s (%s), want error (crashed)", v.State, v.Reason)
		}
		expectIssues(t, o, "vm_state_mismatch vms/a: recorded the truth")
		after(interval)
		expectIssues(t, o)
	})
}

func TestNudgeSettlesOneVM(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.run("b")
	observe(t, w, func(o *Observer) {
		w.change(func() {
			delete(w.seen.VMs, "a")
			delete(w.seen.VMs, "b")
		})
		after(time.Second)
		o.Nudge("a")
		synctest.Wait()
		if surveys, settled, _ := w.did(); surveys != 1 || !slices.Equal(settled, []string{"vms/a"}) {
			t.Errorf("%d surveys, settled %q; want one survey and only vms/a", surveys, settled)
		}
		if a, b := w.recorded("a"), w.recorded("b"); a.State != vm.Errored || b.State != vm.Running {
			t.Errorf("a is %s and b is %s, want error and running", a.State, b.State)
		}
		expectIssues(t, o, "vm_state_mismatch vms/a: recorded the truth")
		after(interval)
		expectIssues(t, o, "vm_state_mismatch vms/a: recorded the truth", "vm_state_mismatch vms/b: recorded the truth")
		after(interval)
		expectIssues(t, o)
	})
}

func TestNudgesDuringARepairAreMerged(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.run("b")
	observe(t, w, func(o *Observer) {
		gate := make(chan struct{})
		w.change(func() { w.held["vms/a"] = gate })
		for range 100 {
			o.Nudge("a")
		}
		synctest.Wait()
		for range 100 {
			o.Nudge("a")
			o.Nudge("b")
		}
		synctest.Wait()
		count := w.settlings()
		if count["vms/a"] != 1 || count["vms/b"] == 0 {
			t.Errorf("settled %v while a was held, want a once, and b without delay", count)
		}
		close(gate)
		synctest.Wait()
		count = w.settlings()
		if count["vms/a"] != 2 {
			t.Errorf("a was settled %d times, want 2: once more for all nudges meanwhile", count["vms/a"])
		}
	})
}

func TestNudgeBeforeRun(t *testing.T) {
	w := newWorld()
	w.run("a")
	synctest.Test(t, func(t *testing.T) {
		w.news = make(chan struct{})
		o := New(Options{Interval: interval}, Deps{w, w, w, w, w, discard})
		o.Nudge("a")
		ctx, stop := context.WithCancel(t.Context())
		go o.Run(ctx)
		synctest.Wait()
		if _, settled, _ := w.did(); !slices.Equal(settled, []string{"vms/a"}) {
			t.Errorf("settled %q, want vms/a", settled)
		}
		stop()
	})
}

func TestFailedNudgeReportsNothing(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.settle = func(string) (vm.Repair, error) { return vm.Repair{}, errors.New("database is locked") }
	observe(t, w, func(o *Observer) {
		o.Nudge("a")
		synctest.Wait()
		expectIssues(t, o)
	})
}

func TestPassSkipsABusyVM(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.vms["a"] = vm.VM{ID: "a", State: vm.Starting}
	w.busy["vms/a"] = true
	observe(t, w, func(o *Observer) {
		after(2 * interval)
		if _, settled, _ := w.did(); len(settled) != 0 {
			t.Errorf("settled %q, want none while an operation holds the VM", settled)
		}
		expectIssues(t, o)
		o.Nudge("a") // Settle fails with ErrBusy
		synctest.Wait()
		expectIssues(t, o)
		w.change(func() { w.busy = map[string]bool{} })
		after(interval)
		if w.recorded("a").State != vm.Running {
			t.Errorf("recorded %s after the operation, want running", w.recorded("a").State)
		}
	})
}

func TestPassSkipsAVMThatBecomesBusy(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.vms["a"] = vm.VM{ID: "a", State: vm.Starting}
	w.settle = func(string) (vm.Repair, error) { return vm.Repair{}, vm.ErrBusy }
	observe(t, w, func(o *Observer) {
		after(2 * interval)
		expectIssues(t, o)
	})
}

func TestIssueNeedsConfirmationBySettle(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.vms["a"] = vm.VM{ID: "a", State: vm.Stopped}
	w.settle = func(string) (vm.Repair, error) { return vm.Repair{}, nil }
	observe(t, w, func(o *Observer) {
		after(3 * interval)
		expectIssues(t, o)
	})
}

func TestOrphanIsReportedBySecondPass(t *testing.T) {
	w := newWorld()
	w.seen.DiskFiles["stray"] = 1
	observe(t, w, func(o *Observer) {
		first := time.Now()
		expectIssues(t, o)
		for range 3 {
			after(interval)
			expectIssues(t, o, "orphan_disk disks/stray")
			if at := o.Status().Issues[0].FirstSeenAt; !at.Equal(first) {
				t.Errorf("first seen at %s, want %s", at, first)
			}
		}
		w.change(func() { delete(w.seen.DiskFiles, "stray") })
		after(interval)
		expectIssues(t, o)
		w.change(func() { w.seen.DiskFiles["stray"] = 1 })
		after(interval)
		expectIssues(t, o)
		after(interval)
		if at := o.Status().Issues[0].FirstSeenAt; !at.Equal(first.Add(5 * interval)) {
			t.Errorf("first seen at %s, want the start of its second appearance %s", at, first.Add(5*interval))
		}
		if _, settled, _ := w.did(); len(settled) != 0 {
			t.Errorf("settled %q, want no orphan settled", settled)
		}
	})
}

func TestRunningDeletionIsNotReported(t *testing.T) {
	w := newWorld()
	// The survey still has the files; the records, read after it, no longer have the VM.
	w.seen.VMFiles["a"] = true
	observe(t, w, func(o *Observer) {
		w.change(func() { delete(w.seen.VMFiles, "a") })
		after(interval)
		expectIssues(t, o)
	})
}

func TestFailedRepairIsReportedAndRetried(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.vms["a"] = vm.VM{ID: "a", State: vm.Stopped}
	w.settle = func(string) (vm.Repair, error) { return vm.Repair{}, errors.New("database is locked") }
	observe(t, w, func(o *Observer) {
		expectIssues(t, o, "vm_state_mismatch vms/a: the repair failed: database is locked")
		w.change(func() { w.settle = nil })
		after(interval)
		expectIssues(t, o, "vm_state_mismatch vms/a: recorded the truth")
		if at := o.Status().Issues[0].FirstSeenAt; time.Since(at) != interval {
			t.Errorf("first seen %s ago, want one interval, because it is the same issue", time.Since(at))
		}
	})
}

func TestMissingDiskIsReportedWithItsRepair(t *testing.T) {
	w := newWorld()
	w.disks["d"] = vm.Disk{ID: "d", State: vm.DiskAvailable}
	w.settle = func(string) (vm.Repair, error) {
		d := w.disks["d"]
		was := d.State
		d.State = vm.DiskError
		w.disks["d"] = d
		return vm.Repair{Changed: was != d.State, Was: string(was), Is: string(d.State), Detail: "recorded error"}, nil
	}
	observe(t, w, func(o *Observer) {
		expectIssues(t, o, "missing_disk disks/d: recorded error")
		after(interval)
		expectIssues(t, o, "missing_disk disks/d")
		after(interval)
		expectIssues(t, o, "missing_disk disks/d")
	})
}

func TestFailedReadDegradesTheStatus(t *testing.T) {
	for what, breakIt := range map[string]func(w *world, err error){
		"survey the host":          func(w *world, err error) { w.fail = err },
		"read the active VMs":      func(w *world, err error) { w.failRead["vms"] = err },
		"read the recorded VMs":    func(w *world, err error) { w.failRead["summaries"] = err },
		"read the recorded disks":  func(w *world, err error) { w.failRead["disks"] = err },
		"read the open operations": func(w *world, err error) { w.failRead["operations"] = err },
		"panic: a defect":          func(w *world, err error) { w.onSurvey = panicIf(err) },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld()
			w.seen.DiskFiles["stray"] = 1
			observe(t, w, func(o *Observer) {
				after(interval)
				w.change(func() { breakIt(w, errors.New("no luck")) })
				after(2 * interval)
				s := o.Status()
				want := what + ": no luck"
				if what == "panic: a defect" {
					want = what
				}
				if s.Status != StatusDegraded || s.Error != want || time.Since(s.LastRunAt) != 0 {
					t.Errorf("status %q, error %q, last run %s ago; want degraded, %q, now",
						s.Status, s.Error, time.Since(s.LastRunAt), want)
				}
				expectIssues(t, o, "orphan_disk disks/stray") // kept from the last successful pass
				w.change(func() { breakIt(w, nil) })
				after(interval)
				if s := o.Status(); s.Status != StatusOK || s.Error != "" {
					t.Errorf("status %q, error %q after recovery, want ok", s.Status, s.Error)
				}
			})
		})
	}
}

func TestHangingPassIsOverdue(t *testing.T) {
	w := newWorld()
	observe(t, w, func(o *Observer) {
		stuck := make(chan struct{})
		w.change(func() { w.stuck = stuck })
		if !o.Works() {
			t.Error("an observer that has begun a pass does not work")
		}
		after(overdue(interval))
		if o.Works() {
			t.Error("an observer works although its pass is stuck")
		}
		if s := o.Status(); s.Status != StatusOK {
			t.Errorf("status %q, %q within the time limit of a pass, want ok", s.Status, s.Error)
		}
		after(time.Second)
		if s := o.Status(); s.Status != StatusDegraded || s.Error == "" {
			t.Errorf("status %q, %q, want degraded with an error", s.Status, s.Error)
		}
		w.change(func() { w.stuck = nil })
		close(stuck)
		after(interval)
		if s := o.Status(); s.Status != StatusOK {
			t.Errorf("status %q, %q after the end of the pass, want ok", s.Status, s.Error)
		}
	})
}

func panicIf(err error) func() {
	if err == nil {
		return nil
	}
	return func() { panic("a defect") }
}

func TestPanicInARepairFailsOnlyThatRepair(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.run("b")
	w.vms["a"], w.vms["b"] = vm.VM{ID: "a", State: vm.Starting}, vm.VM{ID: "b", State: vm.Starting}
	w.settle = func(resource string) (vm.Repair, error) {
		if resource == "vms/a" {
			panic("a defect")
		}
		return vm.Repair{Changed: true, Detail: "recorded the truth"}, nil
	}
	observe(t, w, func(o *Observer) {
		expectIssues(t, o, "vm_state_mismatch vms/a: the repair failed: panic: a defect",
			"vm_state_mismatch vms/b: recorded the truth")
		o.Nudge("a")
		after(interval)
		if surveys, _, _ := w.did(); surveys != 2 || o.Status().Status != StatusOK {
			t.Errorf("%d surveys, status %s; want 2 and ok", surveys, o.Status().Status)
		}
	})
}

func TestMuteVMDoesNotDelayOtherRepairs(t *testing.T) {
	w := newWorld()
	w.run("mute")
	w.run("b")
	w.run("c")
	w.vms["mute"], w.vms["b"] = vm.VM{ID: "mute", State: vm.Starting}, vm.VM{ID: "b", State: vm.Starting}
	w.mute["vms/mute"] = true
	observe(t, w, func(o *Observer) {
		if w.recorded("b").State != vm.Running {
			t.Errorf("VM b is %s, want it settled at the same time as the mute VM", w.recorded("b").State)
		}
		w.change(func() { delete(w.seen.VMs, "c") })
		o.Nudge("c")
		synctest.Wait()
		if w.recorded("c").State != vm.Errored {
			t.Errorf("VM c is %s, want it settled while the pass still waits", w.recorded("c").State)
		}
		after(settleTimeout)
		expectIssues(t, o, "vm_state_mismatch vms/b: recorded the truth", "vm_state_mismatch vms/c: recorded the truth",
			"vm_state_mismatch vms/mute: the repair failed: context deadline exceeded")
	})
}

func TestInterruptedPassReportsNothing(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.vms["a"] = vm.VM{ID: "a", State: vm.Starting}
	w.mute["vms/a"] = true
	var o *Observer
	observe(t, w, func(running *Observer) {
		o = running
		o.Nudge("a")
		synctest.Wait()
	})
	if s := o.Status(); s.Status != StatusStarting || len(s.Issues) != 0 {
		t.Errorf("status %+v, want no findings of an interrupted pass", s)
	}
}

func TestPruneOnceAnHour(t *testing.T) {
	w := newWorld()
	observe(t, w, func(*Observer) {
		if _, _, prunes := w.did(); prunes != 1 {
			t.Errorf("pruned %d times at the start, want once", prunes)
		}
		after(time.Hour - interval)
		if _, _, prunes := w.did(); prunes != 1 {
			t.Errorf("pruned %d times within the hour, want once", prunes)
		}
		w.change(func() { w.pruneErr = errors.New("database is locked") })
		after(2 * interval)
		if _, _, prunes := w.did(); prunes != 2 {
			t.Errorf("pruned %d times after an hour, want twice", prunes)
		}
	})
}

func TestIssueAndRepairEvents(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.run("b")
	w.vms["a"] = vm.VM{ID: "a", State: vm.Stopped}
	w.seen.DiskFiles["stray"] = 1
	observe(t, w, func(o *Observer) {
		if i := o.Status().Issues[0]; !i.RepairedAt.Equal(time.Now()) || !i.FirstSeenAt.Equal(i.RepairedAt) {
			t.Errorf("issue %+v, want it repaired now", i)
		}
		after(3 * interval)
		if i := o.Status().Issues[0]; !i.RepairedAt.IsZero() {
			t.Errorf("issue %+v, want it not repaired", i)
		}
		w.change(func() { delete(w.seen.VMs, "b") })
		o.Nudge("b")
		synctest.Wait()
		if i := o.Status().Issues[1]; !i.RepairedAt.Equal(time.Now()) {
			t.Errorf("issue %+v, want it repaired now", i)
		}
		want := []string{
			`observer.issue vms/a {"details":"recorded as stopped (), but QEMU process 42 reports running","issue_type":"vm_state_mismatch","repair":null}`,
			`observer.repaired vms/a {"details":"recorded as stopped (), but QEMU process 42 reports running","issue_type":"vm_state_mismatch","repair":"recorded the truth"}`,
			`observer.issue disks/stray {"details":"the host has a file of disk stray, which is not recorded; adopt or delete the orphan","issue_type":"orphan_disk","repair":null}`,
			`observer.issue vms/b {"details":"recorded as running, found error","issue_type":"vm_state_mismatch","repair":null}`,
			`observer.repaired vms/b {"details":"recorded as running, found error","issue_type":"vm_state_mismatch","repair":"recorded the truth"}`,
		}
		if got := w.ownEvents(); !slices.Equal(got, want) {
			t.Errorf("recorded events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestFailedRepairIsOneEvent(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.vms["a"] = vm.VM{ID: "a", State: vm.Stopped}
	w.settle = func(string) (vm.Repair, error) { return vm.Repair{}, errors.New("no luck") }
	observe(t, w, func(*Observer) {
		after(3 * interval)
		if got := w.ownEvents(); len(got) != 1 || !strings.Contains(got[0], `"repair":"the repair failed: no luck"`) {
			t.Errorf("recorded events %q, want one with the error", got)
		}
	})
}

func TestUnrecordedEventsAreRecordedLater(t *testing.T) {
	w := newWorld()
	w.seen.Storage = vm.Storage{Path: "/d", FreeMiB: 0, SizeMiB: 1000}
	w.tellErr = errors.New("disk full")
	observeWith(t, w, Options{Interval: interval, LowMiB: 100}, func(o *Observer) {
		after(2 * interval)
		expectIssues(t, o, "storage_low storage//d")
		if got := w.ownEvents(); len(got) != 0 {
			t.Fatalf("recorded events %q, want none yet", got)
		}
		w.change(func() { w.tellErr, w.seen.Storage.FreeMiB = nil, 500 })
		after(interval)
		expectIssues(t, o)
		if got := w.ownEvents(); len(got) != 1 || !strings.HasPrefix(got[0], "observer.issue storage//d ") {
			t.Errorf("recorded events %q, want the earlier storage_low", got)
		}
	})
}

func TestReportModeSettlesNothing(t *testing.T) {
	w := newWorld()
	w.run("a")
	w.vms["a"] = vm.VM{ID: "a", State: vm.Stopped}
	w.disks["d"] = vm.Disk{ID: "d", State: vm.DiskCreating}
	w.open = []vm.Operation{{ID: "1", Kind: vm.VMPause, Resource: vm.VMResource("b"), State: vm.OpRunning}}
	observeWith(t, w, Options{Interval: interval, Repair: RepairReport}, func(o *Observer) {
		if s := o.Status(); s.Repair != RepairReport {
			t.Errorf("status %+v, want repair mode report", s)
		}
		o.Nudge("a")
		synctest.Wait()
		expectIssues(t, o) // a second pass must agree
		after(interval)
		expectIssues(t, o, "disk_state_inconsistent disks/d", "vm_state_mismatch vms/a", "vm_state_mismatch vms/b")
		if _, settled, _ := w.did(); len(settled) != 0 {
			t.Errorf("settled %q, want none", settled)
		}
		if got := w.ownEvents(); len(got) != 3 || !strings.Contains(got[1], `"repair":null`) {
			t.Errorf("recorded events %q, want three issues without a repair", got)
		}
	})
}

func TestMuteMonitorIsReportedAfterThreePasses(t *testing.T) {
	w := newWorld()
	w.run("a")
	mute := func(mute bool) {
		w.change(func() {
			o := vm.Observation{PID: 42, Status: vm.StatusRunning}
			if mute {
				o.Status = vm.StatusMute
			}
			w.seen.VMs["a"] = o
		})
	}
	observe(t, w, func(o *Observer) {
		mute(true)
		after(2 * interval)
		mute(false)
		after(interval)
		mute(true)
		after(2 * interval)
		expectIssues(t, o)
		after(interval)
		expectIssues(t, o, "qmp_unreachable vms/a")
		mute(false)
		after(interval)
		expectIssues(t, o)
	})
}

func TestRepairWithoutStateChangeIsDescribed(t *testing.T) {
	w := newWorld()
	w.disks["d"] = vm.Disk{ID: "d", State: vm.DiskAvailable, DiskFile: vm.DiskFile{SizeMiB: 1024}}
	w.seen.DiskFiles["d"] = 2048
	w.settle = func(string) (vm.Repair, error) {
		w.disks["d"] = vm.Disk{ID: "d", State: vm.DiskAvailable, DiskFile: vm.DiskFile{SizeMiB: 2048}}
		return vm.Repair{Changed: true, Was: "available", Is: "available", Detail: "recorded available in place of available"}, nil
	}
	observe(t, w, func(o *Observer) {
		expectIssues(t, o, "disk_size_mismatch disks/d: recorded 2048 MiB in place of 1024 MiB")
		after(interval)
		expectIssues(t, o)
	})
}
