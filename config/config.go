// Package config reads the settings of vmand from flags, environment variables,
// a file and the defaults, checks them, and describes them for --help.
//
// It imports the packages whose Options it holds, so that each option is declared
// once, by the package that uses it. Only package main imports config.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"vmand/manager"
	"vmand/network"
	"vmand/observer"
	"vmand/qemu"
	"vmand/server"
)

// DefaultFile is the configuration file that is read if --config names none. It
// need not exist.
const DefaultFile = "/etc/vman/config.yaml"

// dryRunDir is the subdirectory of the state and the runtime directory that a dry
// run uses.
const dryRunDir = "dry-run"

// Config holds all settings, checked and with defaults filled in: the Options of
// each package under the package's name, and the settings of the daemon itself.
// Options that are not settings, such as callbacks, are left zero.
type Config struct {
	File     string   // the configuration file that was read; empty for none
	Warnings []string // about environment variables; the daemon logs them

	Listen         string // TCP address; empty for none
	ListenInsecure bool
	Socket         string // absolute path of the unix socket; empty for none
	StateDir       string // absolute
	RuntimeDir     string // absolute
	BootDisk       string // absolute; empty for none
	DryRun         bool

	Server   server.Options
	QEMU     qemu.Options
	Network  network.Options
	Observer observer.Options
	Manager  manager.Options

	ImagesMaxGiB       int
	ImagesAllowPrivate []string // addresses and prefixes

	GuestsParallel  int
	GuestsStopLimit time.Duration

	ObserverAllowSlow bool
	LogLevel          slog.Level
	LogFormat         string // auto, text or json
}

// Directories returns the state and the runtime directory to use. A dry run has
// its own, so that it never changes the records of real VMs.
func (c Config) Directories() (state, run string) {
	if c.DryRun {
		return filepath.Join(c.StateDir, dryRunDir), filepath.Join(c.RuntimeDir, dryRunDir)
	}
	return c.StateDir, c.RuntimeDir
}

// Sources are the places a setting can come from. Flags override environment
// variables, which override the file, which overrides the defaults.
type Sources struct {
	Flags    *pflag.FlagSet // with the flags of [AddFlags]
	File     string         // --config; empty for [DefaultFile]
	Defaults []byte         // the content of config.yaml
}

// Read returns the configuration that the sources and the environment define. Its
// error lists everything that is wrong, not only the first mistake.
//
// viper chooses the value of each setting. The types of values are checked here,
// because viper takes 5 for a duration of 5 ns, 7.9 for 7, and a number for a
// section.
func Read(s Sources) (Config, error) {
	var c Config
	content, name, err := readFile(s.File)
	if err != nil {
		return c, err
	}
	c.File = name
	given, wrong := parseFile(content, name)
	warnings, more := unknownVariables()
	wrong = append(wrong, more...)
	in := input{viper: viper.New(), flags: s.Flags, given: given, file: name}
	if err := in.merge(s.Defaults); err != nil {
		return c, fmt.Errorf("read the configuration: %w", err)
	}

	fixes := map[string]string{} // by key
	for _, s := range settings {
		value, warning := in.value(s)
		if warning != "" {
			warnings = append(warnings, warning)
		}
		fixes[s.key] = assign(s.field(&c), value)
	}
	c.Warnings = warnings
	for key, fix := range c.complete() {
		fixes[key] = fix
	}
	for _, s := range settings {
		if fixes[s.key] == "" && s.check != nil {
			fixes[s.key] = s.check(&c)
		}
		if fixes[s.key] != "" {
			wrong = append(wrong, in.complaint(s, fixes[s.key]))
		}
	}
	if len(wrong) > 0 {
		return c, errors.New("the configuration is not valid:\n  " + strings.Join(wrong, "\n  "))
	}
	return c, nil
}

// Changed returns the keys of the settings that differ between two configurations, in the
// order of config.yaml.
func Changed(a, b Config) []string {
	var keys []string
	for _, s := range settings {
		if !reflect.DeepEqual(s.field(&a), s.field(&b)) { // of the values: both are pointers
			keys = append(keys, s.key)
		}
	}
	return keys
}
