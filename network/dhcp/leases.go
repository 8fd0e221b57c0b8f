package dhcp

import (
	"context"
	"maps"
	"sync"
	"time"

	"vmand/vm"
)

// maxLeases is how many confirmed leases are remembered: more than the largest
// network has addresses that could be confirmed at once.
const maxLeases = 1 << 16

// leases is what has been confirmed, and who is still to be told of it.
type leases struct {
	acked func(vm.Lease) // nil for nobody

	mu        sync.Mutex
	confirmed map[string]vm.Lease // by MAC
	untold    map[string]vm.Lease // by MAC: only the latest matters
	news      chan struct{}       // holds one token when untold is not empty
}

func newLeases(acked func(vm.Lease)) *leases {
	return &leases{
		acked:     acked,
		confirmed: map[string]vm.Lease{},
		untold:    map[string]vm.Lease{},
		news:      make(chan struct{}, 1),
	}
}

// confirm records that a lease was confirmed now. With tell, acked hears of it.
func (s *leases) confirm(l vm.Lease, now time.Time, tell bool) {
	l.Acked, l.Expires = now, now.Add(leaseTime)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.confirmed[l.MAC]; !ok && len(s.confirmed) >= maxLeases {
		s.expire(now)
		if len(s.confirmed) >= maxLeases {
			return
		}
	}
	s.confirmed[l.MAC] = l
	if !tell || s.acked == nil {
		return
	}
	s.untold[l.MAC] = l
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// forget records that a client has given its address back.
func (s *leases) forget(mac string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.confirmed, mac)
}

// all returns the leases that are confirmed and not over.
func (s *leases) all(now time.Time) map[string]vm.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	return maps.Clone(s.confirmed)
}

func (s *leases) expire(now time.Time) {
	maps.DeleteFunc(s.confirmed, func(_ string, l vm.Lease) bool { return now.After(l.Expires) })
}

// tell calls acked for each confirmed lease until ctx is done.
func (s *leases) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.news:
		}
		s.mu.Lock()
		untold := s.untold
		s.untold = map[string]vm.Lease{}
		s.mu.Unlock()
		for _, l := range untold {
			if ctx.Err() != nil {
				return
			}
			s.acked(l)
		}
	}
}
