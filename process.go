package main

import (
	"os"
	"runtime/debug"
)

// collectPercent is the growth of the heap that triggers a garbage collection. The
// live heap is some ten MiB, so Go's default of 100 would collect many times a
// second under load. 300 costs some ten MiB more memory.
const collectPercent = 300

// tuneMemory sets the garbage collector's percentage, unless GOGC sets it.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectPercent)
	}
}
