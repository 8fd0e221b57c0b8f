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

// A Log writes at most 20 lines at once and then one every 10 seconds; a line
// after some that were left out says how many.
type Log struct {
	log   *slog.Logger
	limit *rate.Limiter
	left  atomic.Int64
}

// NewLog returns a log that writes to log.
func NewLog(log *slog.Logger) *Log {
	return &Log{log: log, limit: rate.NewLimiter(rate.Every(logEvery), logBurst)}
}

// Warn logs what an administrator may have to look at.
func (l *Log) Warn(message string, args ...any) { l.write(slog.LevelWarn, message, args) }

// Info logs what is worth knowing and no trouble.
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

// Recover, deferred, ends a panic and logs it: what a guest sends must never end
// the daemon.
func (l *Log) Recover() {
	if p := recover(); p != nil {
		l.Warn("a packet led to a panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}
