package qemu

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/vm"
)

// wipe removes everything in the runtime directory, or the directory itself.
func (h *testHost) wipe(itself bool) {
	h.t.Helper()
	if itself {
		must(h.t, os.RemoveAll(h.layout.run))
		return
	}
	entries, err := os.ReadDir(h.layout.run)
	must(h.t, err)
	for _, e := range entries {
		must(h.t, os.RemoveAll(filepath.Join(h.layout.run, e.Name())))
	}
}

func (h *testHost) survey() vm.Survey {
	h.t.Helper()
	seen, err := h.Survey(h.t.Context())
	must(h.t, err)
	return seen
}

func TestARunningVMIsAdoptedAfterItsRuntimeDirectoryWasCleaned(t *testing.T) {
	for name, itself := range map[string]bool{"the files": false, "the directory": true} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			s := h.start("web", guestDeaf)
			pid := h.Observe(t.Context(), "web").PID
			must(t, h.Close())
			h.wipe(itself)
			h.open()
			o := h.Observe(t.Context(), "web")
			if o.PID != pid || o.Status != vm.StatusMute {
				t.Fatalf("Observe returns %+v; want the mute process %d", o, pid)
			}
			mustFail(t, h.Admit(t.Context(), s), vm.CodeState)
			mustFail(t, h.DeleteVM(t.Context(), "web"), vm.CodeState)
			if seen := h.survey().VMs["web"]; seen.PID != pid || !strings.Contains(seen.Lost, "web.pid") {
				t.Errorf("the survey has %+v", seen)
			}
			must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
			if o := h.Observe(t.Context(), "web"); o.Alive() {
				t.Errorf("Observe returns %+v", o)
			}
			h.startSpec(s)
			h.awaitStatus("web", vm.StatusRunning)
			if seen := h.survey().VMs["web"]; seen.Lost != "" {
				t.Errorf("after a start the survey has %+v", seen)
			}
		})
	}
}

func TestARuntimeDirectoryThatIsCleanedIsNoticedWhileVmandRuns(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	if seen := h.survey().VMs["web"]; seen.Lost != "" {
		t.Errorf("before, the survey has %+v", seen)
	}
	h.wipe(true)
	seen := h.survey().VMs["web"]
	if !strings.Contains(seen.Lost, "web.pid") || !strings.Contains(seen.Lost, "web.qmp") || seen.Status != vm.StatusRunning {
		t.Errorf("the survey has %+v", seen)
	}
	if _, err := os.Stat(h.layout.run); err != nil {
		t.Errorf("the directory is not made again: %v", err)
	}
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
}

func TestAVMIsControlledAfterTheRuntimeDirectoryWasMoved(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	pid := h.Observe(t.Context(), "web").PID
	must(t, h.Close())
	d, err := New(t.Context(), Options{
		StateDir: filepath.Join(h.dir, "state"), RuntimeDir: filepath.Join(h.dir, "other"), Accel: "tcg",
	}, testLog(t))
	must(t, err)
	h.Driver = d
	h.awaitStatus("web", vm.StatusRunning)
	if o := h.Observe(t.Context(), "web"); o.PID != pid {
		t.Errorf("Observe returns %+v; want process %d", o, pid)
	}
	must(t, h.Pause(t.Context(), "web"))
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
}

func TestAProcessThatOnlyClaimsToBeAVMIsNotAdopted(t *testing.T) {
	h := newHost(t)
	h.create("web", guestDeaf)
	p := host.Program{Account: h.account, Argv: []string{
		"/bin/sh", "-c", "sleep 1000; exit", "-name", "guest=web,debug-threads=on", "-pidfile", h.layout.pidfile("web"),
		`{"filename":"` + h.layout.inState(vmRootDisk("web")) + `"}`,
	}}
	process, err := p.Start()
	must(t, err)
	t.Cleanup(func() { unix.Kill(-process.PID, unix.SIGKILL) }) // with its sleep
	if seen := h.survey(); len(seen.VMs) != 0 {
		t.Errorf("the survey has %+v", seen.VMs)
	}
}

// lockVariable names the file that a child of the test locks.
const lockVariable = "VMAN_TEST_LOCK_FILE"

// A process of QEMU's user can lock the pidfile of any VM.
func TestAProcessThatLocksAPidfileIsNotTakenForItsVM(t *testing.T) {
	if path := os.Getenv(lockVariable); path != "" {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
		must(t, unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock))
		os.Stdout.WriteString("locked\n")
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	h := newHost(t)
	s := h.create("web", guestDeaf)
	must(t, os.WriteFile(h.layout.pidfile("web"), nil, 0o600))
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), lockVariable+"="+h.layout.pidfile("web"))
	out, err := child.StdoutPipe()
	must(t, err)
	in, err := child.StdinPipe()
	must(t, err)
	must(t, child.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "locked\n" {
		t.Fatalf("the child wrote %q, %v", line, err)
	}
	if o := h.Observe(t.Context(), "web"); o.Alive() {
		t.Errorf("Observe returns %+v", o)
	}
	mustFail(t, h.Admit(t.Context(), s), vm.CodeOperationFailed)
	in.Close()
	child.Wait()
	h.startSpec(s)
}
