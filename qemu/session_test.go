package qemu

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
	"vmand/vm"
)

// fakeHost is a driver with one VM, web: a process that sleeps, and a scripted
// monitor.
type fakeHost struct {
	*testHost
	server *qmptest.Server
	sess   *session
}

const fakeUUID = "8a0f3c1e-6a3d-4f52-9d0e-5f0a1b2c3d4e"

// silent handles a command without an answer.
func silent(string, qmptest.Args) (any, error) { return nil, qmptest.ErrSilent }

// fakeQEMU answers the queries of every session, and the commands in answers.
func fakeQEMU(answers map[string]qmptest.Handler) qmptest.Handler {
	return func(command string, args qmptest.Args) (any, error) {
		if h := answers[command]; h != nil {
			return h(command, args)
		}
		switch command {
		case "query-uuid":
			return map[string]string{"UUID": fakeUUID}, nil
		case "query-status":
			return map[string]string{"status": "running"}, nil
		case "qom-list":
			return []any{}, nil
		}
		return nil, nil
	}
}

func newFakeHost(t *testing.T, h qmptest.Handler) *fakeHost {
	t.Helper()
	f := &fakeHost{testHost: &testHost{t: t, dir: tempDir(t), news: make(map[string]int)}, server: qmptest.NewServer(t)}
	f.server.Handle(h)
	f.open()
	if err := os.WriteFile(f.layout.inRun("web", uuidSuffix), []byte(fakeUUID+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(f.server.Path(), f.layout.inRun("web", qmpSuffix)); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.sess, err = f.spawn("web", []string{"/bin/sleep", "1000"}, []*os.File{nil, nil, nil}, false); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.sess.proc.Signal(unix.SIGKILL)
		<-f.sess.proc.Done()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestABrokenConnectionIsRemade(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(nil))
	f.awaitStatus("web", vm.StatusRunning)
	news := f.newsOf("web")
	f.server.HangUp()
	f.awaitStatus("web", vm.StatusRunning)
	await(t, "the driver nudges", func() bool { return f.newsOf("web") > news })
}

func TestAMonitorOfAnotherVMIsNotUsed(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{"query-uuid": func(string, qmptest.Args) (any, error) {
		return map[string]string{"UUID": "00000000-0000-0000-0000-000000000000"}, nil
	}}))
	await(t, "the wrong monitor is detected", func() bool {
		return strings.Contains(errorText(f.Pause(t.Context(), "web")), "not the VM's")
	})
	if o := f.Observe(t.Context(), "web"); !o.Alive() || o.Status != vm.StatusMute {
		t.Errorf("Observe returns %+v", o)
	}
	if err := f.Shutdown(t.Context(), "web", vm.StopOptions{}, nil); err == nil {
		t.Error("the other VM was paused")
	}
	if f.sess.proc.Exited() {
		t.Error("the other VM is dead")
	}
	for _, c := range f.server.Commands() {
		if c != "query-uuid" {
			t.Errorf("the other VM got the command %s", c)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestAMuteQEMUDelaysOneSurveyOnly(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{"query-status": func(string, qmptest.Args) (any, error) {
		asked <- struct{}{}
		<-answer
		return map[string]string{"status": "paused"}, nil
	}}))
	look := func() (vm.Observation, time.Duration) {
		begin := time.Now()
		seen, err := f.Survey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return seen.VMs["web"], time.Since(begin)
	}
	o, took := look()
	if o.PID == 0 || o.Status != vm.StatusMute || took > 3*observeTimeout {
		t.Errorf("the first survey: %+v after %v", o, took)
	}
	for range 3 {
		if o, took := look(); o.PID == 0 || o.Status != vm.StatusMute || took > observeTimeout/2 {
			t.Errorf("a later survey: %+v after %v", o, took)
		}
	}
	news := f.newsOf("web")
	close(answer)
	await(t, "the driver nudges when QEMU answers again", func() bool { return f.newsOf("web") > news })
	if o, _ := look(); o.Status != vm.StatusPaused {
		t.Errorf("at the end: %+v", o)
	}
}

func TestEventsWakeTheObserver(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(nil))
	f.awaitStatus("web", vm.StatusRunning)
	for _, event := range []string{"STOP", "RESUME", "SHUTDOWN", "RESET", "GUEST_PANICKED", "BLOCK_IO_ERROR", "DEVICE_DELETED"} {
		news := f.newsOf("web")
		f.server.Event(event, map[string]string{"device": "disk-data"})
		await(t, event+" causes a nudge", func() bool { return f.newsOf("web") > news })
	}
}

