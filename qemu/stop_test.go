package qemu

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// steps collects the steps that an operation reports.
type steps struct {
	mu    sync.Mutex
	names []string
	text  string
}

func (s *steps) report(step, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) == 0 || s.names[len(s.names)-1] != step {
		s.names = append(s.names, step)
	}
	s.text += step + ": " + message + "\n"
}

func (s *steps) is(want ...string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Equal(s.names, want)
}

func (h *testHost) mustBeGone(id string) {
	h.t.Helper()
	if o := h.Observe(h.t.Context(), id); o.Alive() {
		h.t.Errorf("VM %s still has a process: %+v", id, o)
	}
}

func TestGuestPowerOffIsDetected(t *testing.T) {
	h := newHost(t)
	h.start("web", guestPowersOff)
	h.awaitStatus("web", vm.StatusShutdown)
	if h.newsOf("web") == 0 {
		t.Error("there was no nudge")
	}
	var told steps
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Timeout: time.Minute}, told.report); err != nil {
		t.Fatal(err)
	}
	if !told.is("acpi", "quit") {
		t.Errorf("steps %v", told.names)
	}
	h.mustBeGone("web")
}

func TestCooperativeGuestIsShutDown(t *testing.T) {
	h := newHost(t)
	h.start("web", guestObeys)
	var told steps
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Timeout: time.Minute}, told.report); err != nil {
		t.Fatal(err)
	}
	if !told.is("acpi", "quit") || strings.Contains(told.text, "within") {
		t.Errorf("steps:\n%s", told.text)
	}
	h.mustBeGone("web")
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{}, nil); err != nil {
		t.Errorf("once more: %v", err)
	}
}

func TestUncooperativeGuestIsForcedAfterTheTimeout(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	var told steps
	begin := time.Now()
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Timeout: 500 * time.Millisecond}, told.report); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 500*time.Millisecond || !told.is("acpi", "quit") {
		t.Errorf("after %v:\n%s", took, told.text)
	}
	h.mustBeGone("web")
}

func TestShutdownWithoutATimeoutIsForced(t *testing.T) {
	h := newHost(t)
	h.start("web", guestObeys)
	var told steps
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{}, told.report); err != nil {
		t.Fatal(err)
	}
	if !told.is("quit") {
		t.Errorf("steps %v", told.names)
	}
	h.mustBeGone("web")
}

func TestShutdownDoesNotWaitForAPausedGuest(t *testing.T) {
	h := newHost(t)
	h.start("web", guestObeys)
	if err := h.Pause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	var told steps
	begin := time.Now()
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Timeout: time.Minute}, told.report); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 20*time.Second || !strings.Contains(told.text, "paused") {
		t.Errorf("after %v:\n%s", took, told.text)
	}
	h.mustBeGone("web")
}

func TestForcedStopDoesNotAskTheGuest(t *testing.T) {
	h := newHost(t)
	h.start("web", guestObeys)
	var told steps
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, told.report); err != nil {
		t.Fatal(err)
	}
	if !told.is("quit") {
		t.Errorf("steps:\n%s", told.text)
	}
	h.mustBeGone("web")
}

func TestAHungQEMUIsKilledWithinSeconds(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	h.suspend("web")
	var told steps
	begin := time.Now()
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, told.report); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > quitTimeout+termTimeout+5*time.Second || !told.is("quit", "term", "kill") {
		t.Errorf("after %v:\n%s", took, told.text)
	}
	h.mustBeGone("web")
}

// suspend stops the QEMU process of a VM with SIGSTOP, as if it hung.
func (h *testHost) suspend(id string) {
	h.t.Helper()
	if err := unix.Kill(h.Observe(h.t.Context(), id).PID, unix.SIGSTOP); err != nil {
		h.t.Fatal(err)
	}
}

func TestACancelledShutdownLeavesTheGuestRunning(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		var once sync.Once
		done <- h.Shutdown(ctx, "web", vm.StopOptions{Timeout: time.Minute}, func(string, string) { once.Do(func() { close(asked) }) })
	}()
	<-asked
	cancel()
	begin := time.Now()
	if err := <-done; codeOf(err) != vm.CodeCancelled {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the shutdown took %v", took)
	}
	h.awaitStatus("web", vm.StatusRunning)
}

func TestAGuestIsPausedResumedAndReset(t *testing.T) {
	h := newHost(t)
	h.start("web", guestSaysHi)
	h.awaitSerial("web", "hi\n")
	for _, step := range []struct {
		do   func(context.Context, string) error
		want vm.RunStatus
	}{
		{h.Pause, vm.StatusPaused}, {h.Pause, vm.StatusPaused}, {h.Resume, vm.StatusRunning}, {h.Resume, vm.StatusRunning},
		{h.Reset, vm.StatusRunning}, {h.Pause, vm.StatusPaused}, {h.Reset, vm.StatusRunning},
	} {
		if err := step.do(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		if got := h.Observe(t.Context(), "web").Status; got != step.want {
			t.Errorf("the guest is %s; want %s", got, step.want)
		}
	}
	h.awaitSerial("web", "hi\nhi\n") // the guest booted again
}

func TestAVMThatDoesNotRunCannotBePaused(t *testing.T) {
	h := newHost(t)
	for _, do := range []func(context.Context, string) error{h.Pause, h.Resume, h.Reset} {
		if err := do(t.Context(), "web"); codeOf(err) != vm.CodeState {
			t.Errorf("got %v", err)
		}
	}
}

func TestGuestResetKeepsTheProcess(t *testing.T) {
	h := newHost(t)
	h.start("web", guestResetsOnce)
	before := h.Observe(t.Context(), "web").PID
	h.awaitSerial("web", "r\n")
	if o := h.Observe(t.Context(), "web"); o.PID != before || o.Status != vm.StatusRunning {
		t.Errorf("process %d became %+v", before, o)
	}
}

func TestPanickedGuestIsPausedAndReset(t *testing.T) {
	h := newHost(t)
	h.start("web", guestPanics)
	h.awaitStatus("web", "guest-panicked")
	if err := h.Reset(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	h.awaitStatus("web", "guest-panicked") // it panics at every boot
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	h.mustBeGone("web")
}

func TestKilledQEMUIsDetectedAtOnce(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	o := h.Observe(t.Context(), "web")
	news := h.newsOf("web")
	if err := unix.Kill(o.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the driver nudges", func() bool { return h.newsOf("web") > news })
	await(t, "the process is gone", func() bool { return !h.Observe(t.Context(), "web").Alive() })
	if err := h.Pause(t.Context(), "web"); codeOf(err) != vm.CodeState {
		t.Errorf("Pause returns %v", err)
	}
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{}, nil); err != nil {
		t.Error(err)
	}
}
