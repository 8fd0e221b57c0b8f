package store

import (
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vmand/vm"
)

// tell records events of some types, a minute apart.
func tell(t *testing.T, s *Store, types ...string) {
	t.Helper()
	for i, kind := range types {
		apply(t, s, vm.Change{Events: []vm.Event{{At: at.Add(time.Duration(i) * time.Minute), Type: kind, Resource: vm.VMResource("a")}}})
	}
}

func numbers(t *testing.T, s *Store, f vm.EventFilter, p vm.Page) []int64 {
	t.Helper()
	events, err := s.Events(t.Context(), f, p)
	must(t, err)
	all := []int64{}
	for _, e := range events {
		all = append(all, e.Seq)
	}
	return all
}

func TestEventsComeBackInOrder(t *testing.T) {
	s := open(t)
	if last, err := s.LastEvent(t.Context()); last != 0 || err != nil {
		t.Errorf("the last event of none is %d, %v; want 0", last, err)
	}
	want := []vm.Event{
		{At: at.Add(time.Hour), Type: "vm.created", Resource: vm.VMResource("a"), Data: json.RawMessage(`{"state":"stopped","why":"\u2028 <é>"}`)},
		{At: at, Type: "observer.issue", Resource: vm.Resource{Kind: "observer"}},
		{At: at, Type: "vm.state", Resource: vm.VMResource("a"), Data: json.RawMessage(`{}`)},
	}
	apply(t, s, vm.Change{Events: want[:2]})
	apply(t, s, vm.Change{Events: want[2:]})
	for i := range want {
		want[i].Seq = int64(i + 1)
	}
	got, err := s.Events(t.Context(), vm.EventFilter{}, vm.Page{})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	if last, err := s.LastEvent(t.Context()); last != 3 || err != nil {
		t.Errorf("the last event is %d, %v; want 3", last, err)
	}
	apply(t, s, vm.Change{Events: []vm.Event{{Type: "daemon.started", Resource: vm.Resource{Kind: "daemon"}}}})
	if got, err := s.Events(t.Context(), vm.EventFilter{}, vm.Page{After: 3}); err != nil || len(got) != 1 || time.Since(got[0].At) > time.Minute {
		t.Errorf("an event without a time is %+v, %v; want the current time", got, err)
	}
}

func TestEventsAreSelectedByTypeAndResource(t *testing.T) {
	s := open(t)
	for i, e := range []vm.Event{{Type: "vm.created"}, {Type: "disk.created"}, {Type: "vm.state"}, {Type: "vmx.state"}, {Type: "vm.state"}, {Type: "vm"}} {
		e.Resource = vm.VMResource(strconv.Itoa(i % 2))
		apply(t, s, vm.Change{Events: []vm.Event{e}})
	}
	for _, tt := range []struct {
		f    vm.EventFilter
		p    vm.Page
		want []int64
	}{
		{vm.EventFilter{}, vm.Page{}, []int64{1, 2, 3, 4, 5, 6}},
		{vm.EventFilter{Type: "vm.state"}, vm.Page{}, []int64{3, 5}},
		{vm.EventFilter{Type: "vm."}, vm.Page{}, []int64{1, 3, 5}},
		{vm.EventFilter{Type: "vm."}, vm.Page{After: 1, Limit: 1}, []int64{3}},
		{vm.EventFilter{Type: "vm"}, vm.Page{}, []int64{6}},
		{vm.EventFilter{Type: "v%."}, vm.Page{}, []int64{}},
		{vm.EventFilter{Type: "."}, vm.Page{}, []int64{}},
		{vm.EventFilter{Resource: vm.VMResource("1")}, vm.Page{}, []int64{2, 4, 6}},
		{vm.EventFilter{Resource: vm.VMResource("0"), Type: "vm.state"}, vm.Page{After: 3}, []int64{5}},
		{vm.EventFilter{Resource: vm.VMResource("1"), Type: "disk."}, vm.Page{}, []int64{2}},
	} {
		if got := numbers(t, s, tt.f, tt.p); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v %+v selects %v; want %v", tt.f, tt.p, got, tt.want)
		}
	}
}

