package qmp

import (
	"context"
	"sync/atomic"
)

// maxBacklog is how many events are kept for the first subscription.
const maxBacklog = 64

// hub distributes events. Its methods must be called with the mu of its Conn held.
type hub struct {
	subscriptions map[*Subscription]struct{}
	expectations  map[*Expectation]struct{}

	// The events before the first subscription.
	backlog    []Event
	overflowed uint64 // events that did not fit into backlog
	subscribed bool   // there was a first subscription
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

// Subscribe returns a queue of all events from now on, with room for buffer events (at
// least one). The first subscription of a connection begins with the events before it,
// at most 64.
//
// A full queue drops events, see [Subscription.Lost]; it never delays the replies to
// commands. The caller must close the subscription when it no longer reads it.
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

// C returns the channel of the events. It is closed when the connection ends or the
// subscription is closed; queued events can still be read.
func (s *Subscription) C() <-chan Event { return s.events }

// Lost returns how many events were dropped since the last call, because the queue was
// full. A caller that calls Lost after each receive notices every loss: events are
// dropped only while others are queued. After a loss, the caller must query the state
// that the events would have reported.
func (s *Subscription) Lost() uint64 { return s.lost.Swap(0) }

// Close ends the subscription and closes its channel. It is idempotent.
func (s *Subscription) Close() {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.conn.hub.unsubscribe(s)
}

// Expectation waits for the first event that matches.
type Expectation struct {
	conn  *Conn
	match func(Event) bool
	met   chan struct{}
	event Event // valid once met is closed
}

// Expect returns an expectation of the first event for which match returns true. If it
// is called before the command that causes the event, it cannot miss the event: events
// are matched when they are read, independently of the queues of subscriptions.
//
// The goroutine that reads the connection calls match, so match must not block and must
// not use the connection. The caller must cancel the expectation when it no longer needs
// it.
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

// Wait blocks until the event has come, ctx is done or the connection has ended. It
// returns the event, the error of ctx, or an error that matches [ErrClosed]. A second
// call returns the same event.
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
	case <-x.met: // the event came at the same time
		return x.event, nil
	default:
		return Event{}, cause
	}
}

// Cancel ends the expectation: Wait will not return an event that comes later.
func (x *Expectation) Cancel() {
	x.conn.mu.Lock()
	defer x.conn.mu.Unlock()
	delete(x.conn.hub.expectations, x)
}
