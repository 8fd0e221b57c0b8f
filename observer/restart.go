package observer

import (
	"context"
	"errors"
	"sync"
	"time"

	"vmand/vm"
)

const (
	// newsPause gathers events, so that a busy daemon does not have the records
	// read for each of them.
	newsPause = 50 * time.Millisecond
	// newsPage is how many events are read at once.
	newsPage = 1000
	// busyPause is after how long a restart is tried again that something was in
	// the way of, and refusedPause one that was refused, for want of memory, say.
	busyPause    = 200 * time.Millisecond
	refusedPause = 5 * time.Second
)

// A schedule holds when which VM is to be restarted by its policy. It may be
// behind the records: whoever restarts a VM looks at them under its lock.
type schedule struct {
	changed chan struct{} // holds one: there is something new in due
	last    int64         // number of the newest event known, -1 if none is; only the follower uses it

	mu      sync.Mutex
	due     map[string]time.Time // by id of the VM
	refused map[string]string    // why the last restart could not begin, by id of the VM
}

func newSchedule() *schedule {
	return &schedule{changed: make(chan struct{}, 1), due: map[string]time.Time{}, refused: map[string]string{}, last: -1}
}

// set makes the VM due at a time, or never if that is zero.
func (s *schedule) set(id string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.IsZero() {
		delete(s.due, id)
		delete(s.refused, id)
		return
	}
	s.due[id] = at
	s.wake()
}

// add makes due what is recorded so and not known yet.
func (s *schedule) add(vms []vm.VM) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range vms {
		if _, known := s.due[v.ID]; !known && !v.RestartAt.IsZero() {
			s.due[v.ID] = v.RestartAt
			s.wake()
		}
	}
}

func (s *schedule) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// take removes and returns what is due, and how long it is until more will be.
func (s *schedule) take() (due []string, next time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next = time.Hour
	for id, at := range s.due {
		if wait := time.Until(at); wait > 0 {
			next = min(next, wait)
			continue
		}
		due = append(due, id)
		delete(s.due, id)
	}
	return due, next
}

// refuse reports whether it is news that the VM cannot be restarted, and why.
func (s *schedule) refuse(id, why string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := s.refused[id] == why
	s.refused[id] = why
	return !again
}

// serveRestarts begins every restart when it is due. The passes tell it what is;
// the events about VMs tell it what has changed since.
func (o *Observer) serveRestarts(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	slots := make(chan struct{}, parallel)
	news := o.settler.NextEvent()
	o.readNews(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-news:
			if !pause(ctx, newsPause) {
				return
			}
			news = o.settler.NextEvent() // before reading, or some are missed
			o.readNews(ctx)
		case <-o.restarts.changed:
		case <-timer.C:
		}
		due, next := o.restarts.take()
		for _, id := range due {
			o.wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				o.restart(ctx, id)
			})
		}
		timer.Reset(next)
	}
}

// pause waits and reports false if ctx was done first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// readNews looks at the VMs that something has happened to since the last time.
// What it cannot read, the next pass does.
func (o *Observer) readNews(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, passTimeout)
	defer stop()
	if _, err := guard(o.log, func() (struct{}, error) { return struct{}{}, o.followVMs(ctx) }); err != nil && ctx.Err() == nil {
		o.log.Warn("cannot see which VMs are to be restarted; the next pass will", "err", err)
	}
}

func (o *Observer) followVMs(ctx context.Context) error {
	s := o.restarts
	if s.last < 0 {
		last, err := o.records.LastEvent(ctx)
		if err == nil {
			s.last = last
		}
		return err
	}
	for {
		events, err := o.records.Events(ctx, vm.EventFilter{Type: "vm."}, vm.Page{After: s.last, Limit: newsPage})
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, e := range events {
			id := e.Resource.ID
			if seen[id] {
				continue
			}
			seen[id] = true
			v, err := o.records.VM(ctx, id)
			if err != nil && !errors.Is(err, vm.ErrNotFound) {
				return err
			}
			s.set(id, v.RestartAt)
		}
		if len(events) > 0 {
			s.last = events[len(events)-1].Seq
		}
		if len(events) < newsPage {
			return nil
		}
	}
}

// restart begins the restart of one VM, or schedules it anew.
func (o *Observer) restart(ctx context.Context, id string) {
	callCtx, stop := context.WithTimeout(ctx, settleTimeout)
	defer stop()
	op, err := guard(o.log, func() (vm.Operation, error) { return o.restarter.RestartDue(callCtx, id) })
	switch {
	case err == nil:
		o.log.Info("restarting a VM by its policy", "vm", id, "op", op.ID)
		return
	case ctx.Err() != nil:
		return
	case errors.Is(err, vm.ErrBusy):
		o.restarts.set(id, time.Now().Add(busyPause))
		return
	}
	v, rerr := o.records.VM(callCtx, id)
	if rerr != nil || v.RestartAt.IsZero() {
		o.restarts.set(id, time.Time{}) // it is not to be restarted any more, or the next pass will say so
		return
	}
	if v.RestartAt.After(time.Now()) {
		o.restarts.set(id, v.RestartAt)
		return
	}
	if o.restarts.refuse(id, err.Error()) {
		o.log.Warn("cannot restart a VM by its policy; it is tried again", "vm", id, "err", err)
	}
	o.restarts.set(id, time.Now().Add(refusedPause))
}
