package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vmand/qemu/qmp"
	"vmand/vm"
)

func TestAStartedGuestRunsAndItsConsoleIsKept(t *testing.T) {
	h := newHost(t)
	h.start("web", guestSaysHi)
	h.awaitSerial("web", "hi\n")
	if o := h.Observe(t.Context(), "web"); o.Status != vm.StatusRunning || o.PID == 0 || o.Plugged == nil || len(o.Plugged) != 0 {
		t.Errorf("Observe returns %+v", o)
	}
	for _, suffix := range []string{operatorSuffix, qmpSuffix} {
		if st, err := os.Stat(h.layout.inRun("web", suffix)); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("socket %s: %v, %v", suffix, st.Mode(), err)
		}
	}
	operator, err := qmp.Dial(t.Context(), h.layout.inRun("web", operatorSuffix))
	if err != nil {
		t.Fatalf("the operator has no monitor: %v", err)
	}
	operator.Close()
}

// procStatus returns the fields of /proc/<pid>/status.
func procStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := make(map[string]string)
	for _, line := range strings.Split(string(b), "\n") {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func TestQEMUHasNoRightsAndOnlyItsOwnDescriptors(t *testing.T) {
	// As a descriptor that vmand inherited.
	leak, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	leak.Fd()
	h := newHost(t)
	s := h.create("web", guestDeaf)
	s.Disks = []vm.Disk{h.disk("data", "web", "/dev/sdb")}
	h.startSpec(s)
	pid := h.Observe(t.Context(), "web").PID
	status := procStatus(t, pid)
	for field, want := range map[string]string{
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
		"Uid": strings.Repeat(fmt.Sprintf("%d\t", h.account.UID), 4), "Gid": strings.Repeat(fmt.Sprintf("%d\t", h.account.GID), 4),
	} {
		if got := status[field]; got != strings.TrimSpace(want) {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	if h.account.UID == 0 {
		t.Error("QEMU runs as root")
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !strings.Contains(string(limits), "Max core file size        0 ") {
		t.Errorf("QEMU may leave a core dump: %v\n%s", err, limits)
	}
	checkDescriptors(t, h, pid)
	if sid := sessionOf(t, pid); sid != pid {
		t.Errorf("QEMU is in session %d instead of its own", sid)
	}
}

// checkDescriptors fails the test if QEMU has other descriptors than it needs.
func checkDescriptors(t *testing.T, h *testHost, pid int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{h.dir + "/", "/dev/null", "/dev/urandom", "socket:", "anon_inode:", "pipe:"}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		ok := false
		for _, prefix := range allowed {
			ok = ok || strings.HasPrefix(target, prefix)
		}
		if !ok {
			t.Errorf("QEMU has %s open", target)
		}
	}
	if n := len(entries); n > 40 {
		t.Errorf("QEMU has %d descriptors open", n)
	}
}

func sessionOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var state string
	var parent, group, session int
	rest := string(b)[strings.LastIndex(string(b), ")")+1:]
	if _, err := fmt.Sscan(rest, &state, &parent, &group, &session); err != nil {
		t.Fatal(err)
	}
	return session
}

func TestRefusedStartReportsTheErrorOfQEMU(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	s.Machine = "pc-q35-99.9"
	_, err := h.Start(t.Context(), s, nil)
	if codeOf(err) != vm.CodeOperationFailed || !strings.Contains(err.Error(), "unsupported machine type") {
		t.Errorf("got %v", err)
	}
	o := h.Observe(t.Context(), "web")
	if o.Alive() || !strings.Contains(o.Log, "unsupported machine type") {
		t.Errorf("Observe returns %+v", o)
	}
	s.Machine = ""
	h.startSpec(s) // the next start succeeds
}

func TestAVMIsOneProcess(t *testing.T) {
	h := newHost(t)
	s := h.start("web", guestDeaf)
	if err := h.Admit(t.Context(), s); codeOf(err) != vm.CodeState {
		t.Errorf("a running VM is admitted: %v", err)
	}
	if _, err := h.Start(t.Context(), s, nil); codeOf(err) != vm.CodeState {
		t.Errorf("it was started again: %v", err)
	}
	if err := h.DeleteVM(t.Context(), "web"); codeOf(err) != vm.CodeState {
		t.Errorf("a running VM was deleted: %v", err)
	}
	h.reopen() // its sockets still work
	h.awaitStatus("web", vm.StatusRunning)
}

func TestAVMWithMissingFilesIsNotAdmitted(t *testing.T) {
	h := newHost(t)
	whole := h.create("web", guestDeaf)
	for what, change := range map[string]func(*vm.Spec){
		"root disk of VM other": func(s *vm.Spec) { s.ID = "other" },
		"disk gone of VM web":   func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "gone", MountPoint: "/dev/sdb"}} },
		"base image of VM web":  func(s *vm.Spec) { s.Root.Base += ".gone" },
	} {
		s := whole
		change(&s)
		if err := h.Admit(t.Context(), s); codeOf(err) != vm.CodeOperationFailed || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := h.Admit(t.Context(), whole); err != nil {
		t.Error(err)
	}
	whole.RAMMiB = vm.MaxRAMMiB
	if err := h.Admit(t.Context(), whole); codeOf(err) != vm.CodeInsufficientMemory {
		t.Errorf("4 TiB of memory: %v", err)
	}
}

func TestEightVMsStartAtOnce(t *testing.T) {
	h := newHost(t)
	specs := make([]vm.Spec, 8)
	for i := range specs {
		specs[i] = h.create(fmt.Sprintf("web-%d", i), guestSaysHi)
	}
	var wg sync.WaitGroup
	for _, s := range specs {
		wg.Go(func() {
			if _, err := h.Start(t.Context(), s, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen, err := h.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range specs {
		h.awaitSerial(s.ID, "hi\n")
		if got := seen.VMs[s.ID]; got.Status != vm.StatusRunning {
			t.Errorf("VM %s is %+v", s.ID, got)
		}
	}
	for _, s := range specs {
		wg.Go(func() {
			if err := h.Shutdown(t.Context(), s.ID, vm.StopOptions{Force: true}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(h.layout.run)
	if err != nil || len(left) != 0 {
		t.Errorf("left in the runtime directory: %v, %v", left, err)
	}
}
