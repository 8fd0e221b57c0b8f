package vm

import "slices"

// State is where a VM is in its life. Starting and Stopping are recorded
// intents: an operation is on its way, or was when the daemon died.
type State string

// The states of a VM, spelled the same from the database to the API.
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Paused   State = "paused"
	Stopping State = "stopping"
	Errored  State = "error"
)

// States lists every state, in the order of a VM's life.
var States = []State{Stopped, Starting, Running, Paused, Stopping, Errored}

// Transitional reports whether s is a recorded intent and not a settled state.
func (s State) Transitional() bool { return s == Starting || s == Stopping }

// Reason says why a VM is in its state, in one word a program can use.
type Reason string

// The reasons a state can have.
const (
	ReasonCreated       Reason = "created"
	ReasonRequested     Reason = "requested"
	ReasonGuestShutdown Reason = "guest-shutdown" // the guest powered itself off
	ReasonStartFailed   Reason = "start-failed"
	ReasonCrashed       Reason = "crashed" // the QEMU process vanished
	ReasonIOError       Reason = "io-error"
	ReasonDiskFull      Reason = "disk-full"
	ReasonPanicked      Reason = "guest-panicked"
	ReasonInternalError Reason = "internal-error"
	ReasonWatchdog      Reason = "watchdog"
	ReasonUnreachable   Reason = "unreachable" // the process lives, its monitor is mute
	ReasonInterrupted   Reason = "interrupted" // the daemon ended in the middle of an operation
	ReasonUnknown       Reason = "unknown"
)

// Op is what can be done to a VM.
type Op string

// The operations on a VM.
const (
	OpStart   Op = "start"
	OpStop    Op = "stop"
	OpRestart Op = "restart"
	OpPause   Op = "pause"
	OpResume  Op = "resume"
	OpReset   Op = "reset"
	OpDelete  Op = "delete"
)

// A transition says from which states an operation may begin, what is recorded
// while it runs (empty: the state it began in) and what once it has succeeded.
type transition struct {
	from    []State
	via, to State
}

// transitions is the whole state machine. What is not here is not allowed.
// Stopping or deleting a VM in state Errored ends whatever is left of it.
var transitions = map[Op]transition{
	OpStart:   {from: []State{Stopped, Errored}, via: Starting, to: Running},
	OpStop:    {from: []State{Running, Paused, Errored}, via: Stopping, to: Stopped},
	OpRestart: {from: []State{Running, Paused}, via: Stopping, to: Running},
	OpPause:   {from: []State{Running}, to: Paused},
	OpResume:  {from: []State{Paused}, to: Running},
	OpReset:   {from: []State{Running, Paused}, to: Running},
	OpDelete:  {from: []State{Stopped, Running, Paused, Errored}, via: Stopping, to: Stopped},
}

// Begin returns the states to record while op runs and once it has succeeded.
// It reports false if op is not allowed in state s.
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

// RunStatus is QEMU's own word for what a guest does (QMP RunState). Empty
// means that QEMU did not say.
type RunStatus string

// The run states [Settle] tells apart; every other is taken as paused.
const (
	StatusMute      RunStatus = ""
	StatusRunning   RunStatus = "running"
	StatusPaused    RunStatus = "paused"
	StatusPrelaunch RunStatus = "prelaunch"
	StatusShutdown  RunStatus = "shutdown"
)

// An Observation is what the host shows of one VM at one moment.
type Observation struct {
	PID     int       // the QEMU process that holds the VM's pidfile, 0 if there is none
	Status  RunStatus // what its monitor says; [StatusMute] if it did not answer in time
	Plugged []string  // ids of the data disks QEMU has, nil when it was not asked or did not say
	NICs    []int     // slots of the NICs QEMU has, nil when it was not asked or did not say
	CDROMs  []string  // ids of the CD-ROM drives QEMU has, nil when it was not asked or did not say
	Log     string    // the last lines QEMU wrote to its stderr, only when there is no process
	// Trouble says what is wrong with a paused guest's disks or memory, as far
	// as QEMU says, with Status io-error: which file, how much room is left.
	Trouble string
	// NoSpace is set with Status io-error if a disk was full; FreeMiB is how
	// much room its file system has now.
	NoSpace bool
	FreeMiB int64
}

// Alive reports whether a QEMU process of the VM exists.
func (o Observation) Alive() bool { return o.PID != 0 }

// A Verdict is what is really true of a VM, and what is left to do about it.
type Verdict struct {
	State  State
	Reason Reason
	End    bool // the process has done its work, or never will: end it
}

// Settle returns the state a VM is really in, given the state recorded for it
// and what the host shows. It is the one place that decides this: an operation
// that failed, the observer's pass and the daemon's own start all ask it.
//
// QEMU runs with -no-shutdown, so a guest that powered itself off is a run
// state one can see and not an event one can miss; a process that is simply
// gone was lost.
func Settle(recorded State, why Reason, seen Observation) Verdict {
	if !seen.Alive() {
		return settleGone(recorded, why)
	}
	keep := func(s State, otherwise Reason) Verdict {
		if recorded == s {
			return Verdict{State: s, Reason: why}
		}
		return Verdict{State: s, Reason: otherwise}
	}
	switch seen.Status {
	case StatusMute:
		if recorded == Running || recorded == Paused {
			return Verdict{State: recorded, Reason: why} // claim nothing we do not know
		}
		return Verdict{State: Errored, Reason: ReasonUnreachable}
	case StatusRunning:
		return keep(Running, ReasonRequested)
	case StatusPaused:
		return keep(Paused, ReasonUnknown)
	case StatusShutdown:
		if recorded == Stopping {
			return Verdict{State: Stopped, Reason: ReasonRequested, End: true}
		}
		return Verdict{State: Stopped, Reason: ReasonGuestShutdown, End: true}
	case StatusPrelaunch: // launched with -S and never let go, or reset while it was paused
		if recorded == Running || recorded == Paused {
			return Verdict{State: Paused, Reason: ReasonInterrupted}
		}
		return Verdict{State: Stopped, Reason: ReasonStartFailed, End: true}
	default:
		why := pausedReason(seen.Status)
		if why == ReasonIOError && seen.NoSpace {
			why = ReasonDiskFull
		}
		return Verdict{State: Paused, Reason: why}
	}
}

func settleGone(recorded State, why Reason) Verdict {
	switch {
	case recorded == Starting:
		return Verdict{State: Stopped, Reason: ReasonStartFailed}
	case recorded == Stopping:
		return Verdict{State: Stopped, Reason: ReasonRequested}
	case recorded == Stopped, recorded == Errored && why != ReasonUnreachable:
		return Verdict{State: recorded, Reason: why}
	default:
		return Verdict{State: Errored, Reason: ReasonCrashed}
	}
}

func pausedReason(s RunStatus) Reason {
	switch r := Reason(s); r {
	case ReasonIOError, ReasonPanicked, ReasonInternalError, ReasonWatchdog:
		return r
	}
	return ReasonUnknown
}

// A Repair is what a settling found and did.
type Repair struct {
	Changed bool
	Was, Is string // the states, before and after
	Detail  string // what was done, in words
}

// ResumeFreeMiB is how much room a file system must have again before a guest
// that found it full goes on.
const ResumeFreeMiB = 32

// HasRoomAgain reports whether a guest that was paused because a disk was full can
// go on by itself.
func (v VM) HasRoomAgain(seen Observation) bool {
	return v.Desired == DesiredRunning && v.State == Paused && seen.NoSpace && seen.FreeMiB >= ResumeFreeMiB
}
