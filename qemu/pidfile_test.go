package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/vm"
)

// launch starts the QEMU of a VM and releases it before its first answer, as a vmand
// that is killed at that moment.
func (h *testHost) launch(s vm.Spec, binary string) (pid int) {
	h.t.Helper()
	p, err := h.probe(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	if binary != "" {
		p.Binary.Path = binary
	}
	sess, err := h.Driver.launch(p, s)
	if err != nil {
		h.t.Fatal(err)
	}
	return sess.proc.PID
}

func TestProcessIsSeenBeforeItExecutesQEMU(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	qemu, err := host.LookPath("qemu-system-x86_64")
	must(t, err)
	ready := filepath.Join(h.dir, "ready")
	slow := fakeTool(t, "while [ ! -e "+ready+" ]; do sleep 0.01; done; exec "+qemu+` "$@"`)
	pid := h.launch(s, slow)
	h.reopen()
	if o := h.Observe(t.Context(), "web"); o.PID != pid || o.Status != vm.StatusMute {
		t.Errorf("Observe returns %+v; want the mute process %d", o, pid)
	}
	mustFail(t, h.Admit(t.Context(), s), vm.CodeState)
	mustFail(t, errOf(h.Start(t.Context(), s, nil)), vm.CodeState)
	mustFail(t, h.DeleteVM(t.Context(), "web"), vm.CodeState)
	must(t, os.WriteFile(ready, nil, 0o600))
	h.awaitStatus("web", vm.StatusPrelaunch)
	if o := h.Observe(t.Context(), "web"); o.PID != pid {
		t.Errorf("process %d became %+v", pid, o)
	}
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{}, nil))
	h.mustBeGone("web")
}

func TestForkedProcessIsSeen(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	for range 5 {
		pid := h.launch(s, "")
		h.reopen()
		if o := h.Observe(t.Context(), "web"); o.PID != pid {
			t.Fatalf("Observe returns %+v; want process %d", o, pid)
		}
		must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
		h.mustBeGone("web")
	}
}

func TestAVMIsNotStartedWhileAnUnknownProcessHoldsItsPidfile(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	lock, err := lockPidfile(h.layout.pidfile("web"), h.account) // as a child that has not executed QEMU yet
	must(t, err)
	defer lock.Close()
	for _, err := range []error{h.Admit(t.Context(), s), errOf(h.Start(t.Context(), s, nil))} {
		mustFail(t, err, vm.CodeOperationFailed)
	}
	p, err := h.probe(t.Context())
	must(t, err)
	_, err = h.Driver.launch(p, s) // even without the check before
	mustFail(t, err, vm.CodeState)
	h.reopen()
	if _, err := os.Stat(h.layout.pidfile("web")); err != nil {
		t.Errorf("the pidfile was removed as stale: %v", err)
	}
	lock.Close()
	h.startSpec(s)
	h.awaitStatus("web", vm.StatusRunning)
}

func TestADeadQEMULeavesNothingInTheRuntimeDirectory(t *testing.T) {
	h := newHost(t)
	h.start("runs", guestDeaf)
	s := h.create("web", guestDeaf)
	for how, end := range map[string]func(){
		"killed":                 func() { h.startSpec(s); must(t, h.kill("web")) },
		"killed without a vmand": func() { h.startSpec(s); h.killUnseen("web") },
		"not started": func() {
			bad := s
			bad.Disks = []vm.Disk{{ID: "data"}} // has no slot
			mustFail(t, errOf(h.Start(t.Context(), bad, nil)), vm.CodeInvalid)
		},
		"ended at its start": func() {
			bad := s
			bad.Machine = "pc-q35-99.9"
			mustFail(t, errOf(h.Start(t.Context(), bad, nil)), vm.CodeOperationFailed)
			must(t, h.checkFree(t.Context(), "web"))
		},
	} {
		end()
		left, err := filepath.Glob(h.layout.inRun("web", "*"))
		if err != nil || len(left) != 0 {
			t.Errorf("%s: the runtime directory holds %q, %v", how, left, err)
		}
	}
	h.awaitStatus("runs", vm.StatusRunning)
}

// killUnseen kills the process of a VM while no vmand runs.
func (h *testHost) killUnseen(id string) {
	h.t.Helper()
	pid := h.Observe(h.t.Context(), id).PID
	must(h.t, h.Close())
	must(h.t, unix.Kill(pid, unix.SIGKILL))
	await(h.t, "the process releases its pidfile", func() bool {
		_, locked, err := lockOwner(h.layout.pidfile(id))
		return !locked && err == nil
	})
	h.open()
}
