package qmp

import (
	"errors"
	"fmt"
)

var (
	// ErrUnknownOutcome means that a command may have been sent and no reply came:
	// QEMU may have executed it, may execute it later, or never. The error also wraps
	// the cause: the error of the context, or [ErrClosed].
	ErrUnknownOutcome = errors.New("outcome unknown")

	// ErrNotSent means that QEMU has not received the command and will not. The error
	// also wraps the cause.
	ErrNotSent = errors.New("not sent")

	// ErrClosed means that the connection has ended.
	ErrClosed = errors.New("qmp: connection closed")
)

// The error classes of QMP (qapi/error.json in QEMU's source).
const (
	GenericError    = "GenericError"
	CommandNotFound = "CommandNotFound"
	DeviceNotActive = "DeviceNotActive"
	DeviceNotFound  = "DeviceNotFound"
	KVMMissingCap   = "KVMMissingCap"
)

// Error is QEMU's refusal of a command. The command was not executed.
type Error struct {
	Command string
	Class   string // such as GenericError or DeviceNotFound
	Desc    string // for people; differs between versions of QEMU
}

func (e *Error) Error() string {
	return fmt.Sprintf("qmp %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// notSent returns an error that matches ErrNotSent.
func notSent(command string, cause error) error {
	return fmt.Errorf("qmp %s: %w: %w", command, ErrNotSent, cause)
}

// unknownOutcome returns an error that matches ErrUnknownOutcome.
func unknownOutcome(command string, cause error) error {
	return fmt.Errorf("qmp %s: %w: %w", command, ErrUnknownOutcome, cause)
}

// excerpt quotes the beginning of a line for an error message.
func excerpt(line []byte) string {
	const most = 80
	if len(line) > most {
		return fmt.Sprintf("%q... (%d bytes)", line[:most], len(line))
	}
	return fmt.Sprintf("%q", line)
}
