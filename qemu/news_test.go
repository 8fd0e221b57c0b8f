package qemu

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vmand/vm"
)

// heardNews is a [vm.Sink] that keeps its calls. It is not safe for concurrent use.
type heardNews []string

func (h *heardNews) Nudge(id string) { *h = append(*h, "nudge "+id) }

func (h *heardNews) Mark(id string, m vm.BootMark, at time.Time) {
	*h = append(*h, "mark "+id+" "+string(m)+" "+at.UTC().Format(time.TimeOnly))
}

// take returns the calls since the last take, sorted.
func (h *heardNews) take() []string {
	all := slices.Sorted(slices.Values(*h))
	*h = nil
	return all
}

func TestWatchDeliversEarlierAndCurrentObservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
		n := newNews()
		for range 1000 { // delivered as one nudge
			n.nudge("web-1")
		}
		n.nudge("web-2")
		n.mark("web-1", vm.BootSerial, noon)
		n.mark("web-1", vm.BootAgent, noon)
		n.mark("web-1", vm.BootSerial, noon.Add(time.Hour)) // of its next run

		var heard heardNews
		watch := func() (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				n.Watch(ctx, &heard)
			}()
			return func() {
				cancel()
				<-done
			}
		}
		stop := watch()
		synctest.Wait()
		want := []string{"mark web-1 agent 12:00:00", "mark web-1 serial 13:00:00", "nudge web-1", "nudge web-2"}
		if got := heard.take(); !slices.Equal(got, want) {
			t.Errorf("before Watch: %q; want %q", got, want)
		}
		n.nudge("web-1")
		synctest.Wait()
		if got := heard.take(); !slices.Equal(got, []string{"nudge web-1"}) {
			t.Errorf("during Watch: %q", got)
		}
		stop()
		n.nudge("web-3")
		if got := heard.take(); len(got) != 0 {
			t.Errorf("after Watch: %q", got)
		}
		stop = watch()
		synctest.Wait()
		if got := heard.take(); !slices.Equal(got, []string{"nudge web-3"}) {
			t.Errorf("in the next Watch: %q", got)
		}
		stop()
	})
}
