//go:build failpoints

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var failPoint, failAt = parseFailPoint(os.Getenv("VMAN_FAILPOINT"))

var failHits atomic.Int64

func parseFailPoint(s string) (string, int64) {
	name, count, ok := strings.Cut(s, "#")
	if n, err := strconv.ParseInt(count, 10, 64); ok && err == nil {
		return name, n
	}
	return name, 1
}

func hit(name string) {
	if name == failPoint && failHits.Add(1) == failAt {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nothing happens after the kill
	}
}
