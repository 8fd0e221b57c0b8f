package vm

import "slices"

// State is the state of a VM. Starting and Stopping are recorded intents: an operation is in
// progress, or was in progress when the daemon died.
type State string

// The states of a VM. The database and the API use the same spelling.
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Paused   State = "paused"
	Stopping State = "stopping"
	Errored  State = "error"
)

// States lists every state of a VM.
var States = []State{Stopped, Starting, Running, Paused, Stopping, Errored}

// Transitional reports whether s is a recorded intent and not a settled state.
func (s State) Transitional() bool { return s == Starting || s == Stopping }

// Reason is the machine-readable reason of the state of a VM.
type Reason string

// The reasons of a state.
const (
	ReasonCreated       Reason = "created"
	ReasonRequested     Reason = "requested"
	ReasonGuestShutdown Reason = "guest-shutdown" // the guest powered itself off
	ReasonHostShutdown  Reason = "host-shutdown"  // stopped because the host shuts down
	ReasonStartFailed   Reason = "start-failed"
	ReasonCrashed       Reason = "crashed" // the QEMU process has vanished
	ReasonIOError       Reason = "io-error"
	ReasonDiskFull      Reason = "disk-full"
	ReasonPanicked      Reason = "guest-panicked"
	ReasonInternalError Reason = "internal-error"
	ReasonWatchdog      Reason = "watchdog"
	ReasonSuspended     Reason = "suspended"   // the guest sleeps (ACPI S3)
	ReasonMonitor       Reason = "monitor"     // a command on QEMU's monitor paused it, no record says which
	ReasonMigration     Reason = "migration"   // QEMU saves, loads or moves the state of the machine
	ReasonDebug         Reason = "debug"       // a debugger stopped the guest
	ReasonUnreachable   Reason = "unreachable" // the QEMU process is alive, but its monitor does not answer
	ReasonInterrupted   Reason = "interrupted" // the daemon ended during an operation
	ReasonUnknown       Reason = "unknown"
)

// Op is an operation on a VM that changes its state.
type Op string

// The operations on a VM.
const (
	OpStart   Op = "start"
	OpStop    Op = "stop"
	OpRestart Op = "restart"
	OpPause   Op = "pause"
	OpResume  Op = "resume"
	OpReset   Op = "reset"
	OpNMI     Op = "nmi" // a non-maskable interrupt
	OpDelete  Op = "delete"
)

// A transition is the effect of an [Op] on the state of a VM.
type transition struct {
	from []State // the states in which the operation may begin
	via  State   // the state during the operation; empty: the state at its begin
	to   State   // the state after success
}

// transitions is the complete state machine: an operation that is not listed is not allowed.
// Stopping or deleting a VM in state Errored ends any process that is left of it.
var transitions = map[Op]transition{
	OpStart:   {from: []State{Stopped, Errored}, via: Starting, to: Running},
	OpStop:    {from: []State{Running, Paused, Errored}, via: Stopping, to: Stopped},
	OpRestart: {from: []State{Running, Paused}, via: Stopping, to: Running},
	OpPause:   {from: []State{Running}, to: Paused},
	OpResume:  {from: []State{Paused}, to: Running},
	OpReset:   {from: []State{Running, Paused}, to: Running},
	OpNMI:     {from: []State{Running}, to: Running},
	OpDelete:  {from: []State{Stopped, Running, Paused, Errored}, via: Stopping, to: Stopped},
}

// Begin returns the states to record during op and after its success. ok is false if op is not
// allowed in state s.
func (s State) Begin(op Op) (via, to State, ok bool) {
	t := transitions[op]
	if !slices.Contains(t.from, s) {
		return "", "", false
	}
	if t.via == "" {
		t.via = s
	}
	return t.via, t.to, true
}

// RunStatus is the run state of a guest as QEMU reports it (QMP RunState). It is empty if QEMU
// did not report it.
type RunStatus string

// The run states that [Settle] distinguishes. It treats all others as paused.
const (
	StatusMute      RunStatus = ""
	StatusRunning   RunStatus = "running"
	StatusPaused    RunStatus = "paused"
	StatusPrelaunch RunStatus = "prelaunch"
	StatusShutdown  RunStatus = "shutdown"
)

// An Observation is the state of one VM on the host at one moment. Plugged, NICs and CDROMs are
// nil if QEMU was not asked or did not answer.
type Observation struct {
	PID     int       // the QEMU process that holds the pidfile of the VM, 0 for none
	Status  RunStatus // [StatusMute] if the monitor did not answer in time
	Plugged []string  // ids of the data disks that QEMU has
	NICs    []int     // slots of the NICs that QEMU has
	CDROMs  []string  // ids of the CD-ROM drives that QEMU has
	Log     string    // the last lines of QEMU's stderr; set only without a process
	// Trouble describes the problem of a guest that QEMU paused with Status io-error, the file
	// and the free space of its file system as far as known, or with Status internal-error, the
	// last lines of QEMU's stderr.
	Trouble string
	// NoSpace is set with Status io-error if a file system was full. FreeMiB is its current
	// free space.
	NoSpace bool
	FreeMiB int64
	// Lost names the files of the process that are missing in the runtime directory; set only
	// by a survey.
	Lost string
}

