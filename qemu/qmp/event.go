package qmp

import (
	"context"
	"sync/atomic"
)

// maxBacklog is how many events are kept for the first subscriber.
const maxBacklog = 64

// hub distributes events. It is guarded by the mutex of its Conn.
type hub struct {
	subscriptions map[*Subscription]struct{}
	expectations  map[*Expectation]struct{}

	// Events from before the first subscription, and how many more there were.
	backlog    []Event
	overflowed uint64
	subscribed bool // there was a first subscription
}

func (h *hub) publish(e Event) {
	for x := range h.expectations {
		if x.match(e) {
			x.event = e
			close(x.met)
			delete(h.expectations, x)
		}
	}
	for s := range h.subscriptions {
		s.offer(e)
	}
	switch {
	case h.subscribed:
	case len(h.backlog) < maxBacklog:
		h.backlog = append(h.backlog, e)
	default:
		h.overflowed++
	}
}

func (h *hub) close() {
	for s := range h.subscriptions {
		h.unsubscribe(s)
	}
	clear(h.expectations)
}

func (h *hub) unsubscribe(s *Subscription) {
	if _, ok := h.subscriptions[s]; ok {
		delete(h.subscriptions, s)
		close(s.events)
	}
}

// Subscription is a queue of events.
type Subscription struct {
	conn   *Conn
	events chan Event
	lost   atomic.Uint64
}

// Subscribe returns a queue that takes every event from now on, and up to
// buffer of them (at least one) while nobody reads. The first subscription of
// a connection begins with the events that came before it (at most 64 of them).
//
// A full queue loses events and says so, see [Subscription.Lost]; it never
// delays the answers to commands. Close it when it is no longer read.
func (c *Conn) Subscribe(buffer int) *Subscription {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.hub
	s := &Subscription{conn: c, events: make(chan Event, max(buffer, len(h.backlog), 1))}
	for _, e := range h.backlog {
		s.offer(e)
	}
	s.lost.Add(h.overflowed)
	h.backlog, h.overflowed, h.subscribed = nil, 0, true
	if c.cause != nil {
		close(s.events)
		return s
	}
	if h.subscriptions == nil {
		h.subscriptions = make(map[*Subscription]struct{})
	}
	h.subscriptions[s] = struct{}{}
	return s
}

func (s *Subscription) offer(e Event) {
	select {
	case s.events <- e:
	default:
		s.lost.Add(1)
	}
}

// C returns the channel that the events come from. It is closed when the
// connection ends or the subscription is closed; what was queued before can
// still be read.
func (s *Subscription) C() <-chan Event { return s.events }

// Lost returns how many events were lost since it was last called, because the
// queue was full. Asked after each receive, it never misses a loss: at the time
// of one there were events to receive. Who lost events must look for itself.
func (s *Subscription) Lost() uint64 { return s.lost.Swap(0) }

// Close ends the subscription and closes its channel. Closing twice does
// nothing.
func (s *Subscription) Close() {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.conn.hub.unsubscribe(s)
}

// Expectation waits for one certain event.
type Expectation struct {
	conn  *Conn
	match func(Event) bool
	met   chan struct{}
	event Event // valid once met is closed
}

// Expect begins to look for the first event for which match returns true.
// Called before the command that causes the event, it cannot miss it: events
// are matched as they are read, whatever the queues of subscribers hold.
//
// match is called by the goroutine that reads the connection: it must be quick
// and must not use the connection. Cancel the expectation when done with it.
func (c *Conn) Expect(match func(Event) bool) *Expectation {
	x := &Expectation{conn: c, match: match, met: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return x
	}
	if c.hub.expectations == nil {
		c.hub.expectations = make(map[*Expectation]struct{})
	}
	c.hub.expectations[x] = struct{}{}
	return x
}

// Wait blocks until the event has come, ctx is done or the connection has
// ended, and returns the event, ctx's error or one that matches [ErrClosed]. It
// may be called again, and gives the same event again.
func (x *Expectation) Wait(ctx context.Context) (Event, error) {
	var cause error
	select {
	case <-x.met:
		return x.event, nil
	case <-ctx.Done():
		cause = ctx.Err()
	case <-x.conn.done:
		cause = x.conn.Err()
	}
	select {
	case <-x.met: // it came in the same moment
		return x.event, nil
	default:
		return Event{}, cause
	}
}

// Cancel ends the expectation. A Wait that has not got the event will not.
func (x *Expectation) Cancel() {
	x.conn.mu.Lock()
	defer x.conn.mu.Unlock()
	delete(x.conn.hub.expectations, x)
}
