package network

import (
	"context"
	"sync"
	"time"

	"vmand/vm"
)

// maxAcks bounds the acknowledgements that wait for [Networks.Watch]: as many as the
// largest network has addresses, a few MiB.
const maxAcks = 1 << 16

// acks holds the VMs with an address that DHCP has confirmed, until Watch delivers them. It is
// safe for concurrent use.
type acks struct {
	ready chan struct{} // holds a token while pending is not empty

	mu      sync.Mutex
	pending map[string]time.Time // by VM id: the first confirmation since the last delivery
}

func newAcks() *acks {
	return &acks{ready: make(chan struct{}, 1), pending: map[string]time.Time{}}
}

// note records a confirmation. It does not block. With maxAcks VMs pending, it drops
// the confirmation of a further one.
func (a *acks) note(l vm.Lease) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.pending[l.VMID]; ok || len(a.pending) >= maxAcks {
		return
	}
	a.pending[l.VMID] = l.Acked
	select {
	case a.ready <- struct{}{}:
	default:
	}
}

// take returns the pending confirmations and forgets them.
func (a *acks) take() map[string]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	pending := a.pending
	a.pending = map[string]time.Time{}
	return pending
}

// Watch calls sink.Mark with [vm.BootDHCP] when DHCP confirms an address of a VM. It blocks
// until ctx is done. It first delivers the confirmations from before the call, for at most
// maxAcks VMs. Only one Watch may run at a time.
func (n *Networks) Watch(ctx context.Context, sink vm.Sink) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.acks.ready:
		}
		for vmID, at := range n.acks.take() {
			sink.Mark(vmID, vm.BootDHCP, at)
		}
	}
}
