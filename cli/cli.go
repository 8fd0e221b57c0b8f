// Package cli implements vman, the client of vmand, and the operator commands of vmand
// itself: console, backup, restore and network teardown.
//
// Run executes the tree of commands of vman; root.go has it. A command makes a request with
// a generated builder of package openapi/client, sends it with call or change, waits for its
// operation with settle, and prints the result with an output. resource.go has the commands
// that all kinds of resources share.
//
// The package knows the daemon only through its API (package openapi/client). What a command
// does without the API, such as copying the database, is a function that package
// main passes in a [Host].
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Usage is the part of the --help text that describes the commands.
const Usage = `  vmand vman COMMAND [flags]
  vmand backup FILE [flags]
  vmand restore FILE [flags]
  vmand network teardown [flags]
  vmand guests stop|start [flags]
  vmand console VM [flags]

vman is the client that manages VMs; a link vman to this program does the same. See
vmand vman --help.

backup copies the database to a new FILE. The database holds the records of VMs, disks
and networks, not the content of disks. The daemon may be running.

restore replaces the database with FILE, a backup, and keeps the previous database beside
it as vman.db.before-restore-TIME. Stop the daemon first; VMs can keep running, and the
daemon finds them again at its next start. VMs and disks that are newer than the backup
are reported as orphans in GET /observer/status and are not changed.

network teardown removes everything that vmand has set up for networks on this host:
bridges, taps and firewall rules. Running VMs lose their connections until the next start
of the daemon, which sets up the networks again.

guests stop is for a shutdown of the host: it asks the guests of all VMs to power off,
those with autostart last and in the reverse order of their start, several at a time. After
shutdown_timeout of a VM its process is ended; guests.stop_limit is the limit for all. The VMs
keep their desired state. guests start starts the VMs with autostart that are wanted running,
as the daemon does by itself after the host has booted.

console connects the terminal to the serial console of a VM through the daemon's unix
socket. Enter ~ . closes the console, Enter ~ ? lists the other escapes. If standard input
is not a terminal, it is passed on unchanged and the command ends when the VM stops.

  --read-only      console: only show the output of the guest
  --take-over      console: take the keyboard from its current user, which becomes read-only
`

// Streams are the standard streams of the process.
type Streams struct {
	In  *os.File
	Out io.Writer
	Err io.Writer
}

// A Host provides what commands need of the host they run on.
type Host struct {
	// Socket is the path of the daemon's unix socket; empty if it has none.
	Socket string
	// Backup copies the database to a new file. It returns the path of the
	// database.
	Backup func(ctx context.Context, file string) (database string, err error)
	// Restore replaces the database with a backup. It returns where the previous
	// database is kept; empty if there was none.
	Restore func(ctx context.Context, file string) (kept string, err error)
	// Teardown removes what vmand has set up for networks. It returns the names of
	// what it removed, also when it fails.
	Teardown func(ctx context.Context) (removed []string, err error)
	// Guests are the settings of the guests commands.
	Guests GuestsOptions
}

// ConsoleFlags are the flags of the console command.
type ConsoleFlags struct {
	ReadOnly bool
	TakeOver bool
}

// A Command is one command of the command line.
type Command struct {
	name    string
	operand string
	console ConsoleFlags
}

// operands names the operand of each command, or the words that it can be.
var operands = map[string]string{
	"backup":  "FILE",
	"restore": "FILE",
	"network": "teardown",
	"guests":  "stop|start",
	"console": "VM",
}

// fits reports whether an argument can be the operand of a command.
func fits(argument, operand string) bool {
	if operand == strings.ToLower(operand) {
		return slices.Contains(strings.Split(operand, "|"), argument)
	}
	return argument != ""
}

// Parse returns the command that the arguments of vmand name, or nil if there are
// none. The arguments are those that are not flags.
func Parse(args []string, f ConsoleFlags) (*Command, error) {
	if f != (ConsoleFlags{}) && (len(args) == 0 || args[0] != "console") {
		return nil, errors.New("--read-only and --take-over are flags of vmand console; see vmand --help")
	}
	if f.ReadOnly && f.TakeOver {
		return nil, errors.New("--read-only and --take-over exclude each other; see vmand --help")
	}
	if len(args) == 0 {
		return nil, nil
	}
	name := args[0]
	operand, ok := operands[name]
	if !ok {
		return nil, fmt.Errorf("unknown command %q; see vmand --help", name)
	}
	if len(args) != 2 || !fits(args[1], operand) {
		return nil, fmt.Errorf("usage: vmand %s %s; see vmand --help", name, operand)
	}
	return &Command{name: name, operand: args[1], console: f}, nil
}

// Run executes the command. It returns when the command is done or ctx is done.
func (c *Command) Run(ctx context.Context, h Host, std Streams) error {
	var err error
	name := c.name
	switch c.name {
	case "backup":
		err = backup(ctx, h, c.operand, std.Out)
	case "restore":
		err = restore(ctx, h, c.operand, std.Out)
	case "network":
		name = "network teardown"
		err = teardown(ctx, h, std.Out)
	case "guests":
		name += " " + c.operand
		err = guests(ctx, h, c.operand, std.Out)
	case "console":
		name = "console of VM " + c.operand
		err = console(ctx, consoleOfSocket(h.Socket), c.operand, c.console, std)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, withHint(err))
	}
	return nil
}

// withHint returns an error with its hint in the same line.
func withHint(err error) error {
	text := err.Error()
	var f *failure
	if !errors.As(err, &f) {
		return err
	}
	for _, line := range f.more {
		if hint, ok := strings.CutPrefix(line, "hint: "); ok {
			text += "; " + hint
		}
	}
	return errors.New(text)
}
