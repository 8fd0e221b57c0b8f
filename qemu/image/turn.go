package image

import (
	"context"
	"runtime"
)

// turns bounds how many streams are expanded and hashed at the same time: a stranger's
// byte can take 40 us of CPU time (32 KiB of zeros), and guests need the processors. Each
// turn is given back while its stream waits for the network, and after copyBufferBytes.
type turns chan struct{}

// newTurns returns the turns of this host: a quarter of the processors, as a stream is
// expanded and hashed by two threads.
func newTurns() turns { return make(turns, max(runtime.GOMAXPROCS(0)/4, 1)) }

// A turn is the right of one stream to use a processor. A nil turn is always held. It is
// used by one goroutine.
type turn struct {
	ctx  context.Context
	of   turns
	held bool
}

// take blocks until the turn is held. It fails with an [inputError] if ctx is done.
func (t *turn) take() error {
	if t == nil || t.held {
		return nil
	}
	if t.ctx.Err() != nil { // select may choose the turn
		return &inputError{context.Cause(t.ctx)}
	}
	select {
	case t.of <- struct{}{}:
		t.held = true
		return nil
	case <-t.ctx.Done():
		return &inputError{context.Cause(t.ctx)}
	}
}

// leave gives the turn back and reports whether it was held.
func (t *turn) leave() (held bool) {
	if t == nil || !t.held {
		return false
	}
	<-t.of
	t.held = false
	return true
}
