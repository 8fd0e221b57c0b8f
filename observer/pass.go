package observer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"vmand/vm"
)

// A finding identifies an issue from pass to pass.
type finding struct {
	issue    IssueType
	resource vm.Resource
}

// A suspicion is the history of a finding.
type suspicion struct {
	since    time.Time
	passes   int // number of passes in a row with the finding
	reported bool
	issue    *Issue // in the status since the last pass; nil if none
}

// pass compares the records with the host once and publishes its findings.
func (o *Observer) pass(ctx context.Context) {
	began := time.Now()
	passCtx, stop := context.WithTimeout(ctx, passTimeout)
	defer stop()
	whole := o.beginPass(passCtx)
	var seen view
	plan, err := guard(o.log, func() (plan []Action, err error) {
		if whole {
			seen, err = o.viewAll(passCtx)
		} else {
			seen, err = o.viewActive(passCtx)
		}
		if err != nil {
			return nil, err
		}
		return o.plan(passCtx, seen)
	})
	var results []result
	if err == nil {
		results = o.act(ctx, plan)
		drift, repaired := o.networks(passCtx, seen.active)
		plan, results = append(plan, drift...), append(results, repaired...)
	}
	switch {
	case ctx.Err() != nil: // the daemon stops: an interrupted pass has no valid findings
	case err != nil:
		o.cycle.whole = true
		o.degrade(began, err)
	default:
		o.tell(ctx, o.publish(began, seen.planner, plan, results))
	}
}

// reportOnly returns the action without its repair. The Settler then does not confirm it, so
// a second pass must.
func (a Action) reportOnly() Action {
	if a.Settle {
		a.Settle, a.Passes = false, max(a.Passes, 2)
	}
	return a
}

// outcome is how an action ended.
type outcome int

const (
	untouched outcome = iota // only reported, or the Settler found no difference
	skipped                  // an operation holds the resource and will record its state
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
			o.noteProgress() // the number of repairs is not limited
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
		return result{outcome: skipped} // a resource without a record needs no repair
	case err != nil:
		return result{outcome: failed, err: err}
	case repair.Changed:
		if repair.Was == repair.Is && a.Cure != "" {
			repair.Detail = a.Cure
		}
		return result{outcome: repaired, repair: repair}
	}
	return result{}
}

// publish puts the findings of a pass into the status, logs the new ones, and returns their
// events. It keeps the earlier findings that the pass did not check.
func (o *Observer) publish(began time.Time, p *planner, plan []Action, results []result) []vm.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	since := make(map[finding]*suspicion, len(plan))
	var issues []Issue
	var events []vm.Event
	for i, a := range plan {
		key := finding{a.Type, a.Resource}
		s := o.since[key]
		if s == nil {
			s = &suspicion{since: began}
		}
		s.passes++
		s.issue = nil
		since[key] = s
		if issue, ok := issueOf(a, results[i], s.passes); ok {
			issue.FirstSeenAt = s.since
			s.issue = &issue
			issues = append(issues, issue)
			events = append(events, o.announce(issue, s)...)
		}
		if a.Type.ofFiles() {
			o.cycle.watched[a.Resource] = true
			o.cycle.whole = o.cycle.whole || results[i].outcome != untouched || s.passes < a.Passes
		}
	}
	for key, s := range o.since {
		repaired := s.issue != nil && !s.issue.RepairedAt.IsZero()
		if since[key] != nil || p.covers(key) || repaired || p.held[key.resource] || o.settler.Busy(key.resource) {
			continue
		}
		since[key] = s
		o.cycle.watched[key.resource] = true
		if s.issue != nil {
			issues = append(issues, *s.issue)
		}
	}
	o.since = since
	if o.status.Status == StatusDegraded {
		o.log.Info("observer works again", "was", o.status.Error)
	}
	o.status = Status{
		Status:        StatusOK,
		CheckInterval: o.o.Interval,
		LastRunAt:     began,
		LastDuration:  time.Since(began),
		Issues:        append(issues, o.repaired...),
	}
	slices.SortStableFunc(o.status.Issues, compareIssues)
	o.repaired = nil
	return events
}

// issueOf returns the issue to report for an action and its result, if any. passes is the
// number of passes in a row that found it. The survey may be older than the records, so an
// action that the Settler did not confirm is no issue, and one without the Settler needs
// the agreement of several passes.
func issueOf(a Action, r result, passes int) (Issue, bool) {
	i := Issue{Type: a.Type, Resource: a.Resource, Details: a.Details}
	switch r.outcome {
	case skipped:
		return Issue{}, false
	case repaired:
		i.Repair, i.RepairedAt = r.repair.Detail, time.Now()
		return i, true
	case failed:
		i.Repair = "the repair failed: " + r.err.Error()
		return i, true
	}
	return i, a.Passes > 0 && passes >= a.Passes
}

// announce logs a repair, and an issue the first time that it is reported, and returns the
// events for both.
func (o *Observer) announce(i Issue, s *suspicion) (events []vm.Event) {
	mended := !i.RepairedAt.IsZero()
	if !s.reported {
		s.reported = true
		found := i
		if mended {
			found.Repair = ""
		} else {
			o.log.Warn("records and host disagree", issueAttrs(i)...)
		}
		events = append(events, issueEvent("observer.issue", found))
	}
	if mended {
		o.log.Info("repaired", issueAttrs(i)...)
		events = append(events, issueEvent("observer.repaired", i))
	}
	return events
}

func issueEvent(kind string, i Issue) vm.Event {
	data := map[string]any{"issue_type": i.Type, "details": i.Details, "repair": nil}
	if i.Repair != "" {
		data["repair"] = i.Repair
	}
	return vm.NewEvent(kind, i.Resource, data)
}

// tell records events after the earlier ones that could not be recorded, for example because
// the disk was full.
func (o *Observer) tell(ctx context.Context, events []vm.Event) {
	o.telling.Lock()
	defer o.telling.Unlock()
	o.untold = append(o.untold, events...)
	if len(o.untold) == 0 {
		return
	}
	// The end of the daemon must not lose the event of a finished repair.
	ctx = vm.WithCaller(context.WithoutCancel(ctx), vm.Caller{Name: "observer"})
	ctx, stop := context.WithTimeout(ctx, tellTimeout)
	defer stop()
	_, err := guard(o.log, func() (struct{}, error) { return struct{}{}, o.settler.Tell(ctx, o.untold...) })
	if err != nil {
		o.untold = o.untold[max(0, len(o.untold)-maxUntold):]
		o.log.Warn("cannot record the events of the observer; the next pass tries again",
			"waiting", len(o.untold), "err", err)
		return
	}
	o.untold = nil
}

// degrade publishes that a pass failed. It keeps the issues of the last successful pass.
func (o *Observer) degrade(began time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.status.Status != StatusDegraded || o.status.Error != err.Error() {
		o.log.Error("the pass of the observer failed", "err", err)
	}
	o.status.Status, o.status.Error = StatusDegraded, err.Error()
	o.status.LastRunAt, o.status.LastDuration = began, time.Since(began)
}
