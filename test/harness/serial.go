package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// DHCPLine matches the line that the guest prints when DHCP has given it an address.
var DHCPLine = regexp.MustCompile(`VMT: ip name=(\S*) addr=(\S*) router=(\S*) dns=(\S*) domain=(\S*) ` +
	`hostname=(\S*) mtu=(\S*) ntp=(\S*) lease=(\S*) server=(\S*)`)

// A Serial is the log of a VM's serial console.
type Serial struct {
	t    testing.TB
	vm   string
	file string
	read int // the bytes up to the end of the last match
}

// Serial returns the log of a VM's serial console, to be read from its beginning.
func (d *Daemon) Serial(id string) *Serial {
	return &Serial{t: d.T, vm: id, file: filepath.Join(d.StateDir, "vms", id, "serial.log")}
}

// Expect waits up to 90 s until the guest has printed a match of the pattern after the
// last match, and returns the submatches.
func (s *Serial) Expect(pattern string) []string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	Eventually(s.t, 90*time.Second, fmt.Sprintf("guest %s to print %q", s.vm, pattern), func() error {
		out, err := os.ReadFile(s.file)
		if err != nil {
			return err
		}
		rest := out[min(s.read, len(out)):]
		at := re.FindSubmatchIndex(rest)
		if at == nil {
			return fmt.Errorf("it printed\n%s", tail(out, 2000))
		}
		found = nil
		for i := 0; i < len(at); i += 2 {
			found = append(found, string(rest[max(at[i], 0):max(at[i+1], 0)]))
		}
		s.read += at[1]
		return nil
	})
	return found
}

// Never ends the test if the guest has printed a match of the pattern so far.
func (s *Serial) Never(pattern string) {
	s.t.Helper()
	out, err := os.ReadFile(s.file)
	if err != nil {
		s.t.Fatal(err)
	}
	if m := regexp.MustCompile(pattern).Find(out); m != nil {
		s.t.Fatalf("guest %s printed %q", s.vm, m)
	}
}
