package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"vmand/network/guard/linktest"
)

func TestAFloodOfInventedClientsIsBoundedAndDoesNotLimitKnownClients(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := NewClients[int](10, 20, 100)
		c.Know(-1)
		served := 0
		for i := range 100_000 {
			if c.Allow(i) {
				served++
			}
		}
		if served > 20*strangersFactor {
			t.Errorf("%d strangers were served at once, want at most %d", served, 20*strangersFactor)
		}
		if n := c.Len(); n > 101 {
			t.Errorf("%d clients are in the tables, want at most 101", n)
		}
		for i := range 20 {
			if !c.Allow(-1) {
				t.Fatalf("the known client was refused after %d requests, want 20", i)
			}
		}
		if c.Allow(-1) {
			t.Error("the known client has no limit")
		}
		time.Sleep(time.Second) // of the bubble: the buckets fill
		for i := range 10 {
			if !c.Allow(-1) {
				t.Fatalf("a second later the known client was refused after %d requests, want 10", i)
			}
		}
		if !c.Allow(1_000_000) {
			t.Error("a second later a new client was refused")
		}
	})
}

func TestALogWritesHowManyLinesItDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		text := new(linktest.Log)
		l := NewLog(text.Logger())
		for range 1000 {
			l.Warn("trouble")
		}
		if n := strings.Count(text.String(), "\n"); n != logBurst {
			t.Errorf("%d lines were written, want %d", n, logBurst)
		}
		time.Sleep(logEvery)
		l.Warn("more trouble")
		if !strings.Contains(text.String(), `"more trouble" left_out=980`) {
			t.Errorf("the log ends with %s", text.String()[len(text.String())-100:])
		}
	})
}

func TestAReaderSurvivesPanicsAndPausesWhileTheInterfaceIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		text := new(linktest.Log)
		reads, handled := 0, atomic.Int64{}
		start := time.Now()
		err := Datagrams[int]{
			Size: 10, Workers: 2, Log: NewLog(text.Logger()),
			Read: func(b []byte) (int, int, error) {
				switch reads++; {
				case reads <= 3:
					return 0, 0, fmt.Errorf("read: %w", unix.ENETDOWN)
				case reads <= 13:
					return copy(b, "x"), reads, nil
				}
				return 0, 0, net.ErrClosed
			},
			Handle: func(b []byte, from int) {
				handled.Add(1)
				if from%2 == 0 {
					panic("malformed")
				}
			},
		}.Serve(t.Context())
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v, want %v", err, net.ErrClosed)
		}
		if handled.Load() != 10 {
			t.Errorf("%d of 10 datagrams were handled", handled.Load())
		}
		if took := time.Since(start); took != 3*retryAfter {
			t.Errorf("paused for %v, want %v", took, 3*retryAfter)
		}
		if n := strings.Count(text.String(), "malformed"); n != 5 {
			t.Errorf("%d panics in the log, want 5", n)
		}
	})
}

func TestAReaderDropsDatagramsWhenTheQueueIsFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		reads, handled := 0, atomic.Int64{}
		release := make(chan struct{})
		err := Datagrams[int]{
			Size: 10, Workers: 2, Log: NewLog(new(linktest.Log).Logger()),
			Read: func(b []byte) (int, int, error) {
				if reads++; reads > 1000 {
					cancel()
					close(release)
					return 0, 0, net.ErrClosed
				}
				return 1, 0, nil
			},
			Handle: func([]byte, int) { <-release; handled.Add(1) },
		}.Serve(ctx)
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := handled.Load(); n == 0 || n > 2+2*16 {
			t.Errorf("%d datagrams were handled, want 1 to %d", n, 2+2*16)
		}
	})
}
