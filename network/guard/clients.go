// Package guard is what the servers of a network need against what guests may
// send them: limits per client in bounded memory, a log that no flood can fill,
// and a reader of datagrams that does a bounded amount of work.
package guard

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// sweepEvery is how often a full table is searched for clients to forget.
const sweepEvery = time.Second

// strangersFactor is how much more all strangers together may ask than one.
const strangersFactor = 20

// Clients limits how often each client is served. It has room for a number of
// clients; those beyond it share one bucket. Clients that are known to be no
// invention of a flood have room of their own: see [Clients.Know]. All others
// together may ask 20 times what one may.
type Clients[K comparable] struct {
	limit rate.Limit
	burst int
	room  int

	mu        sync.Mutex
	strangers map[K]*rate.Limiter
	known     map[K]*rate.Limiter
	all       *rate.Limiter // of the strangers
	rest      *rate.Limiter // of the strangers that there is no room for
	swept     time.Time
}

// NewClients returns a table that allows each client limit requests a second on
// average and burst at once; it has room for as many known clients and as many
// strangers as room says.
func NewClients[K comparable](limit rate.Limit, burst, room int) *Clients[K] {
	return &Clients[K]{
		limit: limit, burst: burst, room: room,
		strangers: map[K]*rate.Limiter{},
		known:     map[K]*rate.Limiter{},
		all:       rate.NewLimiter(limit*strangersFactor, burst*strangersFactor),
		rest:      rate.NewLimiter(limit, burst),
	}
}

// Allow reports whether a client may be served now.
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
			return c.rest.AllowN(now, 1) && c.all.AllowN(now, 1)
		}
		l = rate.NewLimiter(c.limit, c.burst)
		c.strangers[k] = l
	}
	return l.AllowN(now, 1) && c.all.AllowN(now, 1)
}

// Know gives a client a bucket that strangers cannot take.
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

// full reports whether a table has no room, after forgetting, now and then, the
// clients in it whose bucket is full again: they lose nothing by it.
func (c *Clients[K]) full(table map[K]*rate.Limiter, now time.Time) bool {
	if len(table) < c.room {
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
	return len(table) >= c.room
}

// Len returns how many clients are in the table.
func (c *Clients[K]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.strangers) + len(c.known)
}
