package vm

import (
	"testing"
	"time"
)

func TestRestartBackoff(t *testing.T) {
	want := []time.Duration{
		1 * time.Second,
		2 * time.Second,
		4 * time.Second,
		8 * time.Second,
		16 * time.Second,
		32 * time.Second,
		64 * time.Second,
		128 * time.Second,
		256 * time.Second,
		5 * time.Minute,
		5 * time.Minute,
	}
	for n, d := range want {
		if got := backoff(n); got != d {
			t.Errorf("backoff(%d) = %s; want %s", n, got, d)
		}
	}
	if got := backoff(1 << 40); got != lastBackoff {
		t.Errorf("backoff(1<<40) = %s; want %s", got, lastBackoff)
	}
}

func TestWantsRestart(t *testing.T) {
	type end struct {
		state  State
		reason Reason
	}
	failures := []end{
		{Errored, ReasonCrashed},
		{Paused, ReasonPanicked},
		{Paused, ReasonInternalError},
		{Paused, ReasonWatchdog},
		{Stopped, ReasonStartFailed},
	}
	poweredOff := end{Stopped, ReasonGuestShutdown}
	others := []end{
		{Running, ReasonRequested},
		{Paused, ReasonRequested},
		{Paused, ReasonDiskFull},
		{Stopped, ReasonRequested},
		{Stopped, ReasonHostShutdown},
		{Errored, ReasonUnreachable},
	}
	check := func(e end, policy RestartPolicy, want bool) {
		t.Helper()
		v := VM{State: e.state, Reason: e.reason, Restart: policy, Desired: DesiredRunning}
		if v.WantsRestart() != want {
			t.Errorf("%s/%s with policy %s: WantsRestart = %t; want %t", e.state, e.reason, policy, !want, want)
		}
		if v.Desired = DesiredStopped; v.WantsRestart() {
			t.Errorf("%s/%s with policy %s restarts although stopped is desired", e.state, e.reason, policy)
		}
	}
	for _, e := range failures {
		check(e, RestartNever, false)
		check(e, RestartOnFailure, true)
		check(e, RestartAlways, true)
	}
	check(poweredOff, RestartNever, false)
	check(poweredOff, RestartOnFailure, false)
	check(poweredOff, RestartAlways, true)
	for _, e := range others {
		check(e, RestartAlways, false)
	}
}

func TestPlanRestart(t *testing.T) {
	now := time.Unix(1700000000, 0)
	crashed := func(restarts int, ran time.Duration) VM {
		return VM{
			State:     Errored,
			Reason:    ReasonCrashed,
			Desired:   DesiredRunning,
			Restart:   RestartOnFailure,
			Restarts:  restarts,
			StartedAt: now.Add(-ran),
			RestartAt: now.Add(time.Hour), // of an earlier plan
		}
	}
	never := crashed(3, time.Minute)
	never.Restart = RestartNever
	neverStarted := crashed(2, 0)
	neverStarted.StartedAt = time.Time{}
	for _, c := range []struct {
		name     string
		v        VM
		at       time.Time
		restarts int
	}{
		{"the first restart", crashed(0, time.Minute), now.Add(time.Second), 0},
		{"the fourth restart", crashed(3, time.Minute), now.Add(8 * time.Second), 3},
		{"after a run just below 10 minutes", crashed(3, backoffReset-1), now.Add(8 * time.Second), 3},
		{"after a run of 10 minutes", crashed(3, backoffReset), now.Add(time.Second), 0},
		{"after a start that never succeeded", neverStarted, now.Add(4 * time.Second), 2},
		{"no restart", never, time.Time{}, 3},
	} {
		c.v.PlanRestart(now)
		if !c.v.RestartAt.Equal(c.at) || c.v.Restarts != c.restarts {
			t.Errorf("%s: RestartAt is %s after %d restarts; want %s after %d",
				c.name, c.v.RestartAt, c.v.Restarts, c.at, c.restarts)
		}
	}
}
