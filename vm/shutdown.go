package vm

import "time"

// A Shutdown holds how a VM is stopped.
type Shutdown struct {
	// Timeout is the time of the guest to power off. It is [DefaultStopTimeout] if zero.
	Timeout time.Duration
	// Action is for a shutdown of the host. It is [ShutdownStop] if empty.
	Action ShutdownAction
}

// A ShutdownAction is what a shutdown of the host does to a VM.
type ShutdownAction string

// The actions.
const (
	ShutdownStop ShutdownAction = "stop" // ask the guest, and end the process after the timeout
	ShutdownKill ShutdownAction = "kill" // end the process at once
)

// Limits of [Shutdown].Timeout, and its default.
const (
	MinStopTimeout     = time.Second
	MaxStopTimeout     = time.Hour
	DefaultStopTimeout = 60 * time.Second
)

// OrDefault returns s with the defaults filled in.
func (s Shutdown) OrDefault() Shutdown {
	if s.Timeout == 0 {
		s.Timeout = DefaultStopTimeout
	}
	if s.Action == "" {
		s.Action = ShutdownStop
	}
	return s
}

// Resolve returns the options of a stop of v with what depends on v filled in.
func (v VM) Resolve(o StopOptions) StopOptions {
	own := v.Shutdown.OrDefault()
	if o.OwnTimeout {
		o.Timeout = own.Timeout
	}
	if o.HostShutdown && own.Action == ShutdownKill {
		o.Force = true
	}
	return o
}

// applyShutdown copies the fields of e about the shutdown to v.
func (e VMEdits) applyShutdown(v *VM) error {
	if e.ShutdownTimeout != nil {
		d := *e.ShutdownTimeout
		if d < MinStopTimeout || d > MaxStopTimeout || d%time.Second != 0 {
			return InvalidField("/shutdown_timeout", "must be 1 to %d seconds", int(MaxStopTimeout/time.Second))
		}
		v.Shutdown.Timeout = d
	}
	if e.ShutdownAction != nil {
		switch *e.ShutdownAction {
		case ShutdownStop, ShutdownKill:
		default:
			return InvalidField("/shutdown_action", "must be stop or kill")
		}
		v.Shutdown.Action = *e.ShutdownAction
	}
	return nil
}
