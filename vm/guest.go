package vm

import (
	"context"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode"
)

// AgentState is the state of the connection to a guest agent.
type AgentState string

// The states of a guest agent.
const (
	AgentAbsent    AgentState = "absent"    // the VM is not running, or its guest never opened the port of the agent
	AgentSilent    AgentState = "silent"    // the port is open or the agent answered before, but it does not answer now
	AgentConnected AgentState = "connected" // the agent answers
)

// An Agent describes the guest agent of a VM.
type Agent struct {
	State      AgentState
	Version    string    // empty if unknown
	LastSeenAt time.Time // time of the last answer; zero for none
}

// GuestInfo is the information that a guest reports about itself. It is untrusted.
type GuestInfo struct {
	Hostname    string
	OS          GuestOS
	Interfaces  []GuestInterface
	Filesystems []GuestFilesystem
}

// A GuestOS identifies an operating system with the values of its /etc/os-release.
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
	UsedBytes, TotalBytes int64    // 0 if unknown
	Disks                 []string // the serial numbers of its disks
}

// A GuestMount is a place where a guest has a file system of a disk mounted.
type GuestMount struct {
	MountPoint string
	Device     string // the block device in the guest; equal for mounts of one file system
}

// maxGuestTimeout is the maximum of [GuestCommand].Timeout.
const maxGuestTimeout = 5 * time.Minute

// Limits of a transfer through a guest agent.
const (
	MaxGuestOutput = 16 << 20 // bytes of stdout and of stderr each; the limit of the agent itself
	MaxGuestStdin  = 1 << 20  // bytes
	MaxGuestFile   = 64 << 20 // bytes
)

// A GuestCommand is a program to run in a guest.
type GuestCommand struct {
	Path    string
	Args    []string
	Env     []string // NAME=value
	Stdin   []byte
	Timeout time.Duration // time to wait for the end; the program may run longer
}

// Check returns a [Fault] of code [CodeInvalid] if a field of c is invalid.
func (c *GuestCommand) Check() error {
	if c.Path == "" {
		return InvalidField("/command/0", "must not be empty")
	}
	for _, v := range c.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.ContainsFunc(name, unicode.IsControl) {
			return InvalidField("/env", "each entry must be NAME=value, with a name that has no control characters")
		}
	}
	if len(c.Stdin) > MaxGuestStdin {
		return InvalidField("/stdin", "must be at most %d bytes", MaxGuestStdin)
	}
	if c.Timeout <= 0 || c.Timeout > maxGuestTimeout {
		return InvalidField("/timeout_seconds", "must be 1 to %d", int(maxGuestTimeout/time.Second))
	}
	return nil
}

// A GuestResult is the result of a [GuestCommand].
type GuestResult struct {
	Exited         bool // false: the program still runs
	ExitCode       int
	Signal         int // the signal that ended the program, 0 for none
	Stdout, Stderr []byte
	Truncated      bool // the agent or vmand dropped a part of the output
}

// A ClockCheck is the result of comparing the clock of a guest with that of the host.
type ClockCheck struct {
	// Offset is how far the guest was ahead of the host, negative if it was behind. It is known
	// to the duration of a question to the guest.
	Offset time.Duration
	Set    bool // the clock was set
}

// Guests talks to the agents in guests. A guest may lie, flood its answers or not answer: every
// method returns before its context ends, and none takes a lock of the manager. Methods other
// than Agent fail with [CodeAgentUnavailable] if no agent answers, and with [CodeGuestRefused]
// and the message of the agent if it reports an error. All are safe for concurrent use.
type Guests interface {
	// Agent returns the recorded state of the agent. It does not block.
	Agent(id string) Agent
	// GuestInfo asks the guest for its host name, interfaces and file systems.
	GuestInfo(ctx context.Context, id string) (GuestInfo, error)
	// Exec runs a program and blocks until it ends or its timeout has passed.
	Exec(ctx context.Context, id string, c GuestCommand) (GuestResult, error)
	// ReadFile copies at most limit bytes of a file of the guest to w. A larger file fails with
	// [CodeInvalid] after limit bytes.
	ReadFile(ctx context.Context, id, path string, w io.Writer, limit int64) error
	// WriteFile creates or replaces a file of the guest with the content of r.
	WriteFile(ctx context.Context, id, path string, r io.Reader) error
	// SetPassword sets the password of a user of the guest.
	SetPassword(ctx context.Context, id, user, password string) error
	// Trim discards the unused blocks of all file systems of the guest.
	Trim(ctx context.Context, id string) error
	// Mounts returns where the guest of d.VMID has file systems of d mounted, also those on
	// partitions and logical volumes. It does not see a disk that is used without a mount,
	// such as for swap.
	Mounts(ctx context.Context, d Disk) ([]GuestMount, error)
	// Freeze flushes the file systems of the guest at the mount points, or all without mount
	// points, blocks writes to them and returns their number. The freeze ends with Thaw,
	// after a time limit of the driver, or when the connection to the agent breaks. It fails
	// with [CodeBusy] while a freeze is in effect.
	Freeze(ctx context.Context, id string, mountPoints ...string) (int, error)
	// Thaw ends a freeze.
	Thaw(ctx context.Context, id string) error
	// SetClock sets the clock of the guest to that of the host, unless they agree already. It
	// returns only after the guest has reported a time that agrees.
	SetClock(ctx context.Context, id string) (ClockCheck, error)
}

// maxGuestText is the maximum number of characters that Printable returns.
const maxGuestText = 500

// Printable returns s, a text from a guest, as one line of at most 500 printable characters.
// Other characters become spaces.
func Printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > maxGuestText {
		s = string(runes[:maxGuestText-1]) + "…"
	}
	return s
}
