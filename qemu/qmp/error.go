package qmp

import (
	"errors"
	"fmt"
)

var (
	// ErrUnknownOutcome means that a command was sent, or may have been, and
	// that no answer came: QEMU may have done it, may do it later, or never.
	// The error wraps the cause too, that of the context or [ErrClosed].
	ErrUnknownOutcome = errors.New("outcome unknown")

	// ErrNotSent means that QEMU has not seen the command and never will. The
	// error wraps the cause too.
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

// Error is QEMU's refusal of a command: it was not carried out.
type Error struct {
	Command string
	Class   string // such as GenericError or DeviceNotFound
	Desc    string // for people; it changes between versions of QEMU
}

func (e *Error) Error() string {
	return fmt.Sprintf("qmp %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// notSent is the error of a command that never left.
func notSent(command string, cause error) error {
	return fmt.Errorf("qmp %s: %w: %w", command, ErrNotSent, cause)
}

// unknownOutcome is the error of a command that left and was not answered.
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
