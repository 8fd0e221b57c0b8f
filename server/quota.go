package server

import (
	"fmt"
	"sync"

	"vmand/vm"
)

// Limits of the requests that are answered over a long time.
const (
	maxStreams       = 512 // event streams in all
	maxCallerStreams = 64  // of one caller
	maxHeld          = 512 // requests in all that wait for an operation or a guest
	maxCallerHeld    = 256 // of one caller
)

// A quota limits what callers have at the same time, in all and for each caller. It is
// safe for concurrent use.
type quota struct {
	what        string // in the plural
	all, caller int

	mu   sync.Mutex
	n    int
	held map[string]int // by the name of the caller
}

func newQuota(what string, all, caller int) *quota {
	return &quota{what: what, all: all, caller: caller, held: map[string]int{}}
}

// enter counts one more for a caller, until leave is called. It fails if a limit is
// reached.
func (q *quota) enter(caller string) (leave func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.held[caller] >= q.caller:
		return nil, &vm.Fault{
			Code:   codeTooMany,
			Detail: fmt.Sprintf("%s has %d %s, the maximum", caller, q.caller, q.what),
			Hint:   "end one of them first",
		}
	case q.n >= q.all:
		return nil, &vm.Fault{
			Code:   codeTooMany,
			Detail: fmt.Sprintf("the daemon has %d %s, the maximum", q.all, q.what),
			Hint:   "try again later",
		}
	}
	q.n++
	q.held[caller]++
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.n--
		if q.held[caller]--; q.held[caller] == 0 {
			delete(q.held, caller)
		}
	}), nil
}
