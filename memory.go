package main

import (
	"os"
	"runtime/debug"
)

// collectPercent is how much the heap grows before garbage is collected. Some ten
// MiB live, so the default of 100 would collect many times a second under load;
// this costs some ten MiB of memory.
const collectPercent = 300

// tuneMemory sets how often garbage is collected, unless the environment does.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectPercent)
	}
}
