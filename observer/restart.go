package observer

import (
	"context"
	"errors"
	"sync"
	"time"

	"vmand/vm"
)

const (
	// newsPause is the wait after an event, so that the records are read once for many
	// events.
	newsPause = 50 * time.Millisecond
	// newsPage is the number of events read at once.
	newsPage = 1000
	// busyPause is the time until the retry of a restart for which the VM was busy.
	busyPause = 200 * time.Millisecond
	// refusedPause is the time until the retry of a restart that failed, for example because
	// the host had too little memory.
	refusedPause = 5 * time.Second
)

// A schedule holds the times of the restarts by policy. It may be older than the records:
// the restart of a VM reads them again, with the VM's lock held.
type schedule struct {
	changed chan struct{} // of capacity 1: due has changed
	last    int64         // number of the newest known event, -1 before the first; used by followVMs only

	mu      sync.Mutex
	due     map[string]time.Time // by id of the VM
	refused map[string]string    // error of the last restart, by id of the VM
}

func newSchedule() *schedule {
	return &schedule{
		changed: make(chan struct{}, 1),
		due:     map[string]time.Time{},
		refused: map[string]string{},
		last:    -1,
	}
}

// set schedules the restart of a VM. A zero time cancels it.
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

// add schedules the recorded restarts that are not scheduled yet.
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

// take removes and returns the VMs that are due, and the time until the next one is due.
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

// refuse notes the error of a restart and reports whether it differs from the last one.
func (s *schedule) refuse(id, why string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := s.refused[id] == why
	s.refused[id] = why
	return !again
}

// serveRestarts begins every restart when it is due. It learns the restarts from the passes
// and, between them, from the events of VMs.
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
			news = o.settler.NextEvent() // before readNews, or events in between are missed
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

// pause waits for d. It returns false if ctx was done first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// readNews calls followVMs and logs its error. The next pass reads the restarts that
// followVMs could not read.
func (o *Observer) readNews(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, passTimeout)
	defer stop()
	_, err := guard(o.log, func() (struct{}, error) { return struct{}{}, o.followVMs(ctx) })
	if err != nil && ctx.Err() == nil {
		o.log.Warn("cannot read the scheduled restarts of VMs; the next pass tries again", "err", err)
	}
}

// followVMs schedules the restarts of the VMs that have had events since its last call.
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

// restart begins the restart of a VM. If that fails, it schedules another attempt.
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
		o.restarts.set(id, time.Time{}) // no restart is recorded, or the next pass will read it
		return
	}
	if v.RestartAt.After(time.Now()) {
		o.restarts.set(id, v.RestartAt)
		return
	}
	if o.restarts.refuse(id, err.Error()) {
		o.log.Warn("cannot restart a VM by its policy; the attempts continue", "vm", id, "err", err)
	}
	o.restarts.set(id, time.Now().Add(refusedPause))
}
