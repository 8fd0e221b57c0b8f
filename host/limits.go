package host

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Limits are resource limits of a process (getrlimit(2)); 0 is no limit.
type Limits struct {
	AddressSpace int64         // bytes
	CPU          time.Duration // in whole seconds
	FileSize     int64         // bytes, of the largest file that it may write
	OpenFiles    int
}

// ErrNoPrlimit means that the program prlimit is missing. It is a part of
// util-linux, which every Linux distribution installs.
var ErrNoPrlimit = errors.New("prlimit is not installed")

// wrap returns the command line that runs argv under the limits. The program
// prlimit sets them, because Go runs no code between fork and exec.
func (l Limits) wrap(argv []string) ([]string, error) {
	if l == (Limits{}) {
		return argv, nil
	}
	prlimit, err := LookPath("prlimit")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoPrlimit, err)
	}
	return slices.Concat([]string{prlimit}, l.options(), []string{"--"}, argv), nil
}

// options returns the options of prlimit.
func (l Limits) options() []string {
	var options []string
	add := func(name string, value int64) {
		if value != 0 {
			options = append(options, fmt.Sprintf("--%s=%d", name, value))
		}
	}
	add("as", l.AddressSpace)
	add("cpu", int64(l.CPU/time.Second))
	add("nofile", int64(l.OpenFiles))
	add("fsize", l.FileSize)
	return options
}
