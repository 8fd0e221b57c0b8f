// Package guard protects the servers of a network from their guests: limits per client in
// bounded memory, a log that a flood cannot fill, and a reader of datagrams that does a
// bounded amount of work.
package guard

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// sweepEvery is the interval between two searches of a full table for clients to remove.
const sweepEvery = time.Second

// strangersFactor is the limit of all strangers together, in limits of one client.
const strangersFactor = 20

// Clients limits the requests of each client with a token bucket. It has two tables of
// bounded size: known clients, which a flood cannot invent (see [Clients.Know]), and
// strangers. Strangers beyond the size share one bucket, and all strangers together have
// 20 times the limit of one client. It is safe for concurrent use.
type Clients[K comparable] struct {
	limit rate.Limit
	burst int
	size  int // of each table

	mu        sync.Mutex
	strangers map[K]*rate.Limiter
	known     map[K]*rate.Limiter
	all       *rate.Limiter // of all strangers together
	overflow  *rate.Limiter // of the strangers without a bucket
	swept     time.Time     // the last search of a full table
}

// NewClients returns an empty Clients. A client may send limit requests per second on
// average and burst at once. Each table has room for size clients.
func NewClients[K comparable](limit rate.Limit, burst, size int) *Clients[K] {
	return &Clients[K]{
		limit:     limit,
		burst:     burst,
		size:      size,
		strangers: map[K]*rate.Limiter{},
		known:     map[K]*rate.Limiter{},
		all:       rate.NewLimiter(limit*strangersFactor, burst*strangersFactor),
		overflow:  rate.NewLimiter(limit, burst),
	}
}

// Allow reports whether a request of a client is within the limits, and counts it.
func (c *Clients[K]) Allow(k K) bool {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if l, ok := c.known[k]; ok {
		return l.AllowN(now, 1)
	}
	l, ok := c.strangers[k]
	if !ok {
		if c.full(c.strangers, now) {
			return c.overflow.AllowN(now, 1) && c.all.AllowN(now, 1)
		}
		l = rate.NewLimiter(c.limit, c.burst)
		c.strangers[k] = l
	}
	return l.AllowN(now, 1) && c.all.AllowN(now, 1)
}

// Know makes a client a known one, if that table has room. Call it for clients with a
// record only.
func (c *Clients[K]) Know(k K) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.known[k]; ok || c.full(c.known, now) {
		return
	}
	l, ok := c.strangers[k]
	if !ok {
		l = rate.NewLimiter(c.limit, c.burst)
	}
	delete(c.strangers, k)
	c.known[k] = l
}

// full reports whether a table has no room. At most every sweepEvery it first removes the
// clients with a full bucket, which a new bucket equals. It must be called with mu held.
func (c *Clients[K]) full(table map[K]*rate.Limiter, now time.Time) bool {
	if len(table) < c.size {
		return false
	}
	if now.Sub(c.swept) < sweepEvery {
		return true
	}
	c.swept = now
	for k, l := range table {
		if l.TokensAt(now) >= float64(c.burst) {
			delete(table, k)
		}
	}
	return len(table) >= c.size
}

// Len returns the number of clients in the tables.
func (c *Clients[K]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.strangers) + len(c.known)
}
