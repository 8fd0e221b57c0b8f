package guard

import "sync"

// A Failure holds the reason why a server has stopped. Its zero value is that of a server
// that runs. It is safe for concurrent use.
type Failure struct {
	mu  sync.Mutex
	err error
}

// Set records a reason. Only the first one that is not nil counts.
func (f *Failure) Set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// Err returns the reason, or nil if there is none.
func (f *Failure) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