func TestUnreleasedDeviceIsUnavailable(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(nil)) // accepts device_del and sends no event
	f.awaitStatus("web", vm.StatusRunning)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := f.DetachDisk(ctx, vm.Disk{ID: "data", VMID: "web", MountPoint: "/dev/sdb"})
	if codeOf(err) != vm.CodeQEMUUnresponsive {
		t.Errorf("got %v", err)
	}
}

func TestDetachOfALostDeviceEndsSoon(t *testing.T) {
	t.Parallel()
	gone := false
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{
		"device_del": func(string, qmptest.Args) (any, error) {
			if gone {
				return nil, qmptest.Refuse(qmp.DeviceNotFound, "no such device")
			}
			gone = true // without an event
			return nil, nil
		},
		"qom-list": func(string, qmptest.Args) (any, error) { return []any{}, nil },
		"blockdev-del": func(string, qmptest.Args) (any, error) {
			return nil, qmptest.Refuse(qmp.GenericError, "Node data-data is in use")
		},
		"query-named-block-nodes": func(string, qmptest.Args) (any, error) {
			return []map[string]string{{"node-name": "data-data"}}, nil
		},
	}))
	f.awaitStatus("web", vm.StatusRunning)
	for range 2 { // the first attempt and a repetition
		begun := time.Now()
		err := f.DetachDisk(t.Context(), vm.Disk{ID: "data", VMID: "web"})
		took := time.Since(begun)
		held := codeOf(err) == vm.CodeQEMUUnresponsive && strings.Contains(err.Error(), "does not close its file")
		if !held || took > deviceTimeout/2 {
			t.Errorf("after %s: %v", took, err)
		}
	}
}

func TestDetachEndsOnlyWithTheEventOfItsDevice(t *testing.T) {
	deleted := make(chan struct{})
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{"device_del": func(string, qmptest.Args) (any, error) {
		close(deleted)
		return nil, nil
	}}))
	f.awaitStatus("web", vm.StatusRunning)
	done := make(chan error, 1)
	go func() { done <- f.DetachDisk(t.Context(), vm.Disk{ID: "data", VMID: "web"}) }()
	<-deleted
	f.server.Event("DEVICE_DELETED", map[string]string{"path": "/machine/peripheral/disk-data/virtio-backend"})
	f.server.Event("DEVICE_DELETED", map[string]string{"device": "disk-other"})
	if f.Observe(t.Context(), "web").Status != vm.StatusRunning { // both events have been read by now
		t.Error("QEMU does not answer")
	}
	select {
	case err := <-done:
		t.Fatalf("another event ended the detach: %v", err)
	default:
	}
	f.server.Event("DEVICE_DELETED", map[string]string{"device": "disk-data"})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDetachingAnUnpluggedDiskSucceeds(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{
		"device_del": func(string, qmptest.Args) (any, error) {
			return nil, qmptest.Refuse(qmp.DeviceNotFound, "no such device")
		},
		"blockdev-del": func(string, qmptest.Args) (any, error) {
			return nil, qmptest.Refuse(qmp.GenericError, "Failed to find node with node-name='data-data'")
		},
		"query-named-block-nodes": func(string, qmptest.Args) (any, error) { return []any{}, nil },
	}))
	if err := f.DetachDisk(t.Context(), vm.Disk{ID: "data", VMID: "web"}); err != nil {
		t.Error(err)
	}
}

