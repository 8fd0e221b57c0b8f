package vm

import (
	"context"
	"io"
	"net/netip"
	"time"
)

// AgentState says whether a guest agent answers.
type AgentState string

// The states of a guest agent.
const (
	AgentAbsent    AgentState = "absent"    // the VM does not run, or nothing in the guest has ever opened the agent's port
	AgentSilent    AgentState = "silent"    // it has answered or its port is open, and it does not answer now
	AgentConnected AgentState = "connected" // it answers
)

// An Agent is what is known of a VM's guest agent.
type Agent struct {
	State      AgentState
	Version    string    // empty when unknown
	LastSeenAt time.Time // of its last answer; zero for none
}

// GuestInfo is what a guest says of itself. Nothing in it can be relied on.
type GuestInfo struct {
	Hostname    string
	OS          GuestOS
	Interfaces  []GuestInterface
	Filesystems []GuestFilesystem
}

// A GuestOS names an operating system, as its /etc/os-release does.
type GuestOS struct {
	ID, Name, Version, Kernel, Machine string
}

// A GuestInterface is a network interface of a guest.
type GuestInterface struct {
	Name      string
	MAC       string
	Addresses []netip.Prefix
}

// A GuestFilesystem is a mounted file system of a guest.
type GuestFilesystem struct {
	MountPoint, Type      string
	UsedBytes, TotalBytes int64    // 0 when unknown
	Disks                 []string // the serials of the disks it is on
}

// A GuestCommand is a program to run in a guest.
type GuestCommand struct {
	Path    string
	Args    []string
	Env     []string // NAME=value
	Stdin   []byte
	Timeout time.Duration // for it to end; it is then reported as still running
}

// A GuestResult is how a program in a guest ended.
type GuestResult struct {
	Exited         bool // false: it still runs
	ExitCode       int
	Signal         int // that ended it, 0 for none
	Stdout, Stderr []byte
	Truncated      bool // the agent, or vmand, has kept only a part of the output
}

// Limits of what goes through a guest agent.
const (
	MaxGuestOutput = 16 << 20 // bytes of stdout and of stderr, as the agent itself has it
	MaxGuestStdin  = 1 << 20
	MaxGuestFile   = 64 << 20
)

// Guests talks to the agents in guests. Every method has an end, whatever the
// guest does, and none needs a lock: a guest that lies, floods or is silent harms
// nobody. Each fails with a [Fault] of code [CodeAgentUnavailable] when no agent
// answers, and of code [CodeGuestRefused] with the agent's words when it says no.
type Guests interface {
	// Agent says what is known, without asking.
	Agent(id string) Agent
	GuestInfo(ctx context.Context, id string) (GuestInfo, error)
	Exec(ctx context.Context, id string, c GuestCommand) (GuestResult, error)
	// ReadFile copies a guest's file to w, at most limit bytes: a larger one fails
	// with [CodeInvalid] after limit bytes. WriteFile makes a guest's file of r.
	ReadFile(ctx context.Context, id, path string, w io.Writer, limit int64) error
	WriteFile(ctx context.Context, id, path string, r io.Reader) error
	SetPassword(ctx context.Context, id, user, password string) error
	// Trim has the guest give back what its file systems do not use.
	Trim(ctx context.Context, id string) error
	// Freeze makes the guest's file systems consistent and holds their writes, and
	// returns how many; Thaw lets them go again. A freeze ends by itself when the
	// connection to the agent breaks.
	Freeze(ctx context.Context, id string) (int, error)
	Thaw(ctx context.Context, id string) error
}
