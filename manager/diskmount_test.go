package manager_test

import (
	"context"
	"strings"
	"testing"

	"vmand/vm"
)

// mounted returns a world with the running VM "a" and a disk that its guest has mounted.
func mounted(t *testing.T) (*world, string) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	d := w.disk("")
	must(t)(w.Disks.Attach(t.Context(), d.ID, "a", ""))
	w.driver.SetMounts(d.ID, vm.GuestMount{MountPoint: "/data", Device: "sda1"},
		vm.GuestMount{MountPoint: "/srv", Device: "sda1"})
	return w, d.ID
}

// log returns the log of an operation as text.
func log(op vm.Operation) (text string) {
	for _, line := range op.Log {
		text += line.Step + ": " + line.Message + "\n"
	}
	return text
}

// since returns the calls of the driver after the first n, without those of a kind.
func (w *world) since(n int) string { return strings.Join(w.driver.Calls()[n:], ", ") }

func TestAMountedDiskIsNotDetachedWithoutSyncOrForce(t *testing.T) {
	w, id := mounted(t)
	_, _, err := w.Disks.Detach(t.Context(), id, vm.DetachOptions{})
	if f := wantCode(t, err, vm.CodeInUse, "/data, /srv", "VM a"); !strings.Contains(f.Hint, "force") {
		t.Errorf("the hint is %q", f.Hint)
	}
	w.wantDisk(id, vm.DiskAttached, "a", "/dev/sdb")
	d, op, err := w.Disks.Detach(t.Context(), id, vm.DetachOptions{Force: true})
	must(t)(err)
	if !strings.Contains(d.Reason, "/data") || !strings.Contains(log(op), "with force while") {
		t.Errorf("the reason is %q, the log is %s", d.Reason, log(op))
	}
	if d, _, err = w.Disks.Attach(t.Context(), id, "a", ""); err != nil || d.Reason != "" {
		t.Errorf("attached again, the disk is %+v, %v", d, err)
	}
}

func TestADetachWithSyncFlushesTheGuestFirst(t *testing.T) {
	w, id := mounted(t)
	n := len(w.driver.Calls())
	d, op, err := w.Disks.Detach(t.Context(), id, vm.DetachOptions{Sync: true})
	must(t)(err)
	if got, want := w.since(n), "Mounts a, Freeze a, DetachDisk "+id+", Thaw a"; got != want {
		t.Errorf("the calls are %s, want %s", got, want)
	}
	if d.Reason != "" || !strings.Contains(log(op), "flushed and frozen") {
		t.Errorf("the reason is %q, the log is %s", d.Reason, log(op))
	}
}

func TestAGuestThatCannotFreezeRunsSync(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		force  bool
		code   vm.Code
		calls  string
	}{
		"which succeeds":        {calls: "Mounts a, Exec a, DetachDisk "},
		"which fails":           {status: 1, code: vm.CodeGuestRefused, calls: "Mounts a, Exec a"},
		"which fails, by force": {status: 1, force: true, calls: "Mounts a, Exec a, DetachDisk "},
	} {
		t.Run(name, func(t *testing.T) {
			w, id := mounted(t)
			w.driver.Hook = func(_ context.Context, m, _ string) error {
				if m == "Freeze" {
					return &vm.Fault{Code: vm.CodeGuestRefused, Detail: "no freeze"}
				}
				return nil
			}
			w.driver.Run = func(_ string, c vm.GuestCommand) vm.GuestResult {
				if c.Path != "sync" {
					t.Errorf("the guest runs %q", c.Path)
				}
				return vm.GuestResult{Exited: true, ExitCode: tt.status}
			}
			n := len(w.driver.Calls())
			d, _, err := w.Disks.Detach(t.Context(), id, vm.DetachOptions{Sync: true, Force: tt.force})
			if got := strings.TrimSuffix(w.since(n), id); got != tt.calls {
				t.Errorf("the calls are %s, want %s", got, tt.calls)
			}
			if tt.code != "" {
				wantCode(t, err, tt.code)
				w.wantDisk(id, vm.DiskAttached, "a", "/dev/sdb")
				return
			}
			must(t)(err)
			if (d.Reason != "") != tt.force {
				t.Errorf("the reason is %q", d.Reason)
			}
		})
	}
}

func TestADetachWithoutAnAnswerOfTheGuest(t *testing.T) {
	silent := vm.Agent{State: vm.AgentSilent}
	for name, tt := range map[string]struct {
		agent *vm.Agent
		pause bool
		o     vm.DetachOptions
		code  vm.Code // of the error; empty for success
		doubt string  // in the reason of the disk
	}{
		"no agent":                  {agent: &vm.Agent{State: vm.AgentAbsent}, doubt: "only if the guest had unmounted"},
		"no agent, sync":            {agent: &vm.Agent{State: vm.AgentAbsent}, o: vm.DetachOptions{Sync: true}, code: vm.CodeAgentUnavailable},
		"a silent agent":            {agent: &silent, code: vm.CodeAgentUnavailable},
		"a silent agent, by force":  {agent: &silent, o: vm.DetachOptions{Force: true}, doubt: "with force"},
		"a paused guest":            {agent: &silent, pause: true, code: vm.CodeAgentUnavailable},
		"a paused guest, by force":  {agent: &silent, pause: true, o: vm.DetachOptions{Force: true}, doubt: "with force"},
		"a paused guest, no agent":  {agent: &vm.Agent{State: vm.AgentAbsent}, pause: true, doubt: "only if the guest had unmounted"},
		"a silent agent, with sync": {agent: &silent, o: vm.DetachOptions{Sync: true}, code: vm.CodeAgentUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w, id := mounted(t)
			w.driver.SetAgent("a", *tt.agent)
			if tt.pause {
				w.do("a", vm.OpPause)
			}
			d, op, err := w.Disks.Detach(t.Context(), id, tt.o)
			if tt.code != "" {
				if f := wantCode(t, err, tt.code); !strings.Contains(f.Hint, "force") && tt.agent == &silent {
					t.Errorf("the hint is %q", f.Hint)
				}
				w.wantDisk(id, vm.DiskAttached, "a", "/dev/sdb")
				return
			}
			must(t)(err)
			w.wantDisk(id, vm.DiskAvailable, "", "")
			if !strings.Contains(d.Reason, tt.doubt) || !strings.Contains(log(op), tt.doubt) {
				t.Errorf("the reason is %q, the log is %s", d.Reason, log(op))
			}
		})
	}
}

func TestADetachFromAStoppedVMAsksNoGuest(t *testing.T) {
	w, id := mounted(t)
	w.do("a", vm.OpStop)
	n := len(w.driver.Calls())
	d, _, err := w.Disks.Detach(t.Context(), id, vm.DetachOptions{Sync: true})
	must(t)(err)
	if d.Reason != "" || w.since(n) != "" {
		t.Errorf("the reason is %q, the calls are %s", d.Reason, w.since(n))
	}
}
