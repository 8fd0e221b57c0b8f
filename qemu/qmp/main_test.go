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

// patience is how long a test waits for an event that must come.
const patience = 20 * time.Second

// soon returns a context for a call that must fail: it ends after 150 ms, which is enough
// to send a command on a loaded machine.
func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// patient returns a context for a call that must not fail.
func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// dial connects to s until the end of the test.
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

// wait waits until c is closed; what names the event in the error.
func wait(t testing.TB, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-patient(t).Done():
		t.Fatalf("%s did not come within %v", what, patience)
	}
}
