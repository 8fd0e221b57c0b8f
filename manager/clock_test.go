package manager_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmand/manager"
	"vmand/vm"
)

// clockEvents returns the data of the recorded checks of clocks, as text.
func (w *world) clockEvents() []string {
	w.t.Helper()
	events, err := w.store.Events(w.t.Context(), vm.EventFilter{Type: "vm.clock"}, vm.Page{})
	if err != nil {
		w.t.Fatal(err)
	}
	var data []string
	for _, e := range events {
		data = append(data, string(e.Data))
	}
	return data
}

// awaitClock waits until n checks are recorded, and returns the last.
func (w *world) awaitClock(n int) string {
	w.t.Helper()
	for {
		news := w.NextEvent()
		if data := w.clockEvents(); len(data) >= n {
			return data[n-1]
		}
		select {
		case <-news:
		case <-w.t.Context().Done():
			w.t.Fatal("no check of a clock was recorded")
		}
	}
}

func TestClockIsCheckedAfterEveryPause(t *testing.T) {
	w := newWorld(t)
	w.create("web-1")
	w.do("web-1", vm.OpStart)
	if got := w.clockEvents(); len(got) != 0 {
		t.Fatalf("a start has checked the clock: %v", got)
	}
	settle := func() { must(t)(w.Settle(t.Context(), vm.VMResource("web-1"))) }
	for i, resume := range []func(){
		func() { w.do("web-1", vm.OpPause); w.do("web-1", vm.OpResume) },
		func() { // by a command on the operator's monitor
			w.driver.Set("web-1", vm.StatusPaused)
			settle()
			w.driver.Set("web-1", vm.StatusRunning)
			settle()
		},
		func() { // a suspended guest that something in it wakes
			w.driver.Set("web-1", "suspended")
			settle()
			w.driver.Set("web-1", vm.StatusRunning)
			settle()
		},
		func() { w.driver.SetFull("web-1", 0); settle(); w.driver.SetFull("web-1", 1000); settle() },
	} {
		resume()
		if got := w.awaitClock(i + 1); !strings.Contains(got, `"set":true`) || !strings.Contains(got, `"offset_ms":-60000`) {
			t.Errorf("pause %d: the event is %s", i, got)
		}
	}
}

func TestClockIsSetOnceTheAgentAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create("web-1")
		w.do("web-1", vm.OpStart)
		w.do("web-1", vm.OpPause)
		var tries int
		answered := make(chan struct{})
		w.driver.Hook = func(ctx context.Context, method, id string) error {
			if method != "SetClock" {
				return nil
			}
			if tries++; tries < 3 {
				return &vm.Fault{Code: vm.CodeAgentUnavailable, Detail: "silent"}
			}
			close(answered)
			return nil
		}
		w.do("web-1", vm.OpResume) // which does not wait for the clock
		<-answered
		if got := w.awaitClock(1); !strings.Contains(got, `"set":true`) {
			t.Errorf("the event is %s", got)
		}
	})
}

func TestClockThatCannotBeSetIsRecorded(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"the guest refuses":          {&vm.Fault{Code: vm.CodeGuestRefused, Detail: "no hwclock"}, "no hwclock"},
		"the guest does not answer":  {&vm.Fault{Code: vm.CodeAgentUnavailable, Detail: "silent"}, "silent"},
		"the guest answers too late": {context.DeadlineExceeded, "internal"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { clockFails(t, tt.err, tt.want) })
		})
	}
}

// clockFails resumes a VM with a guest that answers with an error.
func clockFails(t *testing.T, failure error, want string) {
	w := newWorld(t)
	w.create("web-1")
	w.do("web-1", vm.OpStart)
	w.do("web-1", vm.OpPause)
	w.driver.Hook = func(ctx context.Context, method, id string) error {
		if method == "SetClock" {
			return failure
		}
		return nil
	}
	begin := time.Now()
	w.do("web-1", vm.OpResume)
	if got := w.awaitClock(1); !strings.Contains(got, `"set":false`) || !strings.Contains(got, want) {
		t.Errorf("the event is %s", got)
	}
	if took := time.Since(begin); took > 3*time.Minute {
		t.Errorf("it was recorded after %v", took)
	}
	why, err := w.VMs.Why(t.Context(), "web-1")
	must(t)(err)
	if !strings.Contains(strings.Join(why.Words, " "), "clock of its guest could not be set") {
		t.Errorf("why does not name the clock: %q", why.Words)
	}
}

// TestClockIsCheckedByTheNextDaemon ends the daemon between the resume and the answer of
// the guest.
func TestClockIsCheckedByTheNextDaemon(t *testing.T) {
	w := newWorld(t)
	w.create("web-1")
	w.create("web-2")
	for _, id := range []string{"web-1", "web-2"} {
		w.do(id, vm.OpStart)
		w.do(id, vm.OpPause)
	}
	w.do("web-2", vm.OpResume)
	w.awaitClock(1)
	asked := make(chan struct{}, 10)
	w.driver.Hook = func(ctx context.Context, method, id string) error {
		if method != "SetClock" {
			return nil
		}
		asked <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	w.do("web-1", vm.OpResume)
	<-asked
	w.Close(t.Context())
	if got := w.clockEvents(); len(got) != 1 {
		t.Fatalf("the events are %v", got)
	}

	w.driver.Hook = nil
	w.Engine = manager.New(w.store, w.driver, w.network, manager.Options{}, slog.New(slog.DiscardHandler))
	must(t)(w.Recover(t.Context()))
	w.awaitClock(2)
	calls := strings.Join(w.driver.Calls(), "\n")
	if strings.Count(calls, "SetClock web-1") != 1 || strings.Count(calls, "SetClock web-2") != 1 {
		t.Errorf("the calls are\n%s", calls)
	}
}
