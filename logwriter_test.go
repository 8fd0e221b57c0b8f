package main

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A countingWriter remembers what was written to it and how often.
type countingWriter struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	writes int
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes++
	return w.buf.Write(p)
}

func (w *countingWriter) seen() (text string, writes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String(), w.writes
}

func TestLogLinesAreWrittenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out countingWriter
		w := newBatchWriter(&out)
		log := slog.New(promptHandler{slog.NewTextHandler(w, nil), w}).With("a", 1).WithGroup("g")
		for range 10 {
			log.Info("small")
		}
		if text, writes := out.seen(); writes != 0 {
			t.Errorf("written at once: %q", text)
		}
		<-time.After(2 * logDelay)
		if text, writes := out.seen(); writes != 1 || strings.Count(text, "small") != 10 {
			t.Errorf("%d writes: %q", writes, text)
		}
		log.Info("before")
		log.Warn("now")
		if text, writes := out.seen(); writes != 2 || strings.Index(text, "before") > strings.Index(text, "now") {
			t.Errorf("%d writes: %q", writes, text)
		}
		log.Info(strings.Repeat("x", logBatch))
		if _, writes := out.seen(); writes != 3 {
			t.Errorf("%d writes after a full batch", writes)
		}
		log.Info("last")
		w.flush()
		w.flush()
		if text, writes := out.seen(); writes != 4 || !strings.Contains(text, "last") {
			t.Errorf("%d writes at the end", writes)
		}
	})
}
