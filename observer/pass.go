package observer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"vmand/vm"
)

// A finding is what makes two issues the same one.
type finding struct {
	issue    IssueType
	resource vm.Resource
}

// A suspicion is what is remembered of a finding from pass to pass.
type suspicion struct {
	since    time.Time
	passes   int // that found it in a row
	reported bool
	issue    *Issue // that the last pass listed of it, nil if none
}

// pass compares once, and publishes its findings.
func (o *Observer) pass(ctx context.Context) {
	began := time.Now()
	passCtx, stop := context.WithTimeout(ctx, passTimeout)
	defer stop()
	whole := o.beginPass(passCtx)
	var seen view
	plan, err := guard(o.log, func() (plan []Action, err error) {
		if whole {
			seen, err = o.lookAtAll(passCtx)
		} else {
			seen, err = o.lookAtActive(passCtx)
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
	case ctx.Err() != nil: // the daemon stops: a pass cut short proves nothing
	case err != nil:
		o.cycle.whole = true
		o.degrade(began, err)
	default:
		o.tell(ctx, o.publish(began, seen.planner, plan, results))
	}
}

// reportOnly returns the action without its repair. Nobody looks under the lock
// then, so a second pass has to confirm it.
func (a Action) reportOnly() Action {
	if a.Settle {
		a.Settle, a.Passes = false, max(a.Passes, 2)
	}
	return a
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
		if repair.Was == repair.Is && a.Cure != "" {
			repair.Detail = a.Cure
		}
		return result{outcome: repaired, repair: repair}
	}
	return result{}
}

// publish makes the findings of a pass the status, logs those that are new, and returns
// their events. A finding that the pass did not look at again stays as it was.
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
		o.log.Info("observer is well again", "was", o.status.Error)
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

// issueOf returns what is to be reported of an action that so many passes in a
// row have found, if anything. The survey behind it may be older than what an
// operation recorded meanwhile, so what a look under the lock did not confirm is
// no issue, and what nobody looked at again needs another pass that agrees.
func issueOf(a Action, r result, passes int) (Issue, bool) {
	i := Issue{Type: a.Type, Resource: a.Resource, Details: a.Details}
	switch r.outcome {
	case skipped:
		return Issue{}, false
	case repaired:
		i.Repair, i.RepairedAt = r.repair.Detail, time.Now()
		return i, true
	case failed:
		i.Repair = "tried, and failed: " + r.err.Error()
		return i, true
	}
	return i, a.Passes > 0 && passes >= a.Passes
}

// announce logs a repair, and anything else the first time it is reported. It
// returns the events that tell of both.
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

// tell records events, and those before them that could not be recorded: what
// was found while the disk was full is told when there is room again.
func (o *Observer) tell(ctx context.Context, events []vm.Event) {
	o.telling.Lock()
	defer o.telling.Unlock()
	o.untold = append(o.untold, events...)
	if len(o.untold) == 0 {
		return
	}
	// A repair that is done is told of, also when the daemon ends meanwhile.
	ctx, stop := context.WithTimeout(vm.WithCaller(context.WithoutCancel(ctx), vm.Caller{Name: "observer"}), tellTimeout)
	defer stop()
	_, err := guard(o.log, func() (struct{}, error) { return struct{}{}, o.settler.Tell(ctx, o.untold...) })
	if err != nil {
		o.untold = o.untold[max(0, len(o.untold)-maxUntold):]
		o.log.Warn("cannot record the observer's events yet", "waiting", len(o.untold), "err", err)
		return
	}
	o.untold = nil
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
