package qmp_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// soon returns a context for what must fail: it ends in a moment, which is still
// long enough to get a command sent on a loaded machine.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// patient returns a context for what must not fail.
func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// dial connects to s for the length of the test.
func dial(t testing.TB, s *qmptest.Server) *qmp.Conn {
	t.Helper()
	c, err := qmp.Dial(patient(t), s.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// scripted connects to a server that runs script after the handshake.
func scripted(t *testing.T, script func(p *qmptest.Peer)) *qmp.Conn {
	t.Helper()
	s := qmptest.NewServer(t)
	s.Script(func(p *qmptest.Peer) {
		p.Handshake()
		script(p)
	})
	return dial(t, s)
}

// wait waits until a channel is closed.
func wait(t testing.TB, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-patient(t).Done():
		t.Fatalf("waited in vain for %s", what)
	}
}
