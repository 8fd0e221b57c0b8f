package dhcp

import (
	"maps"
	"sync"
	"time"

	"vmand/vm"
)

// maxLeases is how many confirmed leases a server remembers: more than the largest
// network has addresses that could be confirmed at once.
const maxLeases = 1 << 16

// leases holds the leases that were confirmed and have not expired. It is safe for
// concurrent use.
type leases struct {
	mu        sync.Mutex
	confirmed map[string]vm.Lease // by MAC
}

func newLeases() *leases { return &leases{confirmed: map[string]vm.Lease{}} }

// confirm records that a lease was confirmed at now, and returns it with its times.
// A full table drops expired leases first; if it is still full, the lease is not
// recorded.
func (s *leases) confirm(l vm.Lease, now time.Time) vm.Lease {
	l.Acked, l.Expires = now, now.Add(leaseTime)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.confirmed[l.MAC]; !ok && len(s.confirmed) >= maxLeases {
		s.expire(now)
		if len(s.confirmed) >= maxLeases {
			return l
		}
	}
	s.confirmed[l.MAC] = l
	return l
}

// forget removes the lease of a client that released or declined its address.
func (s *leases) forget(mac string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.confirmed, mac)
}

// all returns a copy of the leases that are confirmed and have not expired.
func (s *leases) all(now time.Time) map[string]vm.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	return maps.Clone(s.confirmed)
}

// expire removes the expired leases. It must be called with mu held.
func (s *leases) expire(now time.Time) {
	maps.DeleteFunc(s.confirmed, func(_ string, l vm.Lease) bool { return now.After(l.Expires) })
}
