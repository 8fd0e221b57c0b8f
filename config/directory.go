package config

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
)

const (
	none = "none" // disables a setting that has a default on the host

	// defaultGroup is the group that may use the socket if socket_group is empty
	// and the group exists.
	defaultGroup = "vman"
)

// complete fills in defaults that depend on the host and makes paths absolute. It
// returns how to fix the settings it cannot complete, by key.
func (c *Config) complete() map[string]string {
	root := os.Geteuid() == 0
	fixes := map[string]string{}
	resolve := func(key string, path *string, otherwise func() (string, error)) {
		var err error
		if *path == "" {
			*path, err = otherwise()
		} else {
			*path, err = filepath.Abs(*path)
		}
		if err != nil {
			fixes[key] = err.Error()
		}
	}
	resolve("state_dir", &c.StateDir, func() (string, error) { return defaultStateDir(root) })
	resolve("runtime_dir", &c.RuntimeDir, func() (string, error) { return defaultRuntimeDir(root, c.StateDir), nil })
	resolve("default_boot_disk", &c.BootDisk, func() (string, error) { return "", nil })
	if c.Socket == none {
		c.Socket = ""
	} else {
		resolve("socket", &c.Socket, func() (string, error) { return filepath.Join(c.RuntimeDir, "vmand.sock"), nil })
	}
	switch c.Server.Group {
	case none:
		c.Server.Group = ""
	case "":
		if _, err := user.LookupGroup(defaultGroup); err == nil {
			c.Server.Group = defaultGroup
		}
	}
	return fixes
}

func defaultStateDir(root bool) (string, error) {
	if root {
		return "/var/lib/vman", nil
	}
	// A relative path is invalid and ignored (XDG Base Directory Specification).
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vman"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errors.New("there is no home directory for the default: set a directory")
	}
	return filepath.Join(home, ".local", "state", "vman"), nil
}

func defaultRuntimeDir(root bool, stateDir string) string {
	if root {
		return "/run/vman"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vman")
	}
	return filepath.Join(stateDir, "run")
}
