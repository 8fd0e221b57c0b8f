package vm

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWhyHasARemedyForEveryPauseAndFailure(t *testing.T) {
	explain := func(s State, r Reason, status RunStatus) string {
		seen := Observation{PID: 7, Status: status}
		v := VM{ID: "web-1", State: s, Reason: r, Desired: DesiredRunning}
		words := Why{Recorded: v, Seen: seen, Verdict: Settle(s, r, seen), Agrees: true}.Explain()
		return strings.Join(words, " ")
	}
	for status, reason := range pausedReasons {
		if got := explain(Paused, reason, status); remedies[reason] == "" || !strings.Contains(got, remedies[reason]) {
			t.Errorf("%s: %s", status, got)
		}
	}
	for _, reason := range []Reason{ReasonMonitor, ReasonInterrupted, ReasonDiskFull, ReasonPanicked} {
		if got := explain(Paused, reason, StatusPaused); !strings.Contains(got, remedies[reason]) {
			t.Errorf("%s: %s", reason, got)
		}
	}
	if got := explain(Running, ReasonRequested, StatusMute); !strings.Contains(got, `"force": true`) {
		t.Errorf("a mute monitor: %s", got)
	}
	if got := explain(Running, ReasonRequested, StatusRunning); strings.Contains(got, "start") && strings.Contains(got, "Reset") {
		t.Errorf("a running VM: %s", got)
	}
}

func TestExplain(t *testing.T) {
	running := VM{ID: "web-1", State: Running, Reason: ReasonRequested, Desired: DesiredRunning, Restart: RestartNever}
	paused := running
	paused.State, paused.Reason, paused.ReasonDetail = Paused, ReasonDiskFull, "/disks/root is full"
	paused.NICs = []NIC{
		{Slot: 0, State: NICDetaching},
		{Slot: 1, State: NICAttached},
		{Slot: 2, State: NICAttached, LinkDown: true},
	}
	paused.Restart, paused.Restarts, paused.RestartAt = RestartAlways, 2, time.Unix(1700000000, 0)
	const ending = "Its desired state is running, its restart policy is never, and it has had 0 consecutive automatic restarts."
	for _, c := range []struct {
		name string
		why  Why
		want []string
	}{
		{
			"the record is right", Why{Recorded: running, Seen: Observation{PID: 7, Status: StatusRunning}, Agrees: true},
			[]string{
				"VM web-1 is recorded as running: a request asked for it.",
				"Its QEMU process 7 is alive and reports the guest as running.",
				ending,
			},
		},
		{
			"the record is wrong", Why{Recorded: running, Verdict: Verdict{State: Errored, Reason: ReasonCrashed}},
			[]string{
				"VM web-1 is recorded as running: a request asked for it.",
				"It has no QEMU process.",
				"The record is wrong: the state is error (its QEMU process vanished). The next pass of the observer will correct the record.",
				"Start it again; the flight recorder has the last messages of QEMU.",
				ending,
			},
		},
		{
			"an operation is in progress",
			Why{Recorded: running, Seen: Observation{PID: 7}, Busy: "operation vm.stop of vms/web-1 (1)"},
			[]string{
				"VM web-1 is recorded as running: a request asked for it.",
				"Its QEMU process 7 is alive but does not answer on its monitor.",
				"It is being changed by operation vm.stop of vms/web-1 (1).",
				ending,
			},
		},
		{
			"devices", Why{
				Recorded: paused,
				Agrees:   true,
				Blocked:  []BlockedAddress{{Slot: 2, IP: netip.MustParseAddr("10.0.0.9")}},
				Seen: Observation{
					PID: 7, Status: "io-error", Trouble: "no space left",
					Plugged: []string{}, NICs: []int{0, 2},
				},
				Disks: []Disk{{ID: "disk-a", State: DiskAttached}, {ID: "disk-b", State: DiskDetaching}},
			},
			[]string{
				"VM web-1 is recorded as paused: the file system of a disk was full.",
				"Recorded detail: /disks/root is full",
				"Its QEMU process 7 is alive and reports the guest as io-error.",
				"QEMU reports a problem: no space left.",
				"Free space: the guest continues by itself.",
				"Its disk disk-a is recorded as attached, but QEMU does not have it.",
				"Its disk disk-b is detaching.",
				"Its NIC 0 is detaching.",
				"Its NIC 1 is recorded, but QEMU does not have it.",
				"The link of its NIC 2 is down.",
				"The guest uses 10.0.0.9 on its NIC 2, which is none of the NIC's addresses, so its packets are dropped. " +
					"If it may use the address, add it to the extra_addresses of the NIC.",
				"Its desired state is running, its restart policy is always, and it has had 2 consecutive automatic restarts.",
				"The next automatic restart is due at 2023-11-14T22:13:20.000Z.",
			},
		},
	} {
		if got := c.why.Explain(); !slices.Equal(got, c.want) {
			t.Errorf("%s: got\n%q\n; want\n%q", c.name, got, c.want)
		}
	}
}
