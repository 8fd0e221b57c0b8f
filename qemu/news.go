package qemu

import (
	"context"
	"maps"
	"sync"
	"time"

	"vmand/vm"
)

// news keeps the observations of the driver until Watch delivers them. It holds at most one
// nudge of each VM and one mark of each kind of each VM, so it is bounded even
// without a Watch.
type news struct {
	wake chan struct{} // holds one: something was added

	mu     sync.Mutex
	nudged map[string]bool
	marked map[vmMark]time.Time
}

// vmMark names a mark of a VM.
type vmMark struct {
	vmID string
	mark vm.BootMark
}

func newNews() *news {
	return &news{
		wake:   make(chan struct{}, 1),
		nudged: make(map[string]bool),
		marked: make(map[vmMark]time.Time),
	}
}

// nudge notes that something about a VM may have changed.
func (n *news) nudge(vmID string) {
	n.mu.Lock()
	n.nudged[vmID] = true
	n.mu.Unlock()
	n.signal()
}

// mark notes when something was first seen in the present run of a VM. The caller
// does so once in each run, so a second mark is that of a later run.
func (n *news) mark(vmID string, m vm.BootMark, at time.Time) {
	n.mu.Lock()
	n.marked[vmMark{vmID, m}] = at
	n.mu.Unlock()
	n.signal()
}

func (n *news) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Watch implements [vm.Host].
func (n *news) Watch(ctx context.Context, sink vm.Sink) {
	for ctx.Err() == nil {
		n.deliver(sink)
		select {
		case <-n.wake:
		case <-ctx.Done():
		}
	}
}

// deliver passes everything that was noted to sink. It holds no lock meanwhile.
func (n *news) deliver(sink vm.Sink) {
	n.mu.Lock()
	nudged, marked := maps.Clone(n.nudged), maps.Clone(n.marked)
	clear(n.nudged)
	clear(n.marked)
	n.mu.Unlock()
	for m, at := range marked {
		sink.Mark(m.vmID, m.mark, at)
	}
	for id := range nudged {
		sink.Nudge(id)
	}
}
