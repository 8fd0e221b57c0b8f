package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vmand/vm"
)

const (
	// clockPatience bounds the attempts to set the clock of one guest.
	clockPatience = 2 * time.Minute
	// clockAttempt bounds one attempt.
	clockAttempt = 45 * time.Second
	// clockRefusals is how many attempts a guest may refuse. A guest with frozen file systems
	// refuses, too; a freeze ends after 10 s.
	clockRefusals = 5
	// firstClockPause is the pause after the first attempt. It doubles after each, up to
	// lastClockPause.
	firstClockPause = time.Second
	lastClockPause  = 8 * time.Second
	// clockBack is the number of events that Recover reads to find the clocks that were not checked.
	clockBack = 20_000
)

// CheckClock has the clock of a running guest set to the host's, if it differs and the guest
// has an agent. It must be called after everything that stops the time of a guest: the record of
// a VM that continues after a pause calls it, see [Engine.commit]. It does not wait. An event
// and the log have the result.
func (s *Guests) CheckClock(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clocks == nil {
		s.clocks = map[string]int{}
	}
	s.clocks[id]++
	if s.clocks[id] == 1 {
		s.background(func() { s.checkClocks(id) })
	}
}

// checkClocks checks the clock of a guest until no further check was requested.
func (s *Guests) checkClocks(id string) {
	for {
		s.mu.Lock()
		requested := s.clocks[id]
		s.mu.Unlock()
		s.checkClock(id)
		s.mu.Lock()
		again := s.clocks[id] != requested && !s.closing
		if !again {
			delete(s.clocks, id)
		}
		s.mu.Unlock()
		if !again {
			return
		}
	}
}

// checkClock sets the clock of a guest. It tries again until the guest answers, for as long as
// the VM runs. A guest that was paused while it booted may start its agent later.
func (s *Guests) checkClock(id string) {
	ctx, stop := context.WithTimeout(s.ctx, clockPatience)
	defer stop()
	refusals, offset := 0, time.Duration(0)
	for pause := firstClockPause; ; pause = min(2*pause, lastClockPause) {
		v, err := s.store.VM(ctx, id)
		if err != nil || v.State != vm.Running {
			return // it was deleted or paused again, or the daemon ends
		}
		attempt, end := context.WithTimeout(ctx, clockAttempt)
		check, err := s.driver.SetClock(attempt, id)
		end()
		if vm.HasCode(err, vm.CodeGuestRefused) {
			refusals++
		}
		if offset.Abs() < check.Offset.Abs() {
			offset = check.Offset
		}
		if check.Set { // an earlier attempt may have set it roughly
			check.Offset = offset
		}
		if err == nil || refusals == clockRefusals {
			s.recordClock(id, check, err)
			return
		}
		select {
		case <-time.After(pause):
			continue
		case <-ctx.Done():
		}
		switch {
		case s.ctx.Err() != nil: // the next daemon checks it
		case s.driver.Agent(id).State == vm.AgentAbsent:
			s.log.Debug("the clock of a guest is not checked: it has no agent", "vm", id)
		default:
			s.recordClock(id, check, err)
		}
		return
	}
}

// recordClock records the result of the check of a clock.
func (s *Guests) recordClock(id string, check vm.ClockCheck, failure error) {
	data := map[string]any{"set": check.Set, "offset_ms": check.Offset.Milliseconds()}
	switch {
	case failure != nil:
		data["problem"] = vm.ProblemOf(failure)
		s.log.Warn("the clock of a guest may be wrong: it cannot be set after a pause", "vm", id, "err", failure)
	case check.Set:
		s.log.Info("the clock of a guest was set after a pause", "vm", id, "offset", check.Offset)
	}
	ctx, stop := context.WithTimeout(context.Background(), recordPatience)
	defer stop()
	err := s.Tell(ctx, vm.NewEvent("vm.clock", vm.VMResource(id), data))
	if err != nil && !errors.Is(err, vm.ErrNotFound) {
		s.log.Warn("cannot record the check of a clock", "vm", id, "err", err)
	}
}

// recoverClocks checks the clocks of the guests that continued after a pause and were not
// checked before the daemon ended.
func (s *Guests) recoverClocks(ctx context.Context) error {
	last, err := s.store.LastEvent(ctx)
	if err != nil {
		return fmt.Errorf("read the last event: %w", err)
	}
	events, err := s.store.Events(ctx, vm.EventFilter{Type: "vm."}, vm.Page{After: max(0, last-clockBack)})
	if err != nil {
		return fmt.Errorf("read the events of VMs: %w", err)
	}
	due := map[string]bool{}
	for _, e := range events {
		switch e.Type {
		case "vm.state":
			var move struct{ From, To vm.State }
			if json.Unmarshal(e.Data, &move) == nil {
				due[e.Resource.ID] = stoppedTime(move.From, move.To)
			}
		case "vm.clock", "vm.deleted":
			delete(due, e.Resource.ID)
		}
	}
	for id, unchecked := range due {
		if unchecked {
			s.CheckClock(id)
		}
	}
	return nil
}

// stoppedTime reports whether the time of a guest stood still before a VM changed its state.
func stoppedTime(from, to vm.State) bool { return from == vm.Paused && to == vm.Running }
