package qemu

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

func (h *testHost) flight(id string) vm.Flight {
	h.t.Helper()
	f, err := h.Flight(h.t.Context(), id)
	must(h.t, err)
	return f
}

// said reports whether a recording has a message with these parts.
func said(r vm.Recording, dir, words string) bool {
	return slices.ContainsFunc(r.Messages, func(m vm.Message) bool { return m.Dir == dir && strings.Contains(m.Text, words) })
}

func TestACrashIsRecorded(t *testing.T) {
	h := newHost(t)
	h.start("web", guestSaysHi)
	h.awaitSerial("web", "hi\n")
	must(t, h.Pause(t.Context(), "web"))
	for range 3 {
		h.Observe(t.Context(), "web")
	}
	now := h.flight("web").Now
	if now.PID != h.Observe(t.Context(), "web").PID || now.Serial != "hi" || now.Exit != "" || time.Since(now.At) > time.Minute {
		t.Errorf("while the VM runs: %+v", now)
	}
	before := time.Now().Truncate(time.Millisecond)
	must(t, h.kill("web"))
	for _, restart := range []func(){func() {}, h.reopen} {
		restart()
		f := h.flight("web")
		if len(f.Crashes) != 1 || f.Now.PID != 0 || len(f.Now.Messages) != 0 {
			t.Fatalf("the flight is %+v", f)
		}
		c := f.Crashes[0]
		if c.PID != now.PID || c.Exit != "signal: killed" || c.Serial != "hi" || c.At.Before(before) || time.Since(c.At) > time.Minute {
			t.Errorf("recorded: %+v", c)
		}
		if !said(c, "command", `"cont"`) || !said(c, "event", `"RESUME"`) || !said(c, "event", `"STOP"`) || !said(c, "reply", "paused") {
			t.Errorf("the messages are %+v", c.Messages)
		}
		if !slices.IsSortedFunc(c.Messages, func(a, b vm.Message) int { return a.At.Compare(b.At) }) {
			t.Errorf("the messages are out of order: %+v", c.Messages)
		}
		looks := 0
		for _, m := range c.Messages {
			if strings.Contains(m.Text, "query-status") {
				looks++
			}
		}
		if looks != 1 {
			t.Errorf("the recording has %d queries with the same answer", looks)
		}
	}
	files, err := filepath.Glob(h.layout.inState(vmDir("web") + "/*crash*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the crash files are %q, %v", files, err)
	}
	if st, err := os.Stat(files[0]); err != nil || st.Mode() != 0o600 {
		t.Errorf("the file has mode %v, %v", st.Mode(), err)
	}
}

func TestTheLastFiveCrashesAreKept(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	var pids []int
	for range maxCrashes + 2 {
		h.startSpec(s)
		pids = append(pids, h.Observe(t.Context(), "web").PID)
		must(t, h.kill("web"))
	}
	slices.Reverse(pids)
	var got []int
	for _, c := range h.flight("web").Crashes {
		got = append(got, c.PID)
	}
	if !slices.Equal(got, pids[:maxCrashes]) {
		t.Errorf("the crashes are those of the processes %v; want %v", got, pids[:maxCrashes])
	}
	must(t, h.DeleteVM(t.Context(), "web"))
	if f := h.flight("web"); len(f.Crashes) != 0 {
		t.Errorf("after the deletion of the VM: %+v", f)
	}
}

func TestARequestedEndIsNoCrash(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestObeys)
	for _, stop := range []vm.StopOptions{{Timeout: time.Minute}, {Force: true}} {
		h.startSpec(s)
		must(t, h.Shutdown(t.Context(), "web", stop, nil))
	}
	h.startSpec(s)
	h.suspend("web") // so that only SIGKILL ends it
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
	if f := h.flight("web"); len(f.Crashes) != 0 {
		t.Errorf("the crashes are %+v", f.Crashes)
	}
}

