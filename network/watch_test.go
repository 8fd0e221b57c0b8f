package network

import (
	"context"
	"log/slog"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"vmand/vm"
)

// marks is a sink that records the marks it receives.
type marks map[string]time.Time

func (m marks) Nudge(string) {}

func (m marks) Mark(vmID string, mark vm.BootMark, at time.Time) {
	if mark == vm.BootDHCP {
		m[vmID] = at
	}
}

func TestWatchDeliversConfirmationsFromBeforeAndAfterItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, err := New(Options{Mode: ModeUser}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		first := time.Now()
		n.acks.note(vm.Lease{VMID: "web", Acked: first})
		n.acks.note(vm.Lease{VMID: "web", Acked: first.Add(time.Second)})
		got := marks{}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			n.Watch(ctx, got)
			close(done)
		}()
		synctest.Wait()
		if len(got) != 1 || got["web"] != first {
			t.Errorf("marks from before Watch: %v, want web at %v", got, first)
		}
		n.acks.note(vm.Lease{VMID: "db", Acked: first})
		n.acks.note(vm.Lease{VMID: "web", Acked: first.Add(time.Minute)})
		synctest.Wait()
		if len(got) != 2 || got["web"] != first.Add(time.Minute) {
			t.Errorf("marks after the start of Watch: %v", got)
		}
		stop()
		<-done // Watch returns
		n.acks.note(vm.Lease{VMID: "late", Acked: first})
		synctest.Wait()
		if len(got) != 2 {
			t.Errorf("marks after the end of Watch: %v", got)
		}
	})
}

func TestUnwatchedConfirmationsAreBounded(t *testing.T) {
	a := newAcks()
	for i := range maxAcks + 10 {
		a.note(vm.Lease{VMID: "vm-" + strconv.Itoa(i)})
	}
	if n := len(a.take()); n != maxAcks {
		t.Errorf("%d confirmations are pending, want %d", n, maxAcks)
	}
	if n := len(a.take()); n != 0 {
		t.Errorf("%d confirmations are pending after take", n)
	}
}