func TestUnansweredDetachKeepsTheNode(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{"device_add": silent}))
	f.awaitStatus("web", vm.StatusRunning)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := f.AttachDisk(ctx, vm.Disk{ID: "data", VMID: "web", MountPoint: "/dev/sdb"}); codeOf(err) != vm.CodeQEMUUnresponsive {
		t.Errorf("got %v", err)
	}
	if all := f.server.Commands(); all[len(all)-1] != "device_add" {
		t.Errorf("device_add was followed by %s", all[len(all)-1])
	}
}

func TestUnansweredQuitIsFollowedBySignals(t *testing.T) {
	t.Parallel()
	f := newFakeHost(t, fakeQEMU(map[string]qmptest.Handler{"quit": func(string, qmptest.Args) (any, error) { return nil, qmptest.ErrSilent }}))
	f.awaitStatus("web", vm.StatusRunning)
	var told steps
	if err := f.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, told.report); err != nil {
		t.Fatal(err)
	}
	if !told.is("quit", "term") {
		t.Errorf("steps:\n%s", told.text)
	}
}

func TestAdoptedVMIsControlled(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestObeys)
	s.Disks = []vm.Disk{h.disk("data", "web", "/dev/sdb")}
	h.startSpec(s)
	before := h.Observe(t.Context(), "web")
	h.reopen()
	seen, err := h.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o := seen.VMs["web"]; o.PID != before.PID || o.Status != vm.StatusRunning || len(o.Plugged) != 1 {
		t.Errorf("before: %+v; adopted as %+v", before, o)
	}
	if err := h.DetachDisk(t.Context(), s.Disks[0]); err != nil {
		t.Error(err)
	}
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Timeout: time.Minute}, nil); err != nil {
		t.Fatal(err)
	}
	h.mustBeGone("web")
}

func TestTheEndOfAnAdoptedProcessIsSeen(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	h.reopen()
	o := h.Observe(t.Context(), "web")
	if err := unix.Kill(o.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the process is gone", func() bool { return !h.Observe(t.Context(), "web").Alive() })
	await(t, "the driver nudges", func() bool { return h.newsOf("web") > 0 })
}

func TestALostUUIDIsRestoredFromTheCommandLine(t *testing.T) {
	h := newHost(t)
	s := h.start("web", guestDeaf)
	note := h.layout.inRun("web", uuidSuffix)
	must(t, os.Remove(note))
	h.reopen()
	h.awaitStatus("web", vm.StatusRunning)
	if b, err := os.ReadFile(note); err != nil || strings.TrimSpace(string(b)) != s.UUID {
		t.Errorf("the UUID file holds %q, %v; want %s", b, err, s.UUID)
	}
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
	h.mustBeGone("web")
}

func TestAHungAdoptedQEMUIsKilled(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	h.suspend("web")
	h.reopen()
	if o := h.Observe(t.Context(), "web"); !o.Alive() || o.Status != vm.StatusMute {
		t.Errorf("Observe returns %+v", o)
	}
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	h.mustBeGone("web")
}

func TestAnInterruptedStartIsSeen(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	h.launch(s, "")
	h.awaitStatus("web", vm.StatusPrelaunch)
	h.reopen()
	h.awaitStatus("web", vm.StatusPrelaunch)
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	h.mustBeGone("web")
}

func TestPidfileWithoutQEMUNamesNoProcess(t *testing.T) {
	h := newHost(t)
	// The file names this process, which holds no lock on it.
	if err := os.WriteFile(h.layout.pidfile("web"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := h.Observe(t.Context(), "web"); o.Alive() {
		t.Errorf("Observe returns %+v", o)
	}
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil); err != nil {
		t.Error(err)
	}
}