func TestEventsAreReadByTheIndexOfTheirFilter(t *testing.T) {
	s := open(t)
	for f, want := range map[vm.EventFilter]string{
		{}:                             "USING INTEGER PRIMARY KEY",
		{Type: "vm.state"}:             "USING INDEX events_type (type=? AND seq>?)",
		{Type: "vm."}:                  "USING INDEX events_topic (topic=? AND seq>?)",
		{Resource: vm.VMResource("a")}: "USING INDEX events_resource (resource=? AND seq>?)",
		{Resource: vm.VMResource("a"), Type: "vm."}:      "USING INDEX events_resource (resource=? AND seq>?)",
		{Resource: vm.VMResource("a"), Type: "vm.state"}: "USING INDEX events_resource (resource=? AND seq>?)",
	} {
		q := selectEvents(f)
		query, _ := q.sql(eventTable.list, vm.Page{Limit: 10})
		if plan := planOf(t, s, query); len(plan) != 1 || !strings.Contains(plan[0], want) {
			t.Errorf("%+v: the plan is %q; want %s alone", f, plan, want)
		}
	}
}

func TestOldAndSurplusEventsArePruned(t *testing.T) {
	for name, tt := range map[string]struct {
		before time.Time
		keep   int
		want   []int64 // of five events, a minute apart
	}{
		"none is old":                       {at, 5, []int64{1, 2, 3, 4, 5}},
		"no time and no end":                {time.Time{}, math.MaxInt, []int64{1, 2, 3, 4, 5}},
		"two are old":                       {at.Add(2 * time.Minute), 100, []int64{3, 4, 5}},
		"two are too many":                  {at, 3, []int64{3, 4, 5}},
		"two are old and three too many":    {at.Add(2 * time.Minute), 2, []int64{4, 5}},
		"three are old and one is too many": {at.Add(3 * time.Minute), 4, []int64{4, 5}},
		"all are old":                       {at.Add(time.Hour), 100, []int64{}},
		"all are too many":                  {at, 0, []int64{}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			tell(t, s, "a.a", "a.b", "a.c", "a.d", "a.e")
			n, err := s.PruneEvents(t.Context(), tt.before, tt.keep)
			if err != nil || n != 5-len(tt.want) {
				t.Errorf("pruned %d, %v; want %d", n, err, 5-len(tt.want))
			}
			if got := numbers(t, s, vm.EventFilter{}, vm.Page{}); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%v are left; want %v", got, tt.want)
			}
			if last, err := s.LastEvent(t.Context()); last != 5 || err != nil {
				t.Errorf("the last event is %d, %v; want 5", last, err)
			}
			tell(t, s, "a.f")
			if last, err := s.LastEvent(t.Context()); last != 6 || err != nil {
				t.Errorf("the next event is %d, %v; want 6", last, err)
			}
		})
	}
}

func TestPruningManyEventsDoesNotBlockWriters(t *testing.T) {
	s := open(t)
	const old = 2*pruneBatch + 7
	events := make([]vm.Event, old)
	for i := range events {
		events[i] = vm.Event{At: at, Type: "vm.state", Resource: vm.VMResource("a")}
		if i%3 == 0 { // a clock that was set back: old ones lie among newer ones
			events[i].At = at.Add(time.Hour)
		}
	}
	apply(t, s, vm.Change{Events: events})
	var writer sync.WaitGroup
	writer.Go(func() { tell(t, s, "a.a", "a.b", "a.c") })
	n, err := s.PruneEvents(t.Context(), at.Add(time.Hour), math.MaxInt)
	writer.Wait()
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.PruneEvents(t.Context(), at.Add(time.Hour), math.MaxInt) // the events written meanwhile
	if newer := (old + 2) / 3; err != nil || n < old-newer || n+m != old-newer+3 {
		t.Errorf("pruned %d and %d, %v; want %d and three", n, m, err, old-newer)
	}
	left := numbers(t, s, vm.EventFilter{}, vm.Page{})
	if len(left) != (old+2)/3 || left[0] != 1 || left[1] != 4 {
		t.Errorf("%d are left, the first of them %v; want every third", len(left), left[:2])
	}
}
