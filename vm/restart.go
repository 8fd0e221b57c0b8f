package vm

import (
	"time"
)

// RestartPolicy says when a VM that ended without being asked to is started
// again. An explicit stop always wins: only what was last asked to run is ever
// restarted.
type RestartPolicy string

// The policies. A failure is a QEMU that vanished, a guest that panicked, or an
// internal error of QEMU; RestartAlways also restarts a guest that powered
// itself off.
const (
	RestartNever     RestartPolicy = "never"
	RestartOnFailure RestartPolicy = "on-failure"
	RestartAlways    RestartPolicy = "always"
)

// Automatic restarts wait longer each time, and begin anew with a VM that has
// been up for a while.
const (
	firstBackoff = time.Second
	lastBackoff  = 5 * time.Minute
	backoffReset = 10 * time.Minute
)

// PlanRestart sets when v, which has just been found in its present state, is
// to be restarted, if its policy wants that, and clears what was set otherwise.
func PlanRestart(v *VM, at time.Time) {
	if !WantsRestart(*v) {
		v.RestartAt = time.Time{}
		return
	}
	if !v.StartedAt.IsZero() && at.Sub(v.StartedAt) >= backoffReset {
		v.Restarts = 0
	}
	v.RestartAt = at.Add(backoff(v.Restarts))
}

// WantsRestart reports whether v's policy asks for a restart from its state.
func WantsRestart(v VM) bool {
	if v.Desired != DesiredRunning {
		return false
	}
	failed := v.State == Errored && v.Reason == ReasonCrashed ||
		v.State == Paused && (v.Reason == ReasonPanicked || v.Reason == ReasonInternalError || v.Reason == ReasonWatchdog) ||
		v.State == Stopped && v.Reason == ReasonStartFailed
	switch v.Restart {
	case RestartOnFailure:
		return failed
	case RestartAlways:
		return failed || v.State == Stopped && v.Reason == ReasonGuestShutdown
	}
	return false
}

// backoff returns how long to wait before restart number n, counted from 0.
func backoff(n int) time.Duration {
	d := firstBackoff
	for ; n > 0 && d < lastBackoff; n-- {
		d *= 2
	}
	return min(d, lastBackoff)
}