func TestEndRequestedByAnEarlierVmandIsNoCrash(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	h.suspend("web") // so that it does not end while this vmand runs
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := h.Shutdown(ctx, "web", vm.StopOptions{Force: true}, nil); err == nil {
		t.Fatal("a suspended process has ended")
	}
	h.reopen()
	must(t, h.kill("web"))
	if f := h.flight("web"); len(f.Crashes) != 0 {
		t.Errorf("the crashes are %+v", f.Crashes)
	}
}

func TestCrashAfterAnIgnoredRequestIsRecorded(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	must(t, os.WriteFile(h.layout.inRun("web", quitSuffix), nil, 0o600)) // after that, vmand was killed
	h.reopen()
	h.awaitStatus("web", vm.StatusRunning)
	must(t, h.kill("web"))
	if f := h.flight("web"); len(f.Crashes) != 1 {
		t.Errorf("the crashes are %+v", f.Crashes)
	}
}

func TestTheCrashOfAnAdoptedProcessIsRecorded(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	h.reopen()
	h.awaitStatus("web", vm.StatusRunning)
	must(t, h.kill("web"))
	if f := h.flight("web"); len(f.Crashes) != 1 || f.Crashes[0].Exit != "" || !said(f.Crashes[0], "reply", `"running"`) {
		t.Errorf("the crashes are %+v", f.Crashes)
	}
}

func TestCrashAtStartIsRecorded(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	s.Machine = "pc-q35-99.9"
	mustFail(t, errOf(h.Start(t.Context(), s, nil)), vm.CodeOperationFailed)
	await(t, "it is recorded", func() bool { return len(h.flight("web").Crashes) == 1 })
	if c := h.flight("web").Crashes[0]; c.Exit != "exit status 1" || !strings.Contains(c.Stderr, "unsupported machine type") {
		t.Errorf("recorded: %+v", c)
	}
}

func TestDamagedRecordingDoesNotHideOthers(t *testing.T) {
	d := newDriver(t, Options{})
	must(t, d.state.Mkdir(vmDir("web"), 0o700))
	at := time.UnixMilli(1700000000000).UTC()
	must(t, d.writeCrash("web", vm.Recording{At: at, PID: 42}))
	for name, content := range map[string]string{
		vmCrash("web", at.Add(time.Second)): "{", vmCrashTemp("web"): "{", vmDir("web") + "/crash-today.json": "{}",
	} {
		must(t, d.state.WriteFile(name, []byte(content), 0o600))
	}
	f, err := d.Flight(t.Context(), "web")
	if err != nil || len(f.Crashes) != 1 || f.Crashes[0].PID != 42 || !f.Crashes[0].At.Equal(at) {
		t.Errorf("Flight returns %+v, %v", f, err)
	}
	must(t, d.removeVMTemps(t.Context(), time.Now().Add(time.Second)))
	if _, err := d.state.Stat(vmCrashTemp("web")); !os.IsNotExist(err) {
		t.Errorf("the unfinished file still exists: %v", err)
	}
	if f, err := d.Flight(t.Context(), "../.."); err != nil || len(f.Crashes) != 0 || f.Now.Serial != "" {
		t.Errorf("of an invalid id: %+v, %v", f, err)
	}
}

func TestARecordingOfAMessageIsReadableJSON(t *testing.T) {
	d := newDriver(t, Options{})
	must(t, d.state.Mkdir(vmDir("web"), 0o700))
	want := vm.Recording{At: time.UnixMilli(1).UTC(), Exit: "signal: killed", Serial: "\x1b[0m\x00", Stderr: "?",
		Messages: []vm.Message{{At: time.UnixMilli(2).UTC(), Dir: "event", Text: `{"event": "STOP"}`}}}
	must(t, d.writeCrash("web", want))
	b, err := d.state.ReadFile(vmCrash("web", want.At))
	must(t, err)
	var got map[string]any
	must(t, json.Unmarshal(b, &got))
	if got["exit"] != want.Exit || got["serial"] != want.Serial || len(got["messages"].([]any)) != 1 {
		t.Errorf("the file holds %s", b)
	}
}
