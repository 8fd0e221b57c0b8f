package api

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

// clockEvents returns the checks of the clock of a VM's guest.
func clockEvents(d *harness.Daemon, id string) []openapi.Event {
	d.T.Helper()
	return harness.Get[[]openapi.Event](d, "/events?type=vm.clock&resource=vms/"+id)
}

// wantClock waits for check n of the clock of a guest, which was minutes behind, and
// compares the clocks.
func wantClock(d *harness.Daemon, id string, n int) {
	d.T.Helper()
	harness.Eventually(d.T, 60*time.Second, fmt.Sprintf("check %d of the clock", n), func() error {
		if len(clockEvents(d, id)) < n {
			return harness.ErrNotYet
		}
		return nil
	})
	var check struct {
		Set    bool
		Offset int64 `json:"offset_ms"`
	}
	event := clockEvents(d, id)[n-1]
	if err := json.Unmarshal(event.Data, &check); err != nil || !check.Set || check.Offset > -60_000 {
		d.T.Errorf("check %d is %s; want a clock that was set", n, event.Data)
	}
	before := time.Now().Unix()
	guest, err := strconv.ParseInt(d.Exec(id, "date +%s"), 10, 64)
	if after := time.Now().Unix(); err != nil || guest < before-1 || guest > after+1 {
		d.T.Errorf("the guest has the time %d, the host %d to %d; %v", guest, before, after, err)
	}
}

// TestClockOfAGuestIsRightAfterAPause sets the clock of a real guest back, in place of a
// pause of that length.
func TestClockOfAGuestIsRightAfterAPause(t *testing.T) {
	d := startAgent(t, "web")
	late := `date -s @$(($(date +%s) - 300)) >/dev/null`

	d.Exec("web", late)
	d.Action("web", "pause")
	d.Action("web", "resume")
	wantClock(d, "web", 1)

	d.Exec("web", late)
	d.Action("web", "pause")
	d.Kill()
	d.Start()
	d.Action("web", "resume")
	wantClock(d, "web", 2)

	d.Exec("web", late)
	monitor, err := d.Monitor(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	if err := monitor.Execute(t.Context(), "stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	d.WaitVM("web", "paused", "monitor", 10*time.Second)
	if err := monitor.Execute(t.Context(), "cont", nil, nil); err != nil {
		t.Fatal(err)
	}
	wantClock(d, "web", 3)
}
