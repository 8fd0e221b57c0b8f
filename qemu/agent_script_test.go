package qemu

import (
	"context"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmand/host"
	"vmand/vm"
)

// scriptedAgent returns the agent of a VM. Its port is open, and serve is the other
// end of each connection.
func scriptedAgent(t *testing.T, serve func(net.Conn)) *agent {
	t.Helper()
	l, err := newLayout(tempDir(t), tempDir(t))
	must(t, err)
	socket, err := net.Listen("unix", l.inRun("web", agentSuffix))
	must(t, err)
	proc, err := host.OpenProcess(os.Getpid()) // one that lives, and that an earlier vmand started
	must(t, err)
	t.Cleanup(proc.Release)
	s := &session{id: "web", layout: l, log: testLog(t), proc: proc}
	a := newAgent(s, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := socket.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	wg.Go(func() { a.run(ctx) })
	t.Cleanup(func() {
		cancel()
		socket.Close()
		wg.Wait()
	})
	a.setPort(true)
	return a
}

func TestGuestSendingGarbageIsSilentAndPolledRarely(t *testing.T) {
	t.Parallel()
	var connections, sent atomic.Int64
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = "\xff{\"return\": 1}\n"[i%15]
	}
	a := scriptedAgent(t, func(conn net.Conn) {
		connections.Add(1)
		for {
			n, err := conn.Write(noise)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	await(t, "a second ping arrives", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.wait >= 2*firstPing
	})
	if got := a.known(); got.State != vm.AgentSilent || !got.LastSeenAt.IsZero() {
		t.Errorf("the agent is %+v", got)
	}
	if n, bytes := connections.Load(), sent.Load(); n > 2 || bytes > n*(4<<20) {
		t.Errorf("%d connections, %d bytes read", n, bytes)
	}
}

func TestAClosedPortEndsTheCallInProgress(t *testing.T) {
	asked := make(chan struct{}, 1)
	a := scriptedAgent(t, func(conn net.Conn) {
		buf := make([]byte, 1024)
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
			select {
			case asked <- struct{}{}:
			default:
			}
		}
	})
	begin := time.Now()
	go func() {
		for { // the agent's own ping may come first
			select {
			case <-asked:
				a.setPort(false)
				a.client.Drop()
			case <-t.Context().Done():
				return
			}
		}
	}()
	err := a.done(a.client.Ping(t.Context()))
	if took := time.Since(begin); codeOf(err) != vm.CodeAgentUnavailable || took > 4*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	if got := a.known(); got.State != vm.AgentSilent {
		t.Errorf("the agent is %+v", got)
	}
}
