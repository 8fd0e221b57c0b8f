package dhcp

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vmand/vm"
)

// conflictTime is how long an address is not offered after a guest has declined it, because
// another machine uses it.
const conflictTime = 10 * time.Minute

// A Conflict is an address that a guest has declined.
type Conflict struct {
	Lease vm.Lease
	IP    netip.Addr
	At    time.Time
	Until time.Time // the address is not offered before
}

// conflicts holds the addresses that guests have declined. Its size is bounded by the number
// of recorded leases. It is safe for concurrent use.
type conflicts struct {
	mu       sync.Mutex
	declined map[netip.Addr]Conflict
}

func newConflicts() *conflicts { return &conflicts{declined: map[netip.Addr]Conflict{}} }

func (c *conflicts) note(l vm.Lease, ip netip.Addr, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.declined[ip] = Conflict{Lease: l, IP: ip, At: now, Until: now.Add(conflictTime)}
}

// without returns l without the addresses that must not be offered now.
func (c *conflicts) without(l vm.Lease, now time.Time) vm.Lease {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x, ok := c.declined[l.IP]; ok && now.Before(x.Until) {
		l.IP = netip.Addr{}
	}
	if x, ok := c.declined[l.IPv6]; ok && now.Before(x.Until) {
		l.IPv6 = netip.Addr{}
	}
	return l
}

// all returns the conflicts at now, by address.
func (c *conflicts) all(now time.Time) []Conflict {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.declined, func(_ netip.Addr, x Conflict) bool { return !now.Before(x.Until) })
	return slices.SortedFunc(maps.Values(c.declined), func(a, b Conflict) int { return a.IP.Compare(b.IP) })
}

// forget ends the conflicts of a NIC.
func (c *conflicts) forget(mac string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.declined, func(_ netip.Addr, x Conflict) bool { return x.Lease.MAC == mac })
}

// Conflicts returns the addresses that guests have declined and that are not offered now.
func (s *Server) Conflicts() []Conflict { return s.conflicts.all(time.Now()) }

// ForgetConflicts makes the server offer the addresses of a NIC again.
func (s *Server) ForgetConflicts(mac string) { s.conflicts.forget(mac) }
