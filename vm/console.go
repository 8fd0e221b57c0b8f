package vm

import (
	"io"
)

// ConsoleOptions say how to join a serial console.
type ConsoleOptions struct {
	// Scrollback is how many bytes of what the guest wrote before are read first;
	// at most what the log still has.
	Scrollback int64
	// Write asks to be the one who types. TakeOver has whoever types now only read
	// from then on.
	Write, TakeOver bool
}

// A Console is one of any number of connections to a VM's serial console. Read
// returns what the guest wrote, byte by byte as it was, from the scrollback on
// with nothing missing and nothing twice; it returns [io.EOF] once the VM's QEMU
// has ended. A reader that is too slow for too long is cut off with a [Fault] of
// code [CodeUnavailable]. Write types; it fails with a [Fault] of code [CodeState]
// if the connection does not, or no longer, type, and with an error of class
// [ErrUnavailable] if the guest does not take it in before a deadline.
type Console interface {
	io.ReadWriteCloser
}
