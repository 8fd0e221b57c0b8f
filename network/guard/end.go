package guard

import "sync"

// An End is why a server serves no more. Its zero value is that of one that does.
type End struct {
	mu  sync.Mutex
	err error
}

// Because notes a reason; the first that is not nil counts.
func (e *End) Because(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.err = err
	}
}

// Err returns the reason, nil for none.
func (e *End) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}
