package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmand/config"
)

func TestTheLogOfAFileIsJSONUnlessTheFormatIsText(t *testing.T) {
	for format, wantJSON := range map[string]bool{"auto": true, "json": true, "text": false} {
		out, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		log, _, flush := newLogger(config.Config{LogFormat: format, LogLevel: slog.LevelWarn}, out)
		defer flush()
		log.Info("below the level")
		log.Warn("above the level", "key", "value")
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "below") || !strings.Contains(string(text), "above the level") {
			t.Errorf("format %s: %s", format, text)
		}
		if strings.HasPrefix(string(text), "{") != wantJSON {
			t.Errorf("format %s to a file: %s", format, text)
		}
	}
}

// A countingWriter records the text and the number of writes.
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

func TestLogLinesAreWrittenInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out countingWriter
		w := newBatchWriter(&out)
		log := slog.New(promptHandler{slog.NewTextHandler(w, nil), w}).With("a", 1).WithGroup("g")
		for range 10 {
			log.Info("small")
		}
		if text, writes := out.seen(); writes != 0 {
			t.Errorf("written without delay: %q", text)
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
			t.Errorf("%d writes after a full buffer", writes)
		}
		log.Info("last")
		w.flush()
		w.flush()
		if text, writes := out.seen(); writes != 4 || !strings.Contains(text, "last") {
			t.Errorf("%d writes after flush", writes)
		}
	})
}
