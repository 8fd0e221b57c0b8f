package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

func TestWhyShowsARecordAndItsObservation(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	disk := into[openapi.Disk](t, a.want(t, 201, "POST", "/disks", `{"size":1}`)).ID
	a.want(t, 200, "POST", "/disks/"+disk+"/attach", `{"vm_id":"web-1"}`)
	w := into[openapi.Why](t, a.want(t, 200, "GET", "/vms/web-1/why", ""))
	if w.Process.Alive || w.Process.Pid != nil || w.WhyQMP.Status != nil || w.WhyQMP.Plugged != nil ||
		!w.Verdict.Agrees || w.Busy != nil {
		t.Errorf("stopped: %+v", w)
	}
	a.want(t, 200, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=30")
	w = into[openapi.Why](t, a.want(t, 200, "GET", "/vms/web-1/why", ""))
	if w.Recorded.State != "running" || *w.Recorded.Reason != "requested" || w.Recorded.DesiredState != "running" ||
		!w.Process.Alive || *w.Process.Pid == 0 ||
		*w.WhyQMP.Status != "running" || len(*w.WhyQMP.Plugged) != 1 || (*w.WhyQMP.Plugged)[0] != disk ||
		len(w.Disks) != 1 || w.Disks[0].ID != disk {
		t.Errorf("running: %+v", w)
	}
	if n := len(w.Operations); n != 2 || w.Operations[1].Kind != "vm.start" || len(w.Events) != 3 ||
		w.Events[2].Type != "vm.state" || len(w.Words) < 3 {
		t.Errorf("running: %+v", w)
	}
	a.driver.Set("web-1", "gone")
	w = into[openapi.Why](t, a.want(t, 200, "GET", "/vms/web-1/why", ""))
	if w.Recorded.State != "running" || w.Verdict.State != "error" || *w.Verdict.Reason != "crashed" ||
		w.Verdict.Agrees ||
		!strings.Contains(strings.Join(w.Words, " "), "does not agree") {
		t.Errorf("gone: %+v", w)
	}
	a.want(t, 404, "GET", "/vms/web-2/why", "")
}

func TestWhyNamesTheRunningOperation(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	began, release := make(chan struct{}), make(chan struct{})
	a.driver.Hook = hook("Start", func(context.Context) error { close(began); <-release; return nil })
	location := a.want(t, 202, "POST", "/vms/web-1/actions/start", "").Header.Get("Location")
	<-began
	w := into[openapi.Why](t, a.want(t, 200, "GET", "/vms/web-1/why", ""))
	close(release)
	if w.Busy == nil || !strings.Contains(*w.Busy, strings.TrimPrefix(location, "/operations/")) || !w.Verdict.Agrees {
		t.Errorf("%+v", w)
	}
}

// recorder is a manager with recordings of a crash.
type recorder struct {
	Manager
	flight vm.Flight
}

func (r recorder) Why(context.Context, string) (vm.Why, error) {
	return vm.Why{
		Recorded: vm.VM{State: vm.Stopped, Desired: vm.DesiredStopped},
		Verdict:  vm.Verdict{State: vm.Stopped},
		Flight:   r.flight,
	}, nil
}

func TestWhyShowsTheRecordings(t *testing.T) {
	t.Parallel()
	at := time.Now()
	crash := vm.Recording{At: at, PID: 42, Exit: "signal: killed", Serial: "login: \x00\xff", Stderr: "bye"}
	for i := range 250 {
		crash.Messages = append(crash.Messages, vm.Message{
			At:   at,
			Dir:  "event",
			Text: fmt.Sprintf("%03d", i) + strings.Repeat("ü", 2000),
		})
	}
	r := recorder{flight: vm.Flight{
		Now: vm.Recording{
			At:       at,
			PID:      43,
			Messages: []vm.Message{{At: at, Dir: "command", Text: `{"execute":"quit"}`}},
		},
		Crashes: []vm.Recording{crash},
	}}
	a := newAPI(t, func(f *fixture) { f.d.Manager = r })
	w := into[openapi.Why](t, a.want(t, 200, "GET", "/vms/web-1/why", ""))
	if now := w.Recorder.Now; *now.Pid != 43 || now.Exit != nil || now.At == nil ||
		now.Messages[0].Text != `{"execute":"quit"}` || now.Messages[0].Dir != "command" {
		t.Errorf("now: %+v", now)
	}
	c := w.Recorder.Crashes[0]
	if *c.Exit != "signal: killed" || c.Stderr != "bye" || len(c.Messages) != 200 ||
		!strings.HasPrefix(c.Messages[0].Text, "050") {
		t.Errorf("crash: %d messages, %+v", len(c.Messages), c.Exit)
	}
	if n := len(c.Messages[0].Text); n > 2048 || n < 2046 || !strings.HasSuffix(c.Messages[0].Text, "ü") {
		t.Errorf("a message has %d bytes", n)
	}
}
