package observer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmand/vm"
)

// A finding is what makes two issues the same one.
type finding struct {
	issue    IssueType
	resource string
}

// A suspicion is what is remembered of a finding from pass to pass.
type suspicion struct {
	since    time.Time
	reported bool
}

// pass compares once, and publishes what it found.
func (o *Observer) pass(ctx context.Context) {
	began := time.Now()
	passCtx, stop := context.WithTimeout(ctx, passTimeout)
	plan, err := guard(o.log, func() ([]Action, error) { return o.look(passCtx) })
	stop()
	var results []result
	if err == nil {
		results = o.act(ctx, plan)
	}
	switch {
	case ctx.Err() != nil: // asked to end: a pass cut short proves nothing
	case err != nil:
		o.degrade(began, err)
	default:
		o.publish(began, plan, results)
	}
}

// look observes the host before it reads the records: a VM created in between
// then shows as recorded and not there, which Settle knows, and never as an
// orphan.
func (o *Observer) look(ctx context.Context) ([]Action, error) {
	seen, err := o.host.Survey(ctx)
	if err != nil {
		return nil, fmt.Errorf("survey the host: %w", err)
	}
	var recorded Recorded
	if recorded.VMs, err = o.records.VMs(ctx, vm.VMFilter{}, vm.Page{}); err != nil {
		return nil, fmt.Errorf("read the recorded vms: %w", err)
	}
	if recorded.Disks, err = o.records.Disks(ctx, vm.DiskFilter{}, vm.Page{}); err != nil {
		return nil, fmt.Errorf("read the recorded disks: %w", err)
	}
	if recorded.Open, err = o.records.Operations(ctx, vm.OperationFilter{Open: true}, vm.Page{}); err != nil {
		return nil, fmt.Errorf("read the open operations: %w", err)
	}
	return Plan(recorded, seen, o.settler.Busy), nil
}

// outcome is how an action ended.
type outcome int

const (
	untouched outcome = iota // not to be settled, or nothing was found to change
	skipped                  // an operation holds the resource: it will record
	repaired
	failed
)

type result struct {
	outcome outcome
	repair  vm.Repair
	err     error
}

// act carries out the plan and returns how each action ended.
func (o *Observer) act(ctx context.Context, plan []Action) []result {
	results := make([]result, len(plan))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, a := range plan {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			results[i] = o.settle(ctx, a)
		})
	}
	wg.Wait()
	return results
}

func (o *Observer) settle(ctx context.Context, a Action) result {
	if !a.Settle {
		return result{}
	}
	ctx, stop := context.WithTimeout(vm.WithCaller(ctx, vm.Caller{Name: "observer"}), settleTimeout)
	defer stop()
	repair, err := guard(o.log, func() (vm.Repair, error) { return o.settler.Settle(ctx, a.Resource) })
	switch {
	case errors.Is(err, vm.ErrBusy), errors.Is(err, vm.ErrNotFound):
		return result{outcome: skipped} // what is gone from the records needs no repair
	case err != nil:
		return result{outcome: failed, err: err}
	case repair.Changed:
		return result{outcome: repaired, repair: repair}
	}
	return result{}
}

// publish makes the pass's findings the status, and logs what is new in them.
func (o *Observer) publish(began time.Time, plan []Action, results []result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	since := make(map[finding]*suspicion, len(plan))
	var issues []Issue
	for i, a := range plan {
		key := finding{a.Type, a.Resource}
		s, again := o.since[key]
		if !again {
			s = &suspicion{since: began}
		}
		since[key] = s
		if issue, ok := issueOf(a, results[i], again); ok {
			issue.FirstSeenAt = s.since
			issues = append(issues, issue)
			o.announce(issue, results[i], s)
		}
	}
	o.since = since
	if o.status.Status == StatusDegraded {
		o.log.Info("observer is well again", "was", o.status.Error)
	}
	o.status = Status{Status: StatusOK, CheckInterval: o.o.Interval, LastRunAt: began, LastDuration: time.Since(began),
		Issues: append(issues, o.repaired...)}
	slices.SortStableFunc(o.status.Issues, compareIssues)
	o.repaired = nil
}

// issueOf returns what is to be reported of an action, if anything. The survey
// behind an action may be older than what an operation recorded meanwhile, so
// what a look under the lock did not confirm is no issue, and what nobody looked
// at again needs a second pass that agrees.
func issueOf(a Action, r result, again bool) (Issue, bool) {
	i := Issue{Type: a.Type, Resource: a.Resource, Details: a.Details}
	switch r.outcome {
	case skipped:
		return Issue{}, false
	case repaired:
		i.Repair = r.repair.Detail
		return i, true
	case failed:
		i.Repair = "tried, and failed: " + r.err.Error()
		return i, true
	}
	return i, a.Doubtful && again
}

// announce logs a repair, and anything else the first time it is reported.
func (o *Observer) announce(i Issue, r result, s *suspicion) {
	switch {
	case r.outcome == repaired:
		o.log.Info("repaired", issueAttrs(i)...)
	case !s.reported:
		o.log.Warn("records and host disagree", issueAttrs(i)...)
		s.reported = true
	}
}

// degrade publishes that a pass could not look. The issues of the last one that
// could stay: nothing says that they are gone.
func (o *Observer) degrade(began time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.status.Status != StatusDegraded || o.status.Error != err.Error() {
		o.log.Error("observer cannot look", "err", err)
	}
	o.status.Status, o.status.Error = StatusDegraded, err.Error()
	o.status.LastRunAt, o.status.LastDuration = began, time.Since(began)
}
