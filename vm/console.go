package vm

import "io"

// ConsoleOptions are the options of a connection to a serial console.
type ConsoleOptions struct {
	// Scrollback is the number of bytes of earlier output that Read returns first. The log
	// may hold fewer.
	Scrollback int64
	// Write requests the write side, which one connection holds at a time. TakeOver takes it
	// from its holder, which becomes read-only.
	Write, TakeOver bool
}

// A Console is one connection to the serial console of a VM. A VM can have any number of
// them.
//
// Read blocks until the guest writes. It returns the output of the guest unchanged, from the
// scrollback on, without gaps or duplicates, and [io.EOF] after the QEMU process has ended. A
// reader that falls too far behind gets a [Fault] of code [CodeUnavailable].
//
// Write sends input to the guest. It fails with a [Fault] of code [CodeState] if the connection
// does not have the write side, and with an error of class [ErrUnavailable] if the guest does
// not read the input before a deadline.
//
// Close ends a blocked Read.
type Console interface {
	io.ReadWriteCloser
}
