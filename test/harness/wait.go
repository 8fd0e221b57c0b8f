package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
)

// WaitSettled waits until no operation is open and all states are settled ones.
func (d *Daemon) WaitSettled() {
	d.T.Helper()
	Eventually(d.T, 15*time.Second, "everything to be settled", func() error {
		for _, state := range []string{"pending", "running"} {
			if a := d.Call("GET", "/operations?state="+state, nil).Want(200); strings.TrimSpace(string(a.Body)) != "[]" {
				return fmt.Errorf("open operations: %s", a.Body)
			}
		}
		for _, v := range As[[]openapi.VM](d.Call("GET", "/vms", nil).Want(200)) {
			if v.State == "starting" || v.State == "stopping" {
				return fmt.Errorf("VM %s is %s", v.ID, v.State)
			}
			if alive := d.VMPID(v.ID) != 0; alive != (v.State == "running" || v.State == "paused") {
				return fmt.Errorf("VM %s is %s, and its process lives: %t", v.ID, v.State, alive)
			}
		}
		for _, disk := range As[[]openapi.Disk](d.Call("GET", "/disks", nil).Want(200)) {
			if disk.State != "available" && disk.State != "attached" {
				return fmt.Errorf("disk %s is %s", disk.ID, disk.State)
			}
			if _, err := os.Stat(filepath.Join(d.StateDir, "disks", disk.ID+".qcow2")); err != nil {
				return err
			}
		}
		return nil
	})
}

// WaitNewPass waits until the observer has begun and ended another pass.
func (d *Daemon) WaitNewPass() {
	d.T.Helper()
	last := func() time.Time {
		s := As[openapi.ObserverStatus](d.Call("GET", "/observer/status", nil).Want(200))
		if s.LastRunAt == nil {
			return time.Time{}
		}
		return s.LastRunAt.Time
	}
	begun := time.Now()
	Eventually(d.T, 15*time.Second, "the observer's next pass", func() error {
		if at := last(); !at.After(begun) {
			return fmt.Errorf("the last was at %s", at)
		}
		return nil
	})
}

// Eventually waits until check returns nil.
func Eventually(t testing.TB, patience time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// WaitPasses waits until the observer has ended n passes that it had not when it was
// asked first.
func (d *Daemon) WaitPasses(n int) {
	d.T.Helper()
	var last time.Time
	for seen := 0; seen < n+1; seen++ {
		Eventually(d.T, 30*time.Second, "the observer's next pass", func() error {
			at := As[openapi.ObserverStatus](d.Call("GET", "/observer/status", nil).Want(200)).LastRunAt
			if at == nil && seen > 0 || at != nil && at.Time.Equal(last) {
				return fmt.Errorf("the last ended at %s", last)
			}
			if at != nil {
				last = at.Time
			}
			return nil
		})
	}
}

// ErrNotYet is why one has to wait on, where there is nothing more to say.
var ErrNotYet = errors.New("not yet")
