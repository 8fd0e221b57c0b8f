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

	"vmand/host"
)

// sysctlFile holds, in the runtime directory, the previous values of the host's sysctls.
// A boot empties the directory and resets the sysctls.
const sysctlFile = "sysctls.json"

const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

// sysctls changes kernel settings below /proc/sys/net and can restore them. That
// directory shows the network namespace of the thread that opens a file in it.
type sysctls struct {
	dir string // for sysctlFile; empty: previous values are not kept
}

func sysctlPath(name string) string { return filepath.Join("/proc/sys/net", name) }

func getSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlPath(name))
	return string(bytes.TrimSpace(b)), err
}

// setSysctl sets a sysctl. It does not write if the sysctl has the value already.
func setSysctl(name, value string) error {
	if got, err := getSysctl(name); err == nil && got == value {
		return nil
	}
	return os.WriteFile(sysctlPath(name), []byte(value), 0)
}

// set sets a sysctl of the host and keeps its previous value.
func (s *sysctls) set(name, value string) error {
	previous, err := getSysctl(name)
	if err != nil || previous == value {
		return err
	}
	if err := s.keep(name, previous); err != nil {
		return fmt.Errorf("record the previous value of %s: %w", name, err)
	}
	return os.WriteFile(sysctlPath(name), []byte(value), 0)
}

// keep records the value of a sysctl, unless one is recorded already.
func (s *sysctls) keep(name, previous string) error {
	if s.dir == "" {
		return nil
	}
	all, err := s.kept()
	if err != nil {
		return err
	}
	if _, known := all[name]; known {
		return nil
	}
	all[name] = previous
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return host.WriteFile(root, sysctlFile, 0o600, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

// kept returns the recorded values by name.
func (s *sysctls) kept() (map[string]string, error) {
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

// restore sets the host's sysctls to their recorded values and returns the restored ones
// in words.
func (s *sysctls) restore() ([]string, error) {
	if s.dir == "" {
		return nil, nil
	}
	all, err := s.kept()
	if err != nil {
		return nil, err
	}
	var restored []string
	for _, name := range sortedKeys(all) {
		err := os.WriteFile(sysctlPath(name), []byte(all[name]), 0)
		if errors.Is(err, fs.ErrNotExist) { // its interface is gone
			continue
		}
		if err != nil {
			return restored, err
		}
		setting := "net." + strings.ReplaceAll(name, "/", ".")
		restored = append(restored, fmt.Sprintf("the setting %s (restored to %s)", setting, all[name]))
	}
	err = os.Remove(filepath.Join(s.dir, sysctlFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return restored, err
}

// enableForwarding makes the host forward packets. A host that forwards IPv6 ignores the
// router advertisements that its own default route comes from, unless accept_ra is 2, and
// drops that route when forwarding is enabled. So accept_ra is set first.
func (s *sysctls) enableForwarding(ipv6 bool) error {
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
