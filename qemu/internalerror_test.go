package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"vmand/qemu/qmp/qmptest"
	"vmand/vm"
)

// TestInternalErrorNeedsAReset plays a QEMU with a guest that cannot continue: it refuses cont until
// a reset, as runstate_needs_reset of QEMU 7.2 does.
func TestInternalErrorNeedsAReset(t *testing.T) {
	var status atomic.Value
	status.Store("internal-error")
	var f *fakeHost
	f = newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{
		"query-status": func(string, qmptest.Args) (any, error) {
			return map[string]any{"status": status.Load()}, nil
		},
		"cont": func(string, qmptest.Args) (any, error) {
			if status.Load() == "internal-error" {
				return nil, qmptest.Refuse("GenericError", "Resetting the Virtual Machine is required")
			}
			status.Store("running")
			return map[string]any{}, nil
		},
		"human-monitor-command": func(string, qmptest.Args) (any, error) { return "", nil },
		"system_reset": func(string, qmptest.Args) (any, error) {
			status.Store("prelaunch")
			f.server.Event("RESET", map[string]any{"guest": false, "reason": "host-qmp-system-reset"})
			return map[string]any{}, nil
		},
	}))
	log := filepath.Join(f.layout.state, vmQEMULog("web"))
	must(t, os.MkdirAll(filepath.Dir(log), 0o700))
	must(t, os.WriteFile(log, []byte("KVM internal error. Suberror: 1\nemulation failure\n"), 0o600))
	seen := f.Observe(t.Context(), "web")
	if seen.Status != "internal-error" || !strings.Contains(seen.Trouble, "emulation failure") {
		t.Errorf("observed %+v", seen)
	}
	if v := vm.Settle(vm.Running, vm.ReasonRequested, seen); v.State != vm.Paused || v.Reason != vm.ReasonInternalError {
		t.Errorf("settled as %+v", v)
	}
	err := f.Control(t.Context(), "web", vm.OpResume)
	var refusal *vm.Fault
	if !errors.As(err, &refusal) || refusal.Code != vm.CodeState || refusal.Hint != "reset or restart it" {
		t.Errorf("resume: %v", err)
	}
	must(t, f.Control(t.Context(), "web", vm.OpReset))
	if seen := f.Observe(t.Context(), "web"); seen.Status != vm.StatusRunning || seen.Trouble != "" {
		t.Errorf("after the reset, observed %+v", seen)
	}
}
