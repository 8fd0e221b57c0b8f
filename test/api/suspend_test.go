package api

import (
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

func TestSuspendedGuestIsWokenStoppedAndReset(t *testing.T) {
	d := startAgent(t, "web")
	g := d.Serial("web")
	g.Expect("VMT: ready boots=1")
	d.Exec("web", "echo here >/run/mark")

	d.Suspend("web")
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

	d.Suspend("web")
	d.Action("web", "reset")
	g.Expect("VMT: boot n=2")
	d.Call("GET", "/vms/web", nil).Want(200)
	d.WaitAgent("web", "connected")
	g.Expect("VMT: ready boots=2")

	d.Suspend("web")
	a := d.Call("POST", "/vms/web/actions/restart", map[string]any{"timeout_seconds": 100}, harness.Wait).Want(200)
	if v := harness.As[openapi.VM](a); v.State != "running" {
		t.Errorf("after restart, the VM is %s, want running", v.State)
	}
	g.Expect("VMT: power-button")
	g.Expect("VMT: poweroff")
	g.Expect("VMT: ready boots=3")
	d.WaitAgent("web", "connected")

	d.Suspend("web")
	d.Kill()
	d.Start() // the next daemon sees it, too
	d.WaitVM("web", "paused", "suspended", 10*time.Second)
	a = d.Call("POST", "/vms/web/actions/stop", map[string]any{"timeout_seconds": 100}, harness.Wait).Want(200)
	if v := harness.As[openapi.VM](a); v.State != "stopped" || harness.Deref(v.StateReason) != "requested" {
		t.Errorf("after stop, the VM is %s (%s), want stopped", v.State, harness.Deref(v.StateReason))
	}
	g.Expect("VMT: power-button")
	g.Expect("VMT: poweroff")
	all := harness.Get[[]openapi.Operation](d, "/operations?kind=vm.stop")
	op := all[len(all)-1]
	woken := false
	for _, line := range op.Log {
		woken = woken || strings.Contains(line.Message, "waking the guest")
		if strings.Contains(line.Message, "within") {
			t.Errorf("the stop has cut the power: %s", line.Message)
		}
	}
	if !woken {
		t.Errorf("the log of the stop does not say that the guest was woken: %+v", op.Log)
	}
}
