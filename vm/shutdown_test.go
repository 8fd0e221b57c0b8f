package vm

import (
	"errors"
	"testing"
	"time"
)

func TestResolveStopOptions(t *testing.T) {
	kill := VM{Shutdown: Shutdown{Timeout: 5 * time.Second, Action: ShutdownKill}}
	for name, tt := range map[string]struct {
		v         VM
		in        StopOptions
		timeout   time.Duration
		wantForce bool
	}{
		"the default":           {VM{}, StopOptions{OwnTimeout: true}, time.Minute, false},
		"its own timeout":       {kill, StopOptions{OwnTimeout: true}, 5 * time.Second, false},
		"a requested timeout":   {kill, StopOptions{Timeout: time.Hour}, time.Hour, false},
		"a host shutdown":       {VM{}, StopOptions{Timeout: time.Second, HostShutdown: true}, time.Second, false},
		"a kill at shutdown":    {kill, StopOptions{OwnTimeout: true, HostShutdown: true}, 5 * time.Second, true},
		"a stop that is forced": {VM{}, StopOptions{Force: true}, 0, true},
	} {
		if got := tt.v.Resolve(tt.in); got.Timeout != tt.timeout || got.Force != tt.wantForce {
			t.Errorf("%s: %+v, want %s, force %t", name, got, tt.timeout, tt.wantForce)
		}
	}
}

func TestShutdownEdits(t *testing.T) {
	for _, d := range []time.Duration{0, -time.Second, time.Hour + time.Second, 1500 * time.Millisecond} {
		var f *Fault
		if err := (VMEdits{ShutdownTimeout: &d}).Apply(&VM{}); !errors.As(err, &f) || f.Code != CodeInvalid {
			t.Errorf("a timeout of %s: %v", d, err)
		}
	}
	if err := (VMEdits{ShutdownAction: new(ShutdownAction("sleep"))}).Apply(&VM{}); err == nil {
		t.Error("an unknown action is accepted")
	}
	var v VM
	if err := (VMEdits{ShutdownTimeout: new(MinStopTimeout)}).Apply(&v); err != nil {
		t.Error(err)
	}
	if got := v.Shutdown.OrDefault(); got != (Shutdown{time.Second, ShutdownStop}) {
		t.Errorf("%+v", got)
	}
}
