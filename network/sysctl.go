package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sysctlFile keeps, in the runtime directory, what the host's own sysctls were.
// The directory is empty after a boot, as the sysctls are what they were.
const sysctlFile = "sysctls.json"

const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

// sysctls change settings of the kernel below /proc/sys/net, which shows the
// network namespace of the thread that opens it.
type sysctls struct {
	dir string // empty: nothing is remembered
}

func sysctlPath(name string) string { return filepath.Join("/proc/sys/net", name) }

func getSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlPath(name))
	return string(bytes.TrimSpace(b)), err
}

// setSysctl makes a sysctl have a value and writes only if it has another.
func setSysctl(name, value string) error {
	if got, err := getSysctl(name); err == nil && got == value {
		return nil
	}
	return os.WriteFile(sysctlPath(name), []byte(value), 0)
}

// set changes a sysctl of the host and remembers what it was.
func (s *sysctls) set(name, value string) error {
	was, err := getSysctl(name)
	if err != nil || was == value {
		return err
	}
	if err := s.remember(name, was); err != nil {
		return fmt.Errorf("remember %s: %w", name, err)
	}
	return os.WriteFile(sysctlPath(name), []byte(value), 0)
}

func (s *sysctls) remember(name, was string) error {
	if s.dir == "" {
		return nil
	}
	all, err := s.remembered()
	if err != nil {
		return err
	}
	if _, known := all[name]; known {
		return nil
	}
	all[name] = was
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, sysctlFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (s *sysctls) remembered() (map[string]string, error) {
	all := map[string]string{}
	b, err := os.ReadFile(filepath.Join(s.dir, sysctlFile))
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	return all, err
}

// restore gives the host's sysctls back what they were, and says which.
func (s *sysctls) restore() ([]string, error) {
	if s.dir == "" {
		return nil, nil
	}
	all, err := s.remembered()
	if err != nil {
		return nil, err
	}
	var said []string
	for _, name := range sorted(all) {
		err := os.WriteFile(sysctlPath(name), []byte(all[name]), 0)
		if errors.Is(err, fs.ErrNotExist) { // its interface is gone
			continue
		}
		if err != nil {
			return said, err
		}
		said = append(said, fmt.Sprintf("set net.%s back to %s", strings.ReplaceAll(name, "/", "."), all[name]))
	}
	err = os.Remove(filepath.Join(s.dir, sysctlFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return said, err
}

// forward lets the host forward packets. A host that forwards IPv6 ignores the
// router advertisements that its own default route comes from, unless accept_ra
// is 2, and drops the route at the moment forwarding is switched on: so that is
// set first.
func (s *sysctls) forward(ipv6 bool) error {
	if err := s.set(forward4, "1"); err != nil {
		return err
	}
	if !ipv6 {
		return nil
	}
	if on, err := getSysctl(forward6); err != nil || on == "1" {
		return err
	}
	confs, err := filepath.Glob(sysctlPath("ipv6/conf/*/accept_ra"))
	if err != nil {
		return err
	}
	for _, path := range confs {
		name := strings.TrimPrefix(path, sysctlPath("")+"/")
		if value, err := getSysctl(name); err != nil || value != "1" {
			continue
		}
		if err := s.set(name, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.set(forward6, "1")
}
