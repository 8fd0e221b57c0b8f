package vm

import "time"

// A Sink receives what the driver and the networks notice between two looks at the
// host. Its methods do not block and are safe for concurrent use.
type Sink interface {
	// Nudge asks for a look at a VM soon: something about it may have changed.
	Nudge(vmID string)
	// Mark notes when something was first seen in the present run of a VM.
	Mark(vmID string, mark BootMark, at time.Time)
}
