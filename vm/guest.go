package vm

import (
	"context"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode"
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

// maxGuestTimeout is how long a program in a guest can be waited for.
const maxGuestTimeout = 5 * time.Minute

// Limits of what goes through a guest agent.
const (
	MaxGuestOutput = 16 << 20 // bytes of stdout and of stderr, as the agent itself has it
	MaxGuestStdin  = 1 << 20
	MaxGuestFile   = 64 << 20
)

// A GuestCommand is a program to run in a guest.
type GuestCommand struct {
	Path    string
	Args    []string
	Env     []string // NAME=value
	Stdin   []byte
	Timeout time.Duration // for it to end; it is then reported as still running
}

// Check finds what no guest could be asked for.
func (c *GuestCommand) Check() error {
	if c.Path == "" {
		return InvalidField("/command/0", "must not be empty")
	}
	for _, v := range c.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.ContainsFunc(name, unicode.IsControl) {
			return InvalidField("/env", "has a name that is empty or has a '=' or a control character in it")
		}
	}
	if len(c.Stdin) > MaxGuestStdin {
		return InvalidField("/stdin", "must have at most %d bytes", MaxGuestStdin)
	}
	if c.Timeout <= 0 || c.Timeout > maxGuestTimeout {
		return InvalidField("/timeout_seconds", "must be 1 to %d", int(maxGuestTimeout/time.Second))
	}
	return nil
}

// A GuestResult is how a program in a guest ended.
type GuestResult struct {
	Exited         bool // false: it still runs
	ExitCode       int
	Signal         int // that ended it, 0 for none
	Stdout, Stderr []byte
	Truncated      bool // the agent, or vmand, has kept only a part of the output
}

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

// maxGuestWords is how many characters of what a guest says are told.
const maxGuestWords = 500

// Printable returns what a guest says as one line of at most maxGuestWords
// characters that all show.
func Printable(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)), " ")
	if all := []rune(s); len(all) > maxGuestWords {
		s = string(all[:maxGuestWords-1]) + "…"
	}
	return s
}
