package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"vmand/vm"
)

// How many connections to consoles there may be, those that follow a console's
// log included.
const (
	maxConsolesPerVM = 64
	maxConsoles      = 512
)

// consoles are the connections to consoles that are open.
type consoles struct {
	mu    sync.Mutex
	open  map[*seat]struct{}
	perVM map[string]int
	empty chan struct{} // closed when the last one leaves; nil if nobody waits
}

// A seat is one connection's.
type seat struct {
	vm, caller string
	end        context.CancelCauseFunc // ends the connection
}

// enter takes a seat, whose connection is ended by end.
func (c *consoles) enter(vmID, caller string, end context.CancelCauseFunc) (*seat, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.perVM[vmID] >= maxConsolesPerVM || len(c.open) >= maxConsoles {
		return nil, &vm.Fault{Code: vm.CodeLimitReached, Hint: "close some of them",
			Detail: fmt.Sprintf("%d connections to the console of VM %s and %d in all are open; there may be %d and %d", c.perVM[vmID], vmID,
				len(c.open), maxConsolesPerVM, maxConsoles)}
	}
	if c.open == nil {
		c.open, c.perVM = map[*seat]struct{}{}, map[string]int{}
	}
	s := &seat{vm: vmID, caller: caller, end: end}
	c.open[s] = struct{}{}
	c.perVM[vmID]++
	return s, nil
}

func (c *consoles) leave(s *seat) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, s)
	if c.perVM[s.vm]--; c.perVM[s.vm] == 0 {
		delete(c.perVM, s.vm)
	}
	if len(c.open) == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// revoke ends the connections of some callers.
func (c *consoles) revoke(gone map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.open {
		if gone[s.caller] {
			s.end(errRevoked)
		}
	}
}

// wait returns when no connection is open, or when patience is at its end.
func (c *consoles) wait(patience time.Duration) {
	c.mu.Lock()
	if len(c.open) == 0 {
		c.mu.Unlock()
		return
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	empty := c.empty
	c.mu.Unlock()
	select {
	case <-empty:
	case <-time.After(patience):
	}
}
