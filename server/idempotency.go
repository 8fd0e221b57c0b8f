package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"vmand/vm"
)

const (
	headerKey      = "Idempotency-Key"
	headerReplayed = "Idempotency-Replayed"
	// keepPatience is the time limit of the two transactions that keep an answer. They
	// continue when the client disconnects.
	keepPatience = 10 * time.Second
)

// identify records the key and the fingerprint of the request in the caller. The key
// and the body must have been validated, and the body must be in memory.
func (x *exchange) identify() error {
	r := x.c.Request()
	key := r.Header[headerKey]
	if len(key) == 0 {
		return nil
	}
	h := sha256.New()
	for _, part := range []string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery} {
		_, _ = io.WriteString(h, part+"\x00") // never fails for a hash
	}
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		_, _ = h.Write(body)
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	x.caller.Key, x.caller.Fingerprint = key[0], hex.EncodeToString(h.Sum(nil))
	x.c.SetRequest(r.WithContext(vm.WithCaller(r.Context(), x.caller)))
	return nil
}

// once carries out a request with an Idempotency-Key, or repeats the answer to the
// first request with the key. The operation records the key in the transaction of the
// effect. The answer is kept before it is sent, so a client receives the same answer
// every time. Requests with the same key are serialized.
func (s *Server) once(x *exchange, next echo.HandlerFunc) error {
	ctx := x.c.Request().Context()
	key := x.caller.Name + "\x00" + x.caller.Key
	if err := s.keys.lock(ctx, key); err != nil {
		return err
	}
	defer s.keys.unlock(key)
	o, reply, err := s.reader.OperationByKey(ctx, x.caller.Name, x.caller.Key)
	if errors.Is(err, vm.ErrNotFound) {
		if err = s.answerAndKeep(x, next); !vm.HasCode(err, vm.CodeRepeated) {
			return err
		}
		// A request with the same key over another listener was faster.
		o, reply, err = s.reader.OperationByKey(ctx, x.caller.Name, x.caller.Key)
	}
	if err != nil {
		return err
	}
	if o.Fingerprint != x.caller.Fingerprint {
		return &vm.Fault{
			Code:        vm.CodeRepeated,
			OperationID: o.ID,
			Detail:      "the Idempotency-Key was used for another request",
			Hint:        "use a new key for each request",
		}
	}
	x.c.Response().Header().Set(headerReplayed, "true")
	if reply != nil {
		return keptAnswer(*reply).Respond(x.c.Response())
	}
	return s.answerAndKeep(x, func(c echo.Context) error {
		a, err := s.answerOf(ctx, o, c)
		if err != nil {
			return err
		}
		return a.Respond(c.Response())
	})
}

// answerAndKeep calls next, keeps its answer or problem, and sends it. If next fails
// with [vm.CodeRepeated], answerAndKeep sends nothing and returns the error.
func (s *Server) answerAndKeep(x *exchange, next echo.HandlerFunc) error {
	w := x.c.Response().Writer
	held := &heldAnswer{ResponseWriter: w}
	x.c.Response().Writer = held
	defer func() { x.c.Response().Writer = w }()
	x.err = next(x.c)
	if vm.HasCode(x.err, vm.CodeRepeated) {
		return x.err
	}
	if x.err != nil {
		s.fail(x)
	}
	s.keep(x, held)
	w.WriteHeader(held.status)
	if _, err := w.Write(held.body.Bytes()); err != nil {
		return errors.Join(x.err, err)
	}
	return x.err
}

// keep stores an answer with the operation of the request. It does not store an
// answer if the client has disconnected, or if the answer does not tell the result of
// the operation: a repeated request is then answered from the operation.
func (s *Server) keep(x *exchange, held *heldAnswer) {
	ctx := x.c.Request().Context()
	if ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), keepPatience)
	defer stop()
	o, _, err := s.reader.OperationByKey(ctx, x.caller.Name, x.caller.Key)
	if errors.Is(err, vm.ErrNotFound) {
		return // the request was rejected before its operation started
	}
	if err == nil && x.err != nil && (x.fault == nil || x.fault.OperationID != o.ID || !o.State.Ended()) {
		return
	}
	if err == nil {
		h := held.Header()
		err = s.reader.KeepReply(ctx, o.ID, vm.Reply{
			Status:   held.status,
			Location: h.Get("Location"),
			ETag:     h.Get("Etag"),
			Body:     held.body.Bytes(),
		})
	}
	if err != nil {
		s.log.Warn("cannot keep an answer: a repeated request is answered from its operation", "request_id",
			x.caller.RequestID, "err", err)
	}
}

// keptAnswer returns the answer that r keeps.
func keptAnswer(r vm.Reply) answer {
	a := answer{status: r.Status, location: r.Location, etag: r.ETag}
	if len(r.Body) > 0 {
		a.body = rawJSON(r.Body)
	}
	if r.Status >= http.StatusBadRequest {
		a.mediaType = problemType
	}
	return a
}

// A heldAnswer buffers an answer. Answers to requests with a key are small.
type heldAnswer struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (h *heldAnswer) WriteHeader(status int)      { h.status = status }
func (h *heldAnswer) Write(b []byte) (int, error) { return h.body.Write(b) }
func (h *heldAnswer) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// A keyLock is a set of locks with a key each. A key that is not locked uses no memory.
type keyLock struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed by unlock
}

// lock locks the key. It blocks until the key is free or ctx is done.
func (l *keyLock) lock(ctx context.Context, key string) error {
	for {
		l.mu.Lock()
		other := l.taken[key]
		if other == nil {
			if l.taken == nil {
				l.taken = map[string]chan struct{}{}
			}
			l.taken[key] = make(chan struct{})
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unlock unlocks the key. It must be called by the holder.
func (l *keyLock) unlock(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.taken[key])
	delete(l.taken, key)
}
