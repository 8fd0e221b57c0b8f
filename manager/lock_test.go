package manager

import (
	"context"
	"testing"
	"testing/synctest"

	"vmand/vm"
)

func TestResourceIsNotBusyWhileItsOperationEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l locks
		web := vm.VMResource("web-1")
		take := func(h *holder, c claim) error {
			_, err := l.acquire(t.Context(), h, c, web)
			return err
		}
		newHolder := func(id string) *holder {
			return &holder{opID: id, what: id, cancel: func(error) {}, released: make(chan struct{})}
		}
		first, next := newHolder("first"), newHolder("next")
		if err := take(first, claim{}); err != nil {
			t.Fatal(err)
		}
		if err := take(next, claim{}); !vm.HasCode(err, vm.CodeBusy) {
			t.Errorf("while the first operation acts: %v, want busy", err)
		}
		first.ending.Store(true)
		if err := take(next, claim{try: true}); !vm.HasCode(err, vm.CodeBusy) {
			t.Errorf("a claim that does not wait: %v, want busy", err)
		}
		var err error = context.DeadlineExceeded
		go func() { err = take(next, claim{}) }()
		synctest.Wait()
		if err != context.DeadlineExceeded {
			t.Errorf("while the outcome is recorded: %v, want a claim that waits", err)
		}
		l.release(first)
		synctest.Wait()
		if err != nil || l.holderOf(web) != "next" {
			t.Errorf("after the release: %v, held by %q", err, l.holderOf(web))
		}
	})
}
