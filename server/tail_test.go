package server

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"vmand/vm"
)

// A counting reader counts the reads of events.
type counting struct {
	Records
	reads atomic.Int64
}

func (c *counting) Events(ctx context.Context, f vm.EventFilter, p vm.Page) ([]vm.Event, error) {
	c.reads.Add(1)
	return c.Records.Events(ctx, f, p)
}

func TestAnEventIsReadOnceForAllStreams(t *testing.T) {
	t.Parallel()
	records := &counting{}
	a := newAPI(t, func(f *fixture) {
		records.Records = f.d.Reader
		f.d.Reader = records
		f.tune = func(s *Server) { s.streams = newQuota("event streams", 100, 100) }
	})
	const streams, events = 40, 20
	var readers []*bufio.Reader
	for range streams {
		readers = append(readers, bufio.NewReader(a.follow(t, "?type=template.").Body))
	}
	before := records.reads.Load()
	for i := range events {
		a.want(t, 201, "POST", "/templates", fmt.Sprintf(`{"name":"t%d","cpu_count":1,"ram_amount":64}`, i))
		for _, r := range readers {
			e, err := nextEvent(r)
			if err != nil || e.Resource != fmt.Sprintf("templates/t%d", i) {
				t.Fatalf("event %d: %+v, %v", i, e, err)
			}
		}
	}
	if got := records.reads.Load() - before; got > 4*events {
		t.Errorf("%d reads for %d events and %d streams", got, events, streams)
	}
}

func TestTheTailHasTheNewestEventsOnly(t *testing.T) {
	t.Parallel()
	tl := tail{}
	for i := range 3 * maxTail {
		if err := tl.add([]vm.Event{{Seq: int64(2 * i), Type: "vm.created"}}); err != nil {
			t.Fatal(err)
		}
	}
	tl.fresh = make(chan struct{}) // there is no event after them
	if _, ok, err := tl.since(t.Context(), tl.from-1); ok || err != nil {
		t.Errorf("an event that was forgotten: %v, %v", ok, err)
	}
	got, ok, err := tl.since(t.Context(), tl.last-5)
	if !ok || err != nil || len(got) != 3 || len(tl.kept) != maxTail {
		t.Errorf("%d events, %v, %v; %d are kept", len(got), ok, err, len(tl.kept))
	}
}

func TestAFilterLetsThroughWhatTheStoreDoes(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	all, err := a.store.Events(t.Context(), vm.EventFilter{}, vm.Page{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []vm.EventFilter{
		{}, {Type: "vm."}, {Type: "vm.created"}, {Type: "template."}, {Type: "operation."}, {Type: "vm"},
		{Resource: vm.VMResource("web-1")}, {Type: "vm.", Resource: vm.TemplateResource("small")},
	} {
		want, err := a.store.Events(t.Context(), f, vm.Page{})
		if err != nil {
			t.Fatal(err)
		}
		var got []int64
		for i := range all {
			if passes(f, &all[i]) {
				got = append(got, all[i].Seq)
			}
		}
		if !slices.EqualFunc(got, want, func(seq int64, e vm.Event) bool { return seq == e.Seq }) {
			t.Errorf("%+v: %v; want %v", f, got, want)
		}
	}
}

func TestTheNumberOfStreamsIsLimitedInAllAndPerCaller(t *testing.T) {
	t.Parallel()
	for _, q := range map[string]*quota{
		"per caller": newQuota("event streams", 100, 3),
		"in all":     newQuota("event streams", 3, 100),
	} {
		a := newAPI(t, func(f *fixture) { f.tune = func(s *Server) { s.streams = q } })
		var open []*http.Response
		for range 3 {
			open = append(open, a.follow(t, ""))
		}
		a.wantCode(t, 429, "too-many-requests", "GET", "/events", "", "Accept", streamMedia)
		open[0].Body.Close()
		waitFor(t, func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			return q.n == 2
		})
		a.follow(t, "")
	}
}

func TestARequestAboveTheLimitIsNotHeld(t *testing.T) {
	t.Parallel()
	q := newQuota("held requests", 100, 0)
	a := newAPI(t, func(f *fixture) { f.tune = func(s *Server) { s.waiting = q } })
	a.withVM(t)
	begun := time.Now()
	a.want(t, 202, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=100")
	if took := time.Since(begun); took > 50*time.Second {
		t.Errorf("it was held for %v", took)
	}
	a.wantCode(t, 429, "too-many-requests", "POST", "/vms/web-1/exec", `{"command":["true"]}`)
	a.wantCode(t, 429, "too-many-requests", "GET", "/vms/web-1?wait_for=agent", "", "Prefer", "wait=100")
	a.want(t, 202, "POST", "/vms/web-1/actions/start?wait_for=agent", "", "Prefer", "wait=100")
}
