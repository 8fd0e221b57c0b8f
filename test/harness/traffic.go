package harness

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// unreachableSeconds is how long a guest tries to reach an address that it must not.
const unreachableSeconds = 2

// Reaches ends the test unless an HTTP server at an address answers the guest, and
// returns the answer.
func (s *Shell) Reaches(address string) string {
	s.Daemon.T.Helper()
	return s.Run("timeout 15 wget -q -O - http://%s/ 2>&1", address)
}

// StartUnreachable starts to connect to an address and returns a function that waits for
// the end, and fails the test if the guest reaches the address.
func (s *Shell) StartUnreachable(address string) func() {
	s.Daemon.T.Helper()
	const try = "timeout %[1]d wget -q -O - http://%[2]s/ 2>&1 || ping -c 1 -W %[1]d %[2]s"
	ended := s.Start(try, unreachableSeconds, address)
	return func() {
		s.Daemon.T.Helper()
		if out, err := ended(); err == nil {
			s.Daemon.T.Errorf("guest %s reaches %s: %s", s.VM, address, out)
		}
	}
}

// Send sends raw frames on an interface of the guest.
func (s *Shell) Send(iface string, frames ...[]byte) {
	s.Daemon.T.Helper()
	var lines []string
	for _, f := range frames {
		lines = append(lines, hex.EncodeToString(f))
	}
	out, code, err := s.Try(strings.Join(lines, "\n"), "vmt send "+iface)
	if err != nil || code != 0 {
		s.Daemon.T.Fatalf("guest %s: send on %s: exit status %d, %v: %s", s.VM, iface, code, err, out)
	}
}

// Capture starts to capture the frames that arrive on an interface of the guest, for
// Captured.
func (s *Shell) Capture(iface string) {
	s.Daemon.T.Helper()
	s.Run("vmt capture %[1]s >/run/capture.%[1]s 2>&1 & "+
		"until grep -q capturing /run/capture.%[1]s; do usleep 20000; done", iface)
}

// Captured returns the frames that have arrived on an interface since Capture.
func (s *Shell) Captured(iface string) [][]byte {
	s.Daemon.T.Helper()
	var frames [][]byte
	for _, line := range strings.Fields(s.Run("tail -n +2 /run/capture.%s", iface)) {
		if frame, err := hex.DecodeString(line); err == nil { // the last line may be incomplete
			frames = append(frames, frame)
		}
	}
	return frames
}

// WaitCaptured waits until a frame that contains text has arrived on an interface.
func (s *Shell) WaitCaptured(iface, text string) {
	s.Daemon.T.Helper()
	Eventually(s.Daemon.T, 10*time.Second, fmt.Sprintf("guest %s to receive %q", s.VM, text), func() error {
		if CountFrames(s.Captured(iface), text) == 0 {
			return ErrNotYet
		}
		return nil
	})
}

// CountFrames returns how many of the frames contain text.
func CountFrames(frames [][]byte, text string) int {
	n := 0
	for _, f := range frames {
		if strings.Contains(string(f), text) {
			n++
		}
	}
	return n
}
