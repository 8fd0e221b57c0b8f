package api

import (
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

// suspend has the guest of a VM suspend itself, and waits until the VM shows that. With
// QEMU 7.2 a guest can do that once after each boot: after a wake-up its next attempt
// returns at once.
func suspend(d *harness.Daemon, id string) {
	d.T.Helper()
	d.Exec(id, "(sleep 0.3; echo mem >/sys/power/state) </dev/null >/dev/null 2>&1 &")
	d.WaitVM(id, "paused", "suspended", 30*time.Second)
}

func TestSuspendedGuestIsWokenAndReset(t *testing.T) {
	d := startAgent(t, "web")
	g := d.Serial("web")
	g.Expect("VMT: ready boots=1")
	d.Exec("web", "echo here >/run/mark")

	suspend(d, "web")
	events := harness.Get[[]openapi.Event](d, "/events?type=vm.state&resource=vms/web")
	if last := string(events[len(events)-1].Data); !strings.Contains(last, "suspended") {
		t.Errorf("the last event is %s, want one that says suspended", last)
	}
	d.Call("POST", "/vms/web/actions/pause", nil).Problem(409, "invalid-state", "already paused")
	d.Call("POST", "/vms/web/actions/start", nil).Problem(409, "invalid-state", "paused")
	if v := d.Action("web", "resume"); v.State != "running" {
		t.Errorf("after resume, the VM is %s, want running", v.State)
	}
	d.WaitAgent("web", "connected")
	if got := d.Exec("web", "cat /run/mark"); got != "here" {
		t.Errorf("after resume, the guest has %q, want what it had before", got)
	}
	d.Action("web", "reset")
	g.Expect("VMT: ready boots=2")
	d.WaitAgent("web", "connected")

	suspend(d, "web")
	d.Action("web", "reset")
	g.Expect("VMT: ready boots=3")
	d.WaitAgent("web", "connected")

	suspend(d, "web")
	d.Kill()
	d.Start() // the next daemon sees it, too
	d.WaitVM("web", "paused", "suspended", 10*time.Second)
	d.ForceStop("web")
	if v := d.VM("web"); v.State != "stopped" || harness.Deref(v.StateReason) != "requested" {
		t.Errorf("after stop, the VM is %s (%s), want stopped", v.State, harness.Deref(v.StateReason))
	}
}
