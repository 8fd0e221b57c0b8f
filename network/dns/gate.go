package dns

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A gate limits the forwarded queries that are in progress at once, in total and for each
// client. A query above a limit waits. A free place goes to the clients with waiting queries
// in turn, so a client with many does not delay the others. It is safe for concurrent use.
type gate struct {
	inTotal, perClient               int // in progress
	waitingInTotal, waitingPerClient int

	mu      sync.Mutex
	running int
	waiting int
	clients map[netip.Addr]*queue // at most one for each query
	turns   []netip.Addr          // the clients with waiting queries; the first one is next
}

// A queue holds the queries of one client.
type queue struct {
	running int
	waiting []*ticket
}

// A ticket is the place of one query in a gate.
type ticket struct {
	gate   *gate
	client netip.Addr
	admit  chan struct{} // closed when the query may proceed
}

// join returns a place for a query of a client. The caller must call [ticket.leave] at the
// end. join is not ok if too many queries wait already.
func (g *gate) join(client netip.Addr) (t *ticket, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.clients[client]
	if q == nil {
		q = &queue{}
		g.clients[client] = q
	}
	t = &ticket{gate: g, client: client, admit: make(chan struct{})}
	switch {
	case g.running < g.inTotal && q.running < g.perClient && len(q.waiting) == 0:
		g.admit(q, t)
		return t, true
	case g.waiting >= g.waitingInTotal || len(q.waiting) >= g.waitingPerClient:
		g.forget(client)
		return nil, false
	}
	if len(q.waiting) == 0 {
		g.turns = append(g.turns, client)
	}
	q.waiting = append(q.waiting, t)
	g.waiting++
	return t, true
}

// admit lets a query proceed. It must be called with mu held.
func (g *gate) admit(q *queue, t *ticket) {
	g.running++
	q.running++
	close(t.admit)
}

// forget removes the queue of a client if it is empty. It must be called with mu held.
func (g *gate) forget(client netip.Addr) {
	if q := g.clients[client]; q.running == 0 && len(q.waiting) == 0 {
		delete(g.clients, client)
	}
}

// wait blocks until the query may proceed, and reports whether it may: not if ctx ends first.
func (t *ticket) wait(ctx context.Context) bool {
	select {
	case <-t.admit:
		return true
	case <-ctx.Done():
		return false
	}
}

// leave gives up the place of a query.
func (t *ticket) leave() {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.clients[t.client]
	if i := slices.Index(q.waiting, t); i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
		g.waiting--
		if len(q.waiting) == 0 {
			g.turns = slices.DeleteFunc(g.turns, func(c netip.Addr) bool { return c == t.client })
		}
	} else {
		q.running--
		g.running--
	}
	g.forget(t.client)
	g.fill()
}

// fill admits waiting queries while there is room. It must be called with mu held.
func (g *gate) fill() {
	for g.running < g.inTotal {
		i := slices.IndexFunc(g.turns, func(c netip.Addr) bool { return g.clients[c].running < g.perClient })
		if i < 0 {
			return
		}
		client := g.turns[i]
		q := g.clients[client]
		g.admit(q, q.waiting[0])
		q.waiting = slices.Delete(q.waiting, 0, 1)
		g.waiting--
		g.turns = slices.Delete(g.turns, i, i+1)
		if len(q.waiting) > 0 {
			g.turns = append(g.turns, client)
		}
	}
}

// A Limited counts the queries of a client that were not answered because of a limit.
type Limited struct {
	Client netip.Addr
	Count  int64
	Last   time.Time
}

// maxLimited is the number of clients that are counted separately.
const maxLimited = 256

// limited counts queries by client. It is safe for concurrent use.
type limited struct {
	mu      sync.Mutex
	total   int64
	clients map[netip.Addr]Limited
}

// note counts a query. A further client takes the place of the one that met a limit last
// the longest ago.
func (l *limited) note(client netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	c, known := l.clients[client]
	if !known && len(l.clients) >= maxLimited {
		oldest := slices.MinFunc(slices.Collect(maps.Values(l.clients)), func(a, b Limited) int {
			return a.Last.Compare(b.Last)
		})
		delete(l.clients, oldest.Client)
	}
	l.clients[client] = Limited{client, c.Count + 1, now}
}

// since returns the clients that met a limit after a time, the one with most queries first,
// and the number of queries of all clients at any time.
func (l *limited) since(t time.Time) (clients []Limited, total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		if c.Last.After(t) {
			clients = append(clients, c)
		}
	}
	slices.SortFunc(clients, func(a, b Limited) int {
		if a.Count != b.Count {
			return int(b.Count - a.Count)
		}
		return a.Client.Compare(b.Client)
	})
	return clients, l.total
}
