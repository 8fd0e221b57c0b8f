//go:build failpoints

package vm

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// failPoint is the name in VMAN_FAILPOINT, "name" or "name#n" for the n-th time
// it is reached.
var failPoint, failAt = parseFailPoint(os.Getenv("VMAN_FAILPOINT"))

var failHits atomic.Int64

func parseFailPoint(s string) (string, int64) {
	name, count, ok := strings.Cut(s, "#")
	if n, err := strconv.ParseInt(count, 10, 64); ok && err == nil {
		return name, n
	}
	return name, 1
}

// FailPoint ends the daemon here as kill -9 does, if the environment variable
// VMAN_FAILPOINT names this place.
func FailPoint(name string) {
	if name == failPoint && failHits.Add(1) == failAt {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nothing happens after the kill
	}
}
