package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// A Serial is what a VM's guest prints on its serial console.
type Serial struct {
	t    testing.TB
	file string
	read int // how much of it was matched already
}

// Serial returns the serial log of a VM, to match what its guest prints.
func (d *Daemon) Serial(id string) *Serial {
	return &Serial{t: d.T, file: filepath.Join(d.StateDir, "vms", id, "serial.log")}
}

// Expect waits until the guest has printed a match of the pattern behind what was
// matched last, and returns the submatches.
func (g *Serial) Expect(pattern string) []string {
	g.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	Eventually(g.t, 90*time.Second, fmt.Sprintf("the guest to print %q", pattern), func() error {
		out, err := os.ReadFile(g.file)
		if err != nil {
			return err
		}
		at := re.FindSubmatchIndex(out[min(g.read, len(out)):])
		if at == nil {
			return fmt.Errorf("it printed\n%s", tail(out, 2000))
		}
		found = nil
		rest := out[g.read:]
		for i := 0; i < len(at); i += 2 {
			found = append(found, string(rest[max(at[i], 0):max(at[i+1], 0)]))
		}
		g.read += at[1]
		return nil
	})
	return found
}

// Never fails the test if the guest has printed a match so far.
func (g *Serial) Never(pattern string) {
	g.t.Helper()
	out, err := os.ReadFile(g.file)
	if err != nil {
		g.t.Fatal(err)
	}
	if m := regexp.MustCompile(pattern).Find(out); m != nil {
		g.t.Fatalf("the guest printed %q", m)
	}
}

// DHCPLine is what the guest says when DHCP has given it an address.
var DHCPLine = regexp.MustCompile(`VMT: ip name=(\S*) addr=(\S*) router=(\S*) dns=(\S*) domain=(\S*) hostname=(\S*) mtu=(\S*) ntp=(\S*) lease=(\S*) server=(\S*)`)
