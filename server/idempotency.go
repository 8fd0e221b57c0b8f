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
	// keepPatience is for the two transactions that keep an answer. They go on
	// when the client hangs up.
	keepPatience = 10 * time.Second
)

// identify notes the request's key and what tells it from any other. The key and
// the body are valid by now, and the body is in memory.
func (x *exchange) identify() error {
	r := x.c.Request()
	key := r.Header[headerKey]
	if len(key) == 0 {
		return nil
	}
	h := sha256.New()
	for _, part := range []string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery} {
		_, _ = io.WriteString(h, part+"\x00") // a hash takes everything
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

// once carries out a request with an Idempotency-Key, or answers it as it was
// answered before. The effect is recorded together with the key, by the
// operation; the answer is kept before it is sent, so what a client has seen is
// what it will see. Requests under one key have their turns: a repeated one
// waits until the first has been answered.
func (s *Server) once(x *exchange, next echo.HandlerFunc) error {
	ctx := x.c.Request().Context()
	turn := x.caller.Name + "\x00" + x.caller.Key
	if err := s.keys.take(ctx, turn); err != nil {
		return err
	}
	defer s.keys.leave(turn)
	o, reply, err := s.reader.OperationByKey(ctx, x.caller.Name, x.caller.Key)
	if errors.Is(err, vm.ErrNotFound) {
		if err = s.answerAndKeep(x, next); !hasCode(err, vm.CodeRepeated) {
			return err
		}
		// Another door of the same caller's was quicker.
		o, reply, err = s.reader.OperationByKey(ctx, x.caller.Name, x.caller.Key)
	}
	if err != nil {
		return err
	}
	if o.Fingerprint != x.caller.Fingerprint {
		return &vm.Fault{Code: vm.CodeRepeated, OperationID: o.ID, Detail: "the Idempotency-Key was used for another request",
			Hint: "use a key of its own for each request"}
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

// answerAndKeep lets next answer, a problem included, keeps the answer and sends
// it. With [vm.CodeRepeated] nothing is answered yet.
func (s *Server) answerAndKeep(x *exchange, next echo.HandlerFunc) error {
	w := x.c.Response().Writer
	held := &heldAnswer{ResponseWriter: w}
	x.c.Response().Writer = held
	defer func() { x.c.Response().Writer = w }()
	x.err = next(x.c)
	if hasCode(x.err, vm.CodeRepeated) {
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

// keep keeps an answer with the operation that the request has begun. One that
// says nothing of how that ended is not kept, nor one that nobody is there to
// get: a repeated request is answered by the operation then.
func (s *Server) keep(x *exchange, held *heldAnswer) {
	ctx := x.c.Request().Context()
	if ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), keepPatience)
	defer stop()
	o, _, err := s.reader.OperationByKey(ctx, x.caller.Name, x.caller.Key)
	if errors.Is(err, vm.ErrNotFound) {
		return // it was refused before anything began
	}
	if err == nil && x.err != nil && (x.fault == nil || x.fault.OperationID != o.ID || !o.State.Ended()) {
		return
	}
	if err == nil {
		h := held.Header()
		err = s.reader.KeepReply(ctx, o.ID, vm.Reply{Status: held.status, Location: h.Get("Location"), ETag: h.Get("Etag"), Body: held.body.Bytes()})
	}
	if err != nil {
		s.log.Warn("cannot keep an answer; a repeated request is answered by its operation", "request_id", x.caller.RequestID, "err", err)
	}
}

// keptAnswer is an answer as it was given before.
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

// A heldAnswer holds an answer back. What is answered under a key is small.
type heldAnswer struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (h *heldAnswer) WriteHeader(status int)      { h.status = status }
func (h *heldAnswer) Write(b []byte) (int, error) { return h.body.Write(b) }
func (h *heldAnswer) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// turns gives each key to one request at a time. Keys that nobody has vanish.
type turns struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when the turn is over
}

// take waits for the key, or until ctx is done.
func (t *turns) take(ctx context.Context, key string) error {
	for {
		t.mu.Lock()
		other := t.taken[key]
		if other == nil {
			if t.taken == nil {
				t.taken = map[string]chan struct{}{}
			}
			t.taken[key] = make(chan struct{})
			t.mu.Unlock()
			return nil
		}
		t.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (t *turns) leave(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.taken[key])
	delete(t.taken, key)
}
