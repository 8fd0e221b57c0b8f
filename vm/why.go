package vm

import (
	"fmt"
	"slices"
)

// A Why puts side by side what everybody knows of a VM.
type Why struct {
	Recorded   VM
	Seen       Observation // the host, just now
	Verdict    Verdict     // what is true, given both
	Agrees     bool        // the records say what is true
	Busy       string      // the operation that changes the VM now, in words; empty for none
	Disks      []Disk
	Operations []Operation // the last ten
	Events     []Event     // the last twenty about the VM, if they are not very old
	Flight     Flight
	Words      []string // the present state explained, a sentence each
}

// Explain says the present state in words.
func Explain(w Why) []string {
	v := w.Recorded
	words := []string{fmt.Sprintf("VM %s is recorded as %s: %s.", v.ID, v.State, reasonWords(v.Reason))}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if v.ReasonDetail != "" {
		add("What was noted then: %s", v.ReasonDetail)
	}
	switch {
	case !w.Seen.Alive():
		add("No QEMU process of it exists.")
	case w.Seen.Status == StatusMute:
		add("Its QEMU process %d lives and does not answer on its monitor.", w.Seen.PID)
	default:
		add("Its QEMU process %d lives and says that the guest is %s.", w.Seen.PID, w.Seen.Status)
	}
	if w.Seen.Trouble != "" {
		add("QEMU has trouble: %s.", w.Seen.Trouble)
	}
	switch {
	case w.Busy != "":
		add("It is being changed now by the %s.", w.Busy)
	case !w.Agrees:
		add("That does not agree: it is really %s (%s), and the observer's next pass will record so.", w.Verdict.State, reasonWords(w.Verdict.Reason))
	}
	for _, d := range w.Disks {
		if d.State != DiskAttached {
			add("Its disk %s is %s.", d.ID, d.State)
		} else if w.Seen.Plugged != nil && !slices.Contains(w.Seen.Plugged, d.ID) {
			add("Its disk %s is recorded as attached, and QEMU does not have it.", d.ID)
		}
	}
	for _, n := range v.NICs {
		switch plugged := slices.Contains(w.Seen.NICs, n.Slot); {
		case n.State != NICAttached:
			add("Its NIC %d is %s.", n.Slot, n.State)
		case w.Seen.NICs != nil && !plugged:
			add("Its NIC %d is recorded, and QEMU does not have it.", n.Slot)
		case n.LinkDown:
			add("The cable of its NIC %d is out.", n.Slot)
		}
	}
	add("It was last asked to be %s; its restart policy is %s, and it was restarted %d times in a row.", v.Desired, v.Restart, v.Restarts)
	if !v.RestartAt.IsZero() {
		add("The next automatic restart is due at %s.", v.RestartAt.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	return words
}

func reasonWords(r Reason) string {
	words := map[Reason]string{
		ReasonCreated:       "it was never started",
		ReasonRequested:     "somebody asked for it",
		ReasonGuestShutdown: "the guest powered itself off",
		ReasonStartFailed:   "it could not be started",
		ReasonCrashed:       "its QEMU process vanished",
		ReasonIOError:       "a disk had an I/O error",
		ReasonDiskFull:      "the file system of a disk was full",
		ReasonPanicked:      "the guest's kernel panicked",
		ReasonInternalError: "QEMU had an internal error",
		ReasonWatchdog:      "the guest did not feed its watchdog",
		ReasonUnreachable:   "its QEMU does not answer",
		ReasonInterrupted:   "the daemon ended in the middle of an operation",
	}[r]
	if words == "" {
		return "nobody knows why"
	}
	return words
}
