package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

// How much of the log waits at most, and for how long. A line a request, each
// with a write of its own, would cost a tenth of what a short request costs, and
// make requests on different processors wait for one another.
const (
	logBatch = 32 << 10 // bytes
	logDelay = 50 * time.Millisecond
)

// A batchWriter gathers what is written and writes it together.
type batchWriter struct {
	mu    sync.Mutex
	out   io.Writer
	buf   bytes.Buffer
	timer *time.Timer // runs while buf is not empty
}

func newBatchWriter(out io.Writer) *batchWriter {
	w := &batchWriter{out: out}
	w.mu.Lock() // the timer may be the first to look
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(logDelay, w.flush)
	return w
}

// Write implements [io.Writer]. That something could not be written is known
// too late to be told; it is tried with the next batch.
func (w *batchWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.buf.Len() == 0 {
		w.timer.Reset(logDelay)
	}
	w.buf.Write(p)
	if w.buf.Len() >= logBatch {
		w.flushLocked()
	}
	return len(p), nil
}

func (w *batchWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flushLocked()
}

func (w *batchWriter) flushLocked() {
	w.timer.Stop()
	if w.buf.Len() == 0 {
		return
	}
	_, _ = w.out.Write(w.buf.Bytes()) // there is nowhere to say that the log cannot be written
	w.buf.Reset()
}

// A promptHandler writes at once what is a warning or worse, and with it all
// that was gathered before.
type promptHandler struct {
	slog.Handler
	w *batchWriter
}

func (h promptHandler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		h.w.flush()
	}
	return err
}

func (h promptHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return promptHandler{h.Handler.WithAttrs(attrs), h.w}
}

func (h promptHandler) WithGroup(name string) slog.Handler {
	return promptHandler{h.Handler.WithGroup(name), h.w}
}
