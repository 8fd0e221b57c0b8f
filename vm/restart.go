package vm

import "time"

// RestartPolicy determines when a VM that ended without a request is restarted. A VM with the
// desired state stopped is never restarted.
type RestartPolicy string

// The restart policies. A failure is a QEMU process that is gone or failed to start, a kernel
// panic of the guest, an expired watchdog, or an internal error of QEMU. RestartAlways also
// restarts a guest that powered itself off.
const (
	RestartNever     RestartPolicy = "never"
	RestartOnFailure RestartPolicy = "on-failure"
	RestartAlways    RestartPolicy = "always"
)

// The pause before an automatic restart doubles from firstBackoff to lastBackoff. It starts over
// after a run of at least backoffReset.
const (
	firstBackoff = time.Second
	lastBackoff  = 5 * time.Minute
	backoffReset = 10 * time.Minute
)

// PlanRestart sets v.RestartAt to the time of the next automatic restart if the policy of v
// requires one, and to zero otherwise. at is the time at which v entered its state. The count of
// consecutive restarts starts over after a run of at least 10 minutes.
func (v *VM) PlanRestart(at time.Time) {
	if !v.WantsRestart() {
		v.RestartAt = time.Time{}
		return
	}
	if !v.StartedAt.IsZero() && at.Sub(v.StartedAt) >= backoffReset {
		v.Restarts = 0
	}
	v.RestartAt = at.Add(backoff(v.Restarts))
}

// WantsRestart reports whether the restart policy of v requires a restart in its state.
func (v VM) WantsRestart() bool {
	if v.Desired != DesiredRunning {
		return false
	}
	failed := false
	switch v.State {
	case Errored:
		failed = v.Reason == ReasonCrashed
	case Paused:
		failed = v.Reason == ReasonPanicked || v.Reason == ReasonInternalError || v.Reason == ReasonWatchdog
	case Stopped:
		failed = v.Reason == ReasonStartFailed
	}
	switch v.Restart {
	case RestartOnFailure:
		return failed
	case RestartAlways:
		return failed || v.State == Stopped && v.Reason == ReasonGuestShutdown
	}
	return false
}

// backoff returns the pause before restart n, counted from 0.
func backoff(n int) time.Duration {
	d := firstBackoff
	for ; n > 0 && d < lastBackoff; n-- {
		d *= 2
	}
	return min(d, lastBackoff)
}
