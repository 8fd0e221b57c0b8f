package harness

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"vmand/openapi"
)

// ErrNotYet is the error of a condition that says no more than that it is not met.
var ErrNotYet = errors.New("not yet")

// Eventually calls check every 10 ms until it returns nil, and ends the test after the
// timeout.
func Eventually(t testing.TB, timeout time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", timeout, what, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// WaitPasses waits until n passes of the observer have ended. The first of them may have
// begun before the call.
func (d *Daemon) WaitPasses(n int) {
	d.T.Helper()
	last := d.lastPass()
	for range n {
		var now time.Time
		Eventually(d.T, 30*time.Second, "a pass of the observer", func() error {
			if now = d.lastPass(); now.Equal(last) {
				return fmt.Errorf("the last pass ended at %s", last)
			}
			return nil
		})
		last = now
	}
}

// WaitNewPass waits until a pass of the observer has ended that began after the call.
func (d *Daemon) WaitNewPass() {
	d.T.Helper()
	begun := time.Now()
	Eventually(d.T, 15*time.Second, "a pass of the observer", func() error {
		if at := d.lastPass(); !at.After(begun) {
			return fmt.Errorf("the last pass began at %s", at)
		}
		return nil
	})
}

// lastPass returns the time of the observer's last pass, zero if there was none.
func (d *Daemon) lastPass() time.Time {
	d.T.Helper()
	s := Get[openapi.ObserverStatus](d, "/observer/status")
	if s.LastRunAt == nil {
		return time.Time{}
	}
	return s.LastRunAt.Time
}

// WaitSettled waits until the API and the host agree, as Violations says.
func (d *Daemon) WaitSettled() {
	d.T.Helper()
	Eventually(d.T, 15*time.Second, "everything to be settled", func() error {
		if found := d.Violations(); len(found) > 0 {
			return fmt.Errorf("%q", found)
		}
		return nil
	})
}