// Alive reports whether the VM has a QEMU process.
func (o Observation) Alive() bool { return o.PID != 0 }

// A Verdict is the true state of a VM and the action that it needs.
type Verdict struct {
	State  State
	Reason Reason
	End    bool // end the process: the guest is off or was never started
}

// Settle returns the true state of a VM, given its recorded state and reason and an observation.
// It is the only function that decides this: a failed operation, the pass of the observer and
// the start of the daemon all use it.
//
// QEMU runs with -no-shutdown. A guest that powered itself off is therefore visible as a run
// state and cannot be missed like an event, and a process that has vanished has crashed.
func Settle(recorded State, why Reason, seen Observation) Verdict {
	if !seen.Alive() {
		return settleGone(recorded, why)
	}
	// keep returns the recorded reason if the state has not changed.
	keep := func(s State, otherwise Reason) Verdict {
		if recorded == s {
			return Verdict{State: s, Reason: why}
		}
		return Verdict{State: s, Reason: otherwise}
	}
	switch seen.Status {
	case StatusMute:
		if recorded == Running || recorded == Paused {
			return Verdict{State: recorded, Reason: why} // nothing contradicts the record
		}
		return Verdict{State: Errored, Reason: ReasonUnreachable}
	case StatusRunning:
		return keep(Running, ReasonRequested)
	case StatusPaused:
		if why == ReasonUnknown {
			why = ReasonMonitor
		}
		return keep(Paused, ReasonMonitor)
	case StatusShutdown:
		if recorded == Stopping {
			return Verdict{State: Stopped, Reason: stopReason(why), End: true}
		}
		return Verdict{State: Stopped, Reason: ReasonGuestShutdown, End: true}
	case StatusPrelaunch: // launched with -S and never continued, or reset while it was paused
		if recorded == Running || recorded == Paused {
			return Verdict{State: Paused, Reason: ReasonInterrupted}
		}
		return Verdict{State: Stopped, Reason: ReasonStartFailed, End: true}
	default:
		why, known := pausedReasons[seen.Status]
		if !known {
			why = ReasonUnknown
		}
		if why == ReasonIOError && seen.NoSpace {
			why = ReasonDiskFull
		}
		return Verdict{State: Paused, Reason: why}
	}
}

// settleGone is [Settle] for a VM without a process.
func settleGone(recorded State, why Reason) Verdict {
	switch {
	case recorded == Starting:
		return Verdict{State: Stopped, Reason: ReasonStartFailed}
	case recorded == Stopping:
		return Verdict{State: Stopped, Reason: stopReason(why)}
	case recorded == Stopped, recorded == Errored && why != ReasonUnreachable:
		return Verdict{State: recorded, Reason: why}
	default:
		return Verdict{State: Errored, Reason: ReasonCrashed}
	}
}

// stopReason returns the reason of a VM that is stopped after its stop was recorded with reason why.
func stopReason(why Reason) Reason {
	if why == ReasonHostShutdown {
		return why
	}
	return ReasonRequested
}

// pausedReasons are the reasons of the run states in which QEMU runs no vCPU without a
// request: all of QEMU 7.2 that [Settle] does not handle itself.
var pausedReasons = map[RunStatus]Reason{
	"io-error":       ReasonIOError,
	"guest-panicked": ReasonPanicked,
	"internal-error": ReasonInternalError,
	"watchdog":       ReasonWatchdog,
	"suspended":      ReasonSuspended,
	"debug":          ReasonDebug,
	"inmigrate":      ReasonMigration,
	"finish-migrate": ReasonMigration,
	"postmigrate":    ReasonMigration,
	"save-vm":        ReasonMigration,
	"restore-vm":     ReasonMigration,
	"colo":           ReasonMigration,
}

// A Repair is the result of settling one resource.
type Repair struct {
	Changed bool
	Was, Is string // the states before and after
	Detail  string // the actions taken, as text
}

// ResumeFreeMiB is the free space in MiB that a file system must have before a guest that was
// paused because it was full continues.
const ResumeFreeMiB = 32

// HasRoomAgain reports whether the guest of v, which QEMU paused because a file system was full,
// can continue: its desired state is running and the file system has free space again.
func (v VM) HasRoomAgain(seen Observation) bool {
	return v.Desired == DesiredRunning && v.State == Paused && seen.NoSpace && seen.FreeMiB >= ResumeFreeMiB
}
