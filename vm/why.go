package vm

import (
	"fmt"
	"slices"
)

// A Why shows the record of a VM next to an observation of it, and explains its state.
type Why struct {
	Recorded   VM
	Seen       Observation // made for this answer
	Verdict    Verdict     // the true state, given Recorded and Seen
	Agrees     bool        // the record matches the verdict, or an operation is in progress
	Busy       string      // the operation that holds the lock of the VM, as text; empty for none
	Disks      []Disk
	Operations []Operation // the last ten
	Events     []Event     // the last twenty of the VM, without very old ones
	Flight     Flight
	Words      []string // the result of [Why.Explain]
}

// Explain returns sentences that explain the state of the VM to a person.
func (w Why) Explain() []string {
	v := w.Recorded
	words := []string{fmt.Sprintf("VM %s is recorded as %s: %s.", v.ID, v.State, reasonWords(v.Reason))}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if v.ReasonDetail != "" {
		add("Recorded detail: %s", v.ReasonDetail)
	}
	switch {
	case !w.Seen.Alive():
		add("It has no QEMU process.")
	case w.Seen.Status == StatusMute:
		add("Its QEMU process %d is alive but does not answer on its monitor.", w.Seen.PID)
	default:
		add("Its QEMU process %d is alive and reports the guest as %s.", w.Seen.PID, w.Seen.Status)
	}
	if w.Seen.Trouble != "" {
		add("QEMU reports a problem: %s.", w.Seen.Trouble)
	}
	switch {
	case w.Busy != "":
		add("It is being changed by %s.", w.Busy)
	case !w.Agrees:
		add("The record is wrong: the state is %s (%s). The next pass of the observer will correct the record.",
			w.Verdict.State, reasonWords(w.Verdict.Reason))
	}
	words = append(words, w.explainDevices()...)
	add("Its desired state is %s, its restart policy is %s, and it has had %d consecutive automatic restarts.",
		v.Desired, v.Restart, v.Restarts)
	if !v.RestartAt.IsZero() {
		add("The next automatic restart is due at %s.", v.RestartAt.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	return words
}

// explainDevices returns a sentence for each disk and NIC that the guest cannot use.
func (w Why) explainDevices() []string {
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	for _, d := range w.Disks {
		if d.State != DiskAttached {
			add("Its disk %s is %s.", d.ID, d.State)
		} else if w.Seen.Plugged != nil && !slices.Contains(w.Seen.Plugged, d.ID) {
			add("Its disk %s is recorded as attached, but QEMU does not have it.", d.ID)
		}
	}
	for _, n := range w.Recorded.NICs {
		switch plugged := slices.Contains(w.Seen.NICs, n.Slot); {
		case n.State != NICAttached:
			add("Its NIC %d is %s.", n.Slot, n.State)
		case w.Seen.NICs != nil && !plugged:
			add("Its NIC %d is recorded, but QEMU does not have it.", n.Slot)
		case n.LinkDown:
			add("The link of its NIC %d is down.", n.Slot)
		}
	}
	return words
}

// reasonWords returns the meaning of r as a clause.
func reasonWords(r Reason) string {
	words := map[Reason]string{
		ReasonCreated:       "it was never started",
		ReasonRequested:     "a request asked for it",
		ReasonGuestShutdown: "the guest powered itself off",
		ReasonHostShutdown:  "the host shut down",
		ReasonStartFailed:   "its start failed",
		ReasonCrashed:       "its QEMU process vanished",
		ReasonIOError:       "a disk had an I/O error",
		ReasonDiskFull:      "the file system of a disk was full",
		ReasonPanicked:      "the kernel of the guest panicked",
		ReasonInternalError: "QEMU had an internal error",
		ReasonWatchdog:      "the guest did not feed its watchdog",
		ReasonSuspended:     "the guest suspended itself",
		ReasonMonitor:       "a command on QEMU's monitor paused it",
		ReasonMigration:     "QEMU saves, loads or moves its state",
		ReasonDebug:         "a debugger stopped it",
		ReasonUnreachable:   "its QEMU does not answer",
		ReasonInterrupted:   "the daemon ended during an operation",
	}[r]
	if words == "" {
		return "the reason is unknown"
	}
	return words
}
