package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"vmand/host"
)

// errImpostor means that the monitor is another VM's.
var errImpostor = errors.New("its monitor is not the VM's")

// identity is the answer to query-uuid.
type identity struct {
	UUID string `json:"UUID"`
}

// identify fails with errImpostor if another VM answered.
func (s *session) identify(got identity) error {
	want, err := s.uuid()
	if err != nil {
		return fmt.Errorf("%w: no record of its UUID: %w", errImpostor, err)
	}
	if !strings.EqualFold(got.UUID, want) {
		return fmt.Errorf("%w: it names the UUID %s", errImpostor, got.UUID)
	}
	return nil
}

// uuid returns the UUID that the VM's monitor must name, which a file has since the
// start. If the file is lost, it is restored from the command line of the process,
// which holds the lock on the VM's pidfile.
func (s *session) uuid() (string, error) {
	file := s.layout.inRun(s.id, uuidSuffix)
	recorded, err := os.ReadFile(file)
	if err == nil {
		return strings.TrimSpace(string(recorded)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	words := host.Arguments(s.proc.PID)
	uuid := host.ArgumentAfter(words, "-uuid")
	// The pid of a process that has ended may be another process's by now.
	if uuid == "" || s.proc.Exited() || !slices.Contains(words, s.layout.pidfile(s.id)) {
		return "", err
	}
	s.log.Warn("the file with the UUID of the VM is lost and is restored from its process",
		"pid", s.proc.PID, "uuid", uuid)
	return uuid, os.WriteFile(file, []byte(uuid+"\n"), 0o600)
}
