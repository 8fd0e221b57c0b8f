package store

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vmand/vm"
)

func keyed(id, by, key string) *vm.Operation {
	return &vm.Operation{ID: id, Kind: vm.VMStart, Resource: "vms/a", State: vm.OpRunning, RequestedBy: by,
		Key: key, Fingerprint: "f-" + id, CreatedAt: at, Log: []vm.LogLine{}}
}

func TestAKeyIdentifiesOneOperationOfItsRequester(t *testing.T) {
	s := open(t)
	apply(t, s, vm.Change{Operation: keyed("a", "token:x", "k")})
	apply(t, s, vm.Change{Operation: keyed("b", "token:y", "k")})
	apply(t, s, vm.Change{Operation: keyed("c", "token:x", "K")})
	for _, id := range []string{"d", "e"} { // operations without a key are never repetitions
		apply(t, s, vm.Change{Operation: keyed(id, "token:x", "")})
	}
	err := s.applyErr(t.Context(), vm.Change{Operation: keyed("f", "token:x", "k"), Events: []vm.Event{{Type: "a.b"}}})
	if f := wantFault(t, err, vm.CodeRepeated); !strings.Contains(f.Detail,
		`token:x has used the Idempotency-Key "k" before`) {
		t.Errorf("the detail is %q; want the requester and the key", f.Detail)
	}
	if _, err := s.Operation(t.Context(), "f"); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("the repeated operation: %v; want it not recorded", err)
	}
	if last, err := s.LastEvent(t.Context()); last != 0 || err != nil {
		t.Errorf("the last event of the repeated operation is %d, %v; want none", last, err)
	}
	ended := keyed("a", "token:x", "k")
	ended.State, ended.FinishedAt = vm.OpSucceeded, at
	apply(t, s, vm.Change{Operation: ended}) // its own key is no conflict
	for _, want := range []*vm.Operation{ended, keyed("b", "token:y", "k"), keyed("c", "token:x", "K")} {
		got, reply, err := s.OperationByKey(t.Context(), want.RequestedBy, want.Key)
		want.Seq = got.Seq
		if err != nil || reply != nil || !reflect.DeepEqual(got, *want) {
			t.Errorf("requester %s, key %s: %+v, %+v, %v; want %+v", want.RequestedBy, want.Key, got, reply, err, *want)
		}
	}
	for _, none := range [][2]string{{"token:x", ""}, {"token:z", "k"}, {"", "k"}} {
		_, _, err := s.OperationByKey(t.Context(), none[0], none[1])
		wantFault(t, err, vm.CodeNotFound)
	}
	if plan := planOf(t, s, `SELECT * FROM operations LEFT JOIN replies ON operation = seq WHERE requested_by = ? AND key = ?`); len(plan) == 0 ||
		!strings.Contains(plan[0], "USING INDEX operations_key (requested_by=? AND key=?)") {
		t.Errorf("the plan is %q; want the index of the keys", plan)
	}
}

func TestOneOfManyConcurrentOperationsGetsAKey(t *testing.T) {
	s := open(t)
	for round := range 10 {
		var won atomic.Int32
		var winner atomic.Value
		var all sync.WaitGroup
		for i := range 32 {
			all.Go(func() {
				o := keyed(fmt.Sprint(round, "-", i), "token:x", fmt.Sprint(round))
				err := s.applyErr(t.Context(),
					vm.Change{Operation: o, Events: []vm.Event{{Type: "operation.started",
						Resource: "operations/" + o.ID}}})
				var f *vm.Fault
				switch {
				case err == nil:
					won.Add(1)
					winner.Store(o.ID)
				case !errors.As(err, &f) || f.Code != vm.CodeRepeated:
					t.Errorf("a refused caller got %v; want a fault of code %s", err, vm.CodeRepeated)
				}
			})
		}
		all.Wait()
		o, _, err := s.OperationByKey(t.Context(), "token:x", fmt.Sprint(round))
		if err != nil || won.Load() != 1 || o.ID != winner.Load() {
			t.Fatalf("%d succeeded, %v, and the key has %q, %v; want the same one", won.Load(), winner.Load(), o.ID, err)
		}
	}
	if last, err := s.LastEvent(t.Context()); last != 10 || err != nil {
		t.Errorf("there are %d events, %v; want one for each success", last, err)
	}
}

func TestAReplyIsKeptWithItsOperation(t *testing.T) {
	s := open(t)
	wantFault(t, s.KeepReply(t.Context(), "none", vm.Reply{Status: 202}), vm.CodeNotFound)
	o := keyed("a", "token:x", "k")
	apply(t, s, vm.Change{Operation: o})
	for _, want := range []vm.Reply{
		{Status: 204},
		{Status: 202, Location: "/v1/operations/a", ETag: `"1-1"`, Body: []byte("{\"id\": 1}\x00\xff")},
	} {
		must(t, s.KeepReply(t.Context(), "a", want))
		_, got, err := s.OperationByKey(t.Context(), "token:x", "k")
		if err != nil || got == nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("read %+v, %v; want %+v", got, err, want)
		}
	}
	o.State, o.FinishedAt = vm.OpSucceeded, at
	apply(t, s, vm.Change{Operation: o})
	if _, got, err := s.OperationByKey(t.Context(), "token:x", "k"); err != nil || got == nil {
		t.Errorf("after the end of the operation the reply is %+v, %v; want it kept", got, err)
	}
	if n, err := s.PruneOperations(t.Context(), at.Add(1e9)); n != 1 || err != nil {
		t.Errorf("pruned %d, %v; want the operation", n, err)
	}
	var left int
	must(t, s.reader.Get(&left, `SELECT count(*) FROM replies`))
	if left != 0 {
		t.Error("the reply of a deleted operation is left")
	}
	apply(t, s, vm.Change{Operation: keyed("b", "token:x", "k")}) // the key is free again
	if _, got, err := s.OperationByKey(t.Context(), "token:x", "k"); err != nil || got != nil {
		t.Errorf("the new operation has the reply %+v, %v; want none", got, err)
	}
}

func TestANoteHasTheValueWrittenLast(t *testing.T) {
	s := open(t)
	for _, want := range []string{"", "one", "", "two'\x00"} {
		if want != "" {
			must(t, s.SetNote(t.Context(), "boot", want))
		}
		if got, err := s.Note(t.Context(), "boot"); err != nil || (want != "" && got != want) {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	if got, err := s.Note(t.Context(), "Boot"); got != "" || err != nil {
		t.Errorf("a note that was never written is %q, %v; want none", got, err)
	}
}
