package manager

import "sync"

// A feed wakes any number of listeners when there is something new.
type feed struct {
	mu sync.Mutex
	c  chan struct{}
}

// next returns a channel that is closed by the next wake.
func (f *feed) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.c == nil {
		f.c = make(chan struct{})
	}
	return f.c
}

func (f *feed) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.c != nil {
		close(f.c)
		f.c = nil
	}
}
