package vm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
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
	Blocked    []BlockedAddress
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
		add("QEMU reports a problem: %s.", strings.TrimSuffix(w.Seen.Trouble, "."))
	}
	switch {
	case w.Busy != "":
		add("It is being changed by %s.", w.Busy)
	case !w.Agrees:
		add("The record is wrong: the state is %s (%s). The next pass of the observer will correct the record.",
			w.Verdict.State, reasonWords(w.Verdict.Reason))
	}
	if remedy := w.remedy(); remedy != "" {
		words = append(words, remedy)
	}
	if problem := w.clockProblem(); problem != nil {
		add("After the last pause the clock of its guest could not be set: %s.", problem.Detail)
	}
	words = append(words, w.explainDevices()...)
	add("Its desired state is %s, its restart policy is %s, and it has had %d consecutive automatic restarts.",
		v.Desired, v.Restart, v.Restarts)
	if !v.RestartAt.IsZero() {
		add("The next automatic restart is due at %s.", v.RestartAt.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	return words
}

// remedy returns a sentence that says which action helps, empty if none is needed.
func (w Why) remedy() string {
	switch {
	case w.Busy != "":
		return ""
	case w.Seen.Alive() && w.Seen.Status == StatusMute:
		return "Only a stop with \"force\": true and a deletion work, which end the process; then start it again. " +
			"If it hangs, it may continue by itself. If the observer reports runtime_drift, its monitor is lost for good."
	case w.Agrees:
		return remedies[w.Recorded.Reason]
	}
	return remedies[w.Verdict.Reason]
}

// remedies are the actions that help against a state with a reason.
var remedies = map[Reason]string{
	ReasonStartFailed:   "Start it again when the cause is removed.",
	ReasonCrashed:       "Start it again; the flight recorder has the last messages of QEMU.",
	ReasonIOError:       "Repair the disk, then resume it: the guest repeats the request.",
	ReasonDiskFull:      "Free space: the guest continues by itself.",
	ReasonPanicked:      "Reset or restart it; its memory can be inspected until then.",
	ReasonInternalError: "Reset or restart it: QEMU does not resume it. The flight recorder has the last output of QEMU.",
	ReasonWatchdog:      "Reset or restart it; resume lets the guest continue where it hung.",
	ReasonSuspended:     "Resume wakes it, reset boots it.",
	ReasonMonitor:       "Resume continues it.",
	ReasonMigration:     "If nothing saves or moves it, resume continues it; otherwise restart it.",
	ReasonDebug:         "Continue it in the debugger, or resume it.",
	ReasonInterrupted:   "Repeat the operation, or resume it.",
	ReasonUnreachable:   "A stop with \"force\": true or a deletion ends the process; then start it again.",
}

// clockProblem returns why the clock of the guest could not be set after the last pause, nil if
// it could.
func (w Why) clockProblem() *Problem {
	for _, e := range slices.Backward(w.Events) {
		if e.Type == "vm.state" { // the VM was paused or started since
			return nil
		}
		var check struct{ Problem *Problem }
		if e.Type == "vm.clock" && json.Unmarshal(e.Data, &check) == nil {
			return check.Problem
		}
	}
	return nil
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
	for _, b := range w.Blocked {
		add("The guest uses %s on its NIC %d, which is none of the NIC's addresses, so its packets are dropped. "+
			"If it may use the address, add it to the extra_addresses of the NIC.", b.IP, b.Slot)
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
