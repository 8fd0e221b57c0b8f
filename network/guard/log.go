package guard

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	logBurst = 20
	logEvery = 10 * time.Second
)

// A Log limits a logger: it writes at most 20 lines at once and then one every 10 seconds. A
// line after dropped ones has their number in left_out. It is safe for concurrent use.
type Log struct {
	log   *slog.Logger
	limit *rate.Limiter
	left  atomic.Int64 // lines dropped since the last one written
}

// NewLog returns a log that writes to log.
func NewLog(log *slog.Logger) *Log {
	return &Log{log: log, limit: rate.NewLimiter(rate.Every(logEvery), logBurst)}
}

// Warn logs a line of level warn.
func (l *Log) Warn(message string, args ...any) { l.write(slog.LevelWarn, message, args) }

// Info logs a line of level info.
func (l *Log) Info(message string, args ...any) { l.write(slog.LevelInfo, message, args) }

func (l *Log) write(level slog.Level, message string, args []any) {
	if !l.limit.Allow() {
		l.left.Add(1)
		return
	}
	if n := l.left.Swap(0); n > 0 {
		args = append(args[:len(args):len(args)], "left_out", n)
	}
	l.log.Log(context.Background(), level, message, args...)
}

// Recover recovers from a panic and logs it. It must be called by defer: a packet of a guest
// must not end vmand.
func (l *Log) Recover() {
	if p := recover(); p != nil {
		l.Warn("a packet caused a panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}
