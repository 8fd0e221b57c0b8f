package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"vmand/vm"
)

// The maximum number of open console connections, including requests that follow a
// console log.
const (
	maxConsolesPerVM = 64
	maxConsoles      = 512
)

// consoles holds the open console connections.
type consoles struct {
	mu    sync.Mutex
	open  map[*seat]struct{}
	perVM map[string]int
	empty chan struct{} // closed when the last connection leaves; nil if wait is not running
}

// A seat is the place of one connection in consoles.
type seat struct {
	vm, caller string
	end        context.CancelCauseFunc // ends the connection
}

// enter returns a seat for a connection, or a fault if a limit is reached. end must
// end the connection.
func (c *consoles) enter(vmID, caller string, end context.CancelCauseFunc) (*seat, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.perVM[vmID] >= maxConsolesPerVM || len(c.open) >= maxConsoles {
		return nil, &vm.Fault{
			Code: vm.CodeLimitReached,
			Detail: fmt.Sprintf("VM %s has %d of at most %d console connections; in total %d of at most %d are open",
				vmID, c.perVM[vmID], maxConsolesPerVM, len(c.open), maxConsoles),
			Hint: "close console connections that are not needed",
		}
	}
	if c.open == nil {
		c.open, c.perVM = map[*seat]struct{}{}, map[string]int{}
	}
	s := &seat{vm: vmID, caller: caller, end: end}
	c.open[s] = struct{}{}
	c.perVM[vmID]++
	return s, nil
}

// leave releases a seat. It must be called once.
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

// revoke ends the connections of the given callers.
func (c *consoles) revoke(gone map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.open {
		if gone[s.caller] {
			s.end(errRevoked)
		}
	}
}

// wait waits until no connection is open, for at most patience.
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
