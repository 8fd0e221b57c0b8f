package vm

import "time"

// A Sink receives observations of the driver and the networks between the passes of the
// observer. Its methods do not block and are safe for concurrent use.
type Sink interface {
	// Nudge requests that a VM is settled soon, because its state may have changed.
	Nudge(vmID string)
	// Mark notes the time of the first observation of mark in the current run of a VM.
	Mark(vmID string, mark BootMark, at time.Time)
}
