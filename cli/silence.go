package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// A silence ends a request when the daemon has been silent for too long. The timer begins
// again with each part of the request's body that is sent, and does not run while the source
// of the body is read.
type silence struct {
	patience time.Duration
	mu       sync.Mutex
	timer    *time.Timer // nil without a limit, and after the end
}

func newSilence(patience time.Duration, act func()) *silence {
	s := &silence{patience: patience}
	if patience > 0 {
		s.timer = time.AfterFunc(patience, act)
	}
	return s
}

func (s *silence) pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
}

func (s *silence) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Reset(s.patience)
	}
}

// end removes the limit.
func (s *silence) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// A sentBody is the body of a request. The time that it takes to be sent is not silence.
type sentBody struct {
	io.ReadCloser
	silence *silence
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.silence.pause()
	defer b.silence.restart()
	return b.ReadCloser.Read(p)
}

// watchBody makes the body of a request restart the timer of a silence.
func watchBody(r *http.Request, s *silence) {
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &sentBody{r.Body, s}
	}
}

// An answerBody is the body of an answer. It fails with the reason for the end of the
// request, and releases its context when it is closed.
type answerBody struct {
	io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	silence *silence
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if cause := context.Cause(b.ctx); err != nil && errors.As(cause, new(*failure)) {
		err = cause
	}
	return n, err
}

func (b *answerBody) Close() error {
	b.silence.end()
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}
