package config

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// configYAML is the content of config.yaml, which package main embeds.
func configYAML(t *testing.T) []byte {
	t.Helper()
	content, err := os.ReadFile("../config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// flagsOf returns the flags of the settings, parsed from args.
func flagsOf(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	flags := pflag.NewFlagSet("vmand", pflag.ContinueOnError)
	AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return flags
}

// configure reads a configuration from a file with the given content, from env and
// from args. The test's own VMAN_ variables are unset.
func configure(t *testing.T, file string, env map[string]string, args ...string) (Config, error) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, envPrefix) {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
	return Read(Sources{
		Flags:    flagsOf(t, args...),
		File:     configFile(t, file), // so that the host's own file is not read
		Defaults: configYAML(t),
	})
}

func configFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vman.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEverySettingHasADefaultAndACommentInConfigYAML(t *testing.T) {
	given, wrong := parseFile(configYAML(t), "config.yaml")
	if len(wrong) != 0 || len(given) == 0 {
		t.Fatalf("config.yaml: %q", wrong)
	}
	entries := describe(configYAML(t))
	for _, s := range settings {
		e, ok := entries[s.key]
		if !ok || !holds(given, s.key) {
			t.Errorf("%s has no default in config.yaml", s.key)
		}
		if len(e.comment) < 20 {
			t.Errorf("%s has no comment in config.yaml", s.key)
		}
	}
	if len(entries) != len(settings) {
		t.Errorf("config.yaml has %d settings, want %d", len(entries), len(settings))
	}
}

func TestTheDefaults(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", "/s")
	t.Setenv("XDG_RUNTIME_DIR", "/r")
	c, err := configure(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	state, run := "/var/lib/vman", "/run/vman"
	if os.Geteuid() != 0 {
		state, run = "/s/vman", "/r/vman"
	}
	if c.Listen != "127.0.0.1:8000" || c.Socket != run+"/vmand.sock" || c.StateDir != state || c.RuntimeDir != run {
		t.Errorf("defaults %+v", c)
	}
	if c.BootDisk != "" || c.DryRun {
		t.Errorf("defaults %+v", c)
	}
	if c.QEMU.Binary != "qemu-system-x86_64" || c.QEMU.ImgBinary != "qemu-img" {
		t.Errorf("qemu %+v", c.QEMU)
	}
	if c.QEMU.Accel != "auto" || c.QEMU.User != "" {
		t.Errorf("qemu %+v", c.QEMU)
	}
	if c.Observer.Repair != "auto" || c.Observer.LowMiB != 1024 || c.Manager.KeepEvents != 100_000 {
		t.Errorf("observer %+v, manager %+v", c.Observer, c.Manager)
	}
	if c.Observer.Interval != 5*time.Second || c.Manager.Keep != 720*time.Hour {
		t.Errorf("observer %+v, manager %+v", c.Observer, c.Manager)
	}
	if c.LogLevel != slog.LevelInfo || c.LogFormat != "auto" {
		t.Errorf("log level %v, format %s", c.LogLevel, c.LogFormat)
	}
}

func TestPrecedenceIsFlagVariableFileDefault(t *testing.T) {
	variable := map[string]string{"VMAN_OBSERVER_INTERVAL": "3s"}
	tests := []struct {
		file string
		env  map[string]string
		args []string
		want time.Duration
	}{
		{"", nil, nil, 5 * time.Second},
		{"observer: {interval: 4s}", nil, nil, 4 * time.Second},
		{"observer: {interval: 4s}", variable, nil, 3 * time.Second},
		{"observer: {interval: 4s}", variable, []string{"--observer-interval", "2s"}, 2 * time.Second},
		{"observer: {interval: 4s}", nil, []string{"--observer-interval=2s"}, 2 * time.Second},
		{"# only a comment\n", nil, nil, 5 * time.Second},
		{"observer:\n", nil, nil, 5 * time.Second},
	}
	for _, tt := range tests {
		c, err := configure(t, tt.file, tt.env, tt.args...)
		if err != nil || c.Observer.Interval != tt.want {
			t.Errorf("file %q, env %v, flags %q: interval %s, %v; want %s",
				tt.file, tt.env, tt.args, c.Observer.Interval, err, tt.want)
		}
		for name := range tt.env {
			os.Unsetenv(name)
		}
	}
}

func TestEverySettingIsAFlagAVariableAndAKey(t *testing.T) {
	dir := t.TempDir()
	values := map[string]string{ // none is a default
		"listen":               "0.0.0.0:9",
		"listen_insecure":      "true",
		"hosts":                "a.example,b.example",
		"socket":               dir + "/s.sock",
		"socket_group":         "0",
		"state_dir":            dir + "/state",
		"runtime_dir":          dir + "/run",
		"default_boot_disk":    dir + "/boot.qcow2",
		"dry_run":              "true",
		"qemu.binary":          "/opt/qemu",
		"qemu.img_binary":      "/opt/qemu-img",
		"qemu.accel":           "tcg",
		"qemu.user":            "nobody",
		"network.mode":         "user",
		"network.passt":        "/opt/passt",
		"observer.interval":    "7s",
		"observer.allow_slow":  "true",
		"observer.repair":      "report",
		"storage.low_mib":      "77",
		"images.max_gib":       "9",
		"images.allow_private": "10.0.0.7",
		"guests.parallel":      "3",
		"guests.stop_limit":    "3m",
		"operations.keep":      "2h",
		"events.keep":          "5000",
		"log.level":            "debug",
		"log.format":           "json",
	}
	env, byFlag, file := map[string]string{}, []string{}, ""
	for _, s := range settings {
		value, ok := values[s.key]
		if !ok {
			t.Fatalf("the test has no value for %s", s.key)
		}
		env[s.variable()] = value
		byFlag = append(byFlag, "--"+s.flag()+"="+value)
	}
	for _, section := range []string{
		"", "qemu", "network", "observer", "storage", "images", "guests", "operations", "events", "log",
	} {
		if section != "" {
			file += section + ":\n"
		}
		for key, value := range values {
			if in, name, nested := strings.Cut(key, "."); nested && in == section {
				file += "  " + name + ": " + value + "\n"
			} else if !nested && section == "" {
				file += key + ": " + quoteNumber(value) + "\n"
			}
		}
	}
	fromFile, err := configure(t, file, nil)
	if err != nil {
		t.Fatal(err)
	}
	fromFlags, err := configure(t, "", nil, byFlag...)
	if err != nil {
		t.Fatal(err)
	}
	fromEnv, err := configure(t, "", env)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{"environment": fromEnv, "flags": fromFlags} {
		for _, s := range settings {
			if got, want := show(s, c), show(s, fromFile); got != want {
				t.Errorf("%s from %s is %s, from the file %s", s.key, name, got, want)
			}
		}
	}
	c := fromFile
	if c.Listen != "0.0.0.0:9" || !c.DryRun || c.LogLevel != slog.LevelDebug || c.Manager.KeepEvents != 5000 {
		t.Errorf("configuration %+v", c)
	}
	if !slices.Equal(c.Server.Hosts, []string{"a.example", "b.example"}) || c.Server.Group != "0" {
		t.Errorf("server %+v", c.Server)
	}
	if c.Observer.Interval != 7*time.Second || c.Observer.Repair != "report" || c.Observer.LowMiB != 77 {
		t.Errorf("observer %+v", c.Observer)
	}
	images := c.QEMU.Images
	if images.MaxBytes != 9<<30 || len(images.AllowPrivate) != 1 || images.AllowPrivate[0].String() != "10.0.0.7/32" {
		t.Errorf("images %+v", images)
	}
	if c.QEMU.User != "nobody" {
		t.Errorf("qemu %+v", c.QEMU)
	}
	for _, name := range []string{
		"VMAN_LISTEN", "VMAN_SOCKET", "VMAN_STATE_DIR", "VMAN_RUNTIME_DIR", "VMAN_OBSERVER_INTERVAL",
		"VMAN_OBSERVER_REPAIR", "VMAN_QEMU_ACCEL", "VMAN_OPERATOR_DRY_RUN",
	} {
		if env[name] == "" {
			t.Errorf("there is no variable %s", name)
		}
	}
}

func quoteNumber(value string) string {
	if value == "0" {
		return `"0"`
	}
	return value
}

func show(s setting, c Config) string {
	switch v := s.field(&c).(type) {
	case *string:
		return *v
	case *bool:
		return map[bool]string{true: "true", false: "false"}[*v]
	case *int:
		return strconv.Itoa(*v)
	case *time.Duration:
		return v.String()
	case *[]string:
		return strings.Join(*v, ",")
	case *slog.Level:
		return v.String()
	}
	return "?"
}

func TestInvalidConfigurationIsRefused(t *testing.T) {
	long := "/" + strings.Repeat("x", 110)
	type env = map[string]string
	type words = []string
	tests := map[string]struct {
		file string
		env  env
		args []string
		want words // each must be in the error
	}{
		"a duration without a unit": {
			file: "observer: {interval: 5}",
			want: words{`observer.interval: "5"`, "vman.yaml", "5s"},
		},
		"a duration of 7.9": {
			file: "observer: {interval: 7.9}",
			want: words{`observer.interval: "7.9"`, "7.9s"},
		},
		"a duration in a variable": {
			env:  env{"VMAN_OBSERVER_INTERVAL": "soon"},
			want: words{"observer.interval", "VMAN_OBSERVER_INTERVAL", "soon"},
		},
		"a duration in a flag": {
			args: []string{"--observer-interval", "soon"},
			want: words{"observer.interval", "--observer-interval", "soon", "5s"},
		},
		"an empty duration": {
			env:  env{"VMAN_OBSERVER_INTERVAL": ""},
			want: words{"observer.interval", "duration"},
		},
		"an interval over 5s": {
			args: []string{"--observer-interval", "6s"},
			want: words{"observer.interval", "observer.allow_slow"},
		},
		"an interval over 1h": {
			args: []string{"--observer-interval", "2h", "--observer-allow-slow"},
			want: words{"observer.interval", "1h"},
		},
		"an interval that is too short": {
			args: []string{"--observer-interval", "1ms"},
			want: words{"observer.interval", "100ms"},
		},
		"a negative interval": {
			args: []string{"--observer-interval=-5s"},
			want: words{"observer.interval", "100ms"},
		},
		"operations kept too short": {
			file: "operations: {keep: 1m}",
			want: words{"operations.keep", "1h"},
		},
		"an unknown repair mode": {
			args: []string{"--observer-repair", "never"},
			want: words{"observer.repair", "auto, report"},
		},
		"a storage limit that is not a number": {
			file: "storage: {low_mib: 1GiB}",
			want: words{`storage.low_mib: "1GiB"`, "whole number"},
		},
		"a storage limit that is not a whole number": {
			file: "storage: {low_mib: 7.5}",
			want: words{`storage.low_mib: "7.5"`, "whole number"},
		},
		"a negative storage limit": {
			args: []string{"--storage-low-mib=-1"},
			want: words{"storage.low_mib", "at least 0"},
		},
		"an empty storage limit": {
			env:  env{"VMAN_STORAGE_LOW_MIB": ""},
			want: words{"storage.low_mib", "whole number"},
		},
		"no guest at a time": {
			file: "guests: {parallel: 0}",
			want: words{"guests.parallel", "1 to 1000"},
		},
		"a stop limit above that of systemd": {
			file: "guests: {stop_limit: 30m}",
			want: words{"guests.stop_limit", "10s to 25m"},
		},
		"an image size of zero": {
			file: "images: {max_gib: 0}",
			want: words{"images.max_gib", "1 to 16384"},
		},
		"an image size that no disk can have": {
			file: "images: {max_gib: 16385}",
			want: words{"images.max_gib", "1 to 16384"},
		},
		"an invalid subnet": {
			file: "images: {allow_private: [10.0.0.0/33]}",
			want: words{"images.allow_private", "10.0.0.0/8"},
		},
		"a name instead of an address": {
			args: []string{"--images-allow-private=localhost"},
			want: words{"images.allow_private", "127.0.0.1"},
		},
		"too few events kept": {
			file: "events: {keep: 999}",
			want: words{"events.keep", "at least 1000"},
		},
		"a scalar for a section": {
			file: "observer: 5",
			want: words{"observer (", "is a section"},
		},
		"a list for a section": {
			file: "observer: [a]",
			want: words{"observer (", "is a section"},
		},
		"a section for a scalar": {
			file: "listen: {host: a}",
			want: words{"listen (", "not a section"},
		},
		"an unknown key": {
			file: "lisen: x",
			want: words{"lisen (", "did you mean listen?"},
		},
		"an unknown key in a section": {
			file: "observer: {intervall: 5s}",
			want: words{"observer.intervall", "did you mean observer.interval?"},
		},
		"an unknown section": {
			file: "obsever: {interval: 5s}",
			want: words{"obsever", "did you mean observer.interval?"},
		},
		"a key in upper case": {
			file: "Listen: x",
			want: words{"Listen", "did you mean listen?"},
		},
		"a key and its section on one line": {
			file: "observer.interval: 3s",
			want: words{"observer.interval", "section"},
		},
		"a key without a value": {
			file: "listen:",
			want: words{"listen", "has no value"},
		},
		"a key twice": {
			file: "listen: a\nlisten: b",
			want: words{"listen", "already defined"},
		},
		"a file that is a list": {
			file: "- a",
			want: words{"vman.yaml", "cannot unmarshal"},
		},
		"a file that is not YAML": {
			file: "listen: [",
			want: words{"vman.yaml", "yaml:"},
		},
		"two documents": {
			file: "listen: \"\"\n---\nlisten: \"\"",
			want: words{"one document"},
		},
		"an interval of VMAN that is too long": {
			env:  env{"VMAN_OBSERVER_INTERVAL": "30"},
			want: words{"observer.interval", "observer.allow_slow"},
		},
		"a log level that VMAN does not have either": {
			env:  env{"VMAN_LOG_LEVEL": "LOUD"},
			want: words{"log.level", `"LOUD"`, "VMAN_LOG_LEVEL", "debug, info, warn, error"},
		},
		"a dry run of VMAN that is neither true nor false": {
			env:  env{"VMAN_DRY_RUN": "maybe"},
			want: words{"dry_run", "VMAN_DRY_RUN", "true or false"},
		},
		"settings of VMAN that vmand does not have": {
			env: env{
				"VMAN_LOG_FILE": "/var/log/vman.log", "VMAN_LOG_DIR": "/var/log", "VMAN_BRIDGE_NAME": "br0", "VMAN_VLAN_ID": "20",
				"VMAN_SUBNET": "10.0.0.0/24", "VMAN_GATEWAY": "10.0.0.1", "VMAN_DNS": "9.9.9.9",
			},
			want: words{
				"VMAN_LOG_FILE (environment)", "VMAN_LOG_DIR", "journal", "VMAN_BRIDGE_NAME", "VMAN_VLAN_ID", "VMAN_SUBNET",
				"VMAN_GATEWAY", "VMAN_DNS", "POST /networks", "unset it",
			},
		},
		"a number for text": {
			file: "listen: 8000",
			want: words{`listen: "8000"`, "quotes"},
		},
		"a number for a switch": {
			file: "dry_run: 1",
			want: words{`dry_run: "1"`, "true or false"},
		},
		"yes for a switch": {
			file: "dry_run: yes",
			want: words{`dry_run: "yes"`, "true or false"},
		},
		"an empty switch": {
			env:  env{"VMAN_OPERATOR_DRY_RUN": ""},
			want: words{"dry_run", "true or false"},
		},
		"a number in a list": {
			file: "hosts: [1]",
			want: words{"hosts", "list of words"},
		},
		"a number for a list": {
			file: "hosts: 1",
			want: words{"hosts", "list of words"},
		},
		"listen without a port": {
			args: []string{"--listen", "127.0.0.1"},
			want: words{"listen", "HOST:PORT"},
		},
		"a port by name": {
			args: []string{"--listen", "127.0.0.1:http"},
			want: words{"listen", "port"},
		},
		"a port that is too high": {
			args: []string{"--listen", "127.0.0.1:65536"},
			want: words{"listen", "65535"},
		},
		"all addresses": {
			args: []string{"--listen", ":8000"},
			want: words{"listen", "listen_insecure"},
		},
		"an address beyond loopback": {
			args: []string{"--listen", "192.0.2.1:8000"},
			want: words{"listen", "listen_insecure"},
		},
		"a name that may not be loopback": {
			args: []string{"--listen", "vmhost:8000"},
			want: words{"listen", "listen_insecure"},
		},
		"any free port of all addresses": {
			args: []string{"--listen", ":0", "--listen-insecure"},
			want: words{"listen", "needs a host"},
		},
		"neither socket nor TCP": {
			args: []string{"--listen", "", "--socket", "none"},
			want: words{"socket", "unreachable"},
		},
		"a socket path that is too long": {
			args: []string{"--socket", long},
			want: words{"socket", "107"},
		},
		"a runtime_dir that is too long": {
			args: []string{"--runtime-dir", long},
			want: words{"socket", "runtime_dir"},
		},
		"a group that does not exist": {
			args: []string{"--socket-group", "no-such-group"},
			want: words{"socket_group", "no-such-group"},
		},
		"no QEMU": {
			args: []string{"--qemu-binary", "", "--qemu-img-binary", ""},
			want: words{"qemu.binary", "qemu.img_binary", "empty"},
		},
		"an unknown accelerator": {
			args: []string{"--qemu-accel", "hvf"},
			want: words{"qemu.accel", "auto, kvm, tcg"},
		},
		"an unknown log level": {
			file: "log: {level: loud}",
			want: words{"log.level", "debug, info, warn, error"},
		},
		"an unknown log format": {
			file: "log: {format: xml}",
			want: words{"log.format", "auto, text, json"},
		},
		"several mistakes at once": {
			file: "lisen: x\nobserver: {interval: 5}",
			env:  env{"VMAN_QEMU_ACCEL": "xen"},
			args: []string{"--log-level", "loud"},
			want: words{"lisen", "observer.interval", "qemu.accel", "VMAN_QEMU_ACCEL", "log.level", "--log-level"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := configure(t, tt.file, tt.env, tt.args...)
			if err == nil {
				t.Fatalf("accepted as %+v", c)
			}
			for _, word := range tt.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in: %v", word, err)
				}
			}
		})
	}
}

func TestValidConfigurationIsAccepted(t *testing.T) {
	group, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	aGroup, _, _ := strings.Cut(string(group), ":")
	type env = map[string]string
	tests := map[string]struct {
		file string
		env  env
		args []string
		ok   func(c Config) bool
	}{
		"an empty variable disables TCP": {
			env: env{"VMAN_LISTEN": ""},
			ok:  func(c Config) bool { return c.Listen == "" },
		},
		"none disables the socket": {
			args: []string{"--socket", "none"},
			ok:   func(c Config) bool { return c.Socket == "" },
		},
		"none disables the group": {
			args: []string{"--socket-group", "none"},
			ok:   func(c Config) bool { return c.Server.Group == "" },
		},
		"a group by name": {
			args: []string{"--socket-group", aGroup},
			ok:   func(c Config) bool { return c.Server.Group == aGroup },
		},
		"a switch without a value is on": {
			args: []string{"--dry-run"},
			ok:   func(c Config) bool { return c.DryRun },
		},
		"a switch can be turned off": {
			env:  env{"VMAN_OPERATOR_DRY_RUN": "1"},
			args: []string{"--dry-run=false"},
			ok:   func(c Config) bool { return !c.DryRun },
		},
		"an address beyond loopback, insecure": {
			args: []string{"--listen", "0.0.0.0:8000", "--listen-insecure"},
			ok:   func(c Config) bool { return c.Listen == "0.0.0.0:8000" },
		},
		"loopback of IPv6": {
			args: []string{"--listen", "[::1]:0"},
			ok:   func(c Config) bool { return c.Listen == "[::1]:0" },
		},
		"localhost": {
			args: []string{"--listen", "localhost:80"},
			ok:   func(c Config) bool { return c.Listen == "localhost:80" },
		},
		"a slow observer that is allowed": {
			args: []string{"--observer-interval", "1m", "--observer-allow-slow"},
			ok:   func(c Config) bool { return c.Observer.Interval == time.Minute },
		},
		"a relative directory": {
			args: []string{"--state-dir", "s"},
			ok:   func(c Config) bool { return filepath.IsAbs(c.StateDir) && filepath.Base(c.StateDir) == "s" },
		},
		"the socket is in runtime_dir": {
			args: []string{"--runtime-dir", "/r"},
			ok:   func(c Config) bool { return c.Socket == "/r/vmand.sock" },
		},
		"hosts as a list": {
			file: "hosts: [a, b]",
			ok:   func(c Config) bool { return slices.Equal(c.Server.Hosts, []string{"a", "b"}) },
		},
		"no storage limit": {
			file: "storage: {low_mib: 0}",
			ok:   func(c Config) bool { return c.Observer.LowMiB == 0 },
		},
		"a storage limit in a variable": {
			env: env{"VMAN_STORAGE_LOW_MIB": "9"},
			ok:  func(c Config) bool { return c.Observer.LowMiB == 9 },
		},
		"variables of the tests": {
			env: env{"VMAN_TEST_QEMU": "required"},
			ok:  func(Config) bool { return true },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := configure(t, tt.file, tt.env, tt.args...)
			if err != nil || !tt.ok(c) {
				t.Errorf("configuration %+v, %v", c, err)
			}
		})
	}
}

func TestDirectoriesOfAnOrdinaryUser(t *testing.T) {
	tests := map[string]struct {
		stateHome, runtimeDir, home string
		state, run                  string
	}{
		"by XDG":         {"/xs", "/xr", "/home/u", "/xs/vman", "/xr/vman"},
		"without XDG":    {"", "", "/home/u", "/home/u/.local/state/vman", "/home/u/.local/state/vman/run"},
		"relative XDG":   {"xs", "xr", "/home/u", "/home/u/.local/state/vman", "/home/u/.local/state/vman/run"},
		"without a home": {"", "", "", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("XDG_STATE_HOME", tt.stateHome)
			t.Setenv("XDG_RUNTIME_DIR", tt.runtimeDir)
			t.Setenv("HOME", tt.home)
			state, err := defaultStateDir(false)
			if state != tt.state || (err != nil) != (tt.state == "") {
				t.Errorf("state_dir %q, %v; want %q", state, err, tt.state)
			}
			if run := defaultRuntimeDir(false, state); tt.state != "" && run != tt.run {
				t.Errorf("runtime_dir %q, want %q", run, tt.run)
			}
		})
	}
}

func TestAConfigFileOnTheCommandLineMustExist(t *testing.T) {
	_, err := Read(Sources{Flags: flagsOf(t), File: "/nonexistent/vman.yaml", Defaults: configYAML(t)})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/vman.yaml") {
		t.Errorf("error %v, want one that names the file", err)
	}
}

func TestADryRunHasItsOwnDirectories(t *testing.T) {
	for dryRun, want := range map[string][2]string{"false": {"/s", "/r"}, "true": {"/s/dry-run", "/r/dry-run"}} {
		c, err := configure(t, "", nil, "--state-dir=/s", "--runtime-dir=/r", "--dry-run="+dryRun)
		if err != nil {
			t.Fatal(err)
		}
		if state, run := c.Directories(); state != want[0] || run != want[1] {
			t.Errorf("with --dry-run=%s: %s and %s, want %q", dryRun, state, run, want)
		}
	}
}

func TestHelpShowsEverySettingAsFlagVariableAndKey(t *testing.T) {
	text := Help(configYAML(t))
	for _, s := range settings {
		for _, word := range []string{"--" + s.flag(), s.variable(), s.key} {
			if !strings.Contains(text, word) {
				t.Errorf("--help does not contain %s", word)
			}
		}
	}
	if want := "(default 5s)"; !strings.Contains(text, want) {
		t.Errorf("--help does not contain %s", want)
	}
	for line := range strings.Lines(text) {
		if len(line) > 101 {
			t.Errorf("a line of --help has %d characters: %s", len(line), line)
		}
	}
}

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{
		"listn":             "listen",
		"socet":             "socket",
		"acel":              "qemu.accel",
		"runtimedir":        "runtime_dir",
		"obsever.intervall": "observer.interval",
		"DRY_RUN":           "dry_run",
		"OPERATOR_DRYRUN":   "dry_run",
	} {
		if got := nearest(word).key; got != want {
			t.Errorf("nearest to %q is %q, want %q", word, got, want)
		}
	}
}

func TestTheEnvironmentOfVMANIsAcceptedWithWarnings(t *testing.T) {
	dir := t.TempDir()
	type env = map[string]string
	for name, tt := range map[string]struct {
		env  env
		args []string
		ok   func(c Config) bool
		warn []string // one word of each warning
	}{
		"upper-case level": {env{"VMAN_LOG_LEVEL": "INFO"}, nil,
			func(c Config) bool { return c.LogLevel == slog.LevelInfo }, []string{"write VMAN_LOG_LEVEL=info"}},
		"WARNING": {env{"VMAN_LOG_LEVEL": "WARNING"}, nil,
			func(c Config) bool { return c.LogLevel == slog.LevelWarn }, []string{"write VMAN_LOG_LEVEL=warn"}},
		"level of vmand": {env{"VMAN_LOG_LEVEL": "debug"}, nil,
			func(c Config) bool { return c.LogLevel == slog.LevelDebug }, nil},
		"seconds": {env{"VMAN_OBSERVER_INTERVAL": "5"}, nil,
			func(c Config) bool { return c.Observer.Interval == 5*time.Second }, []string{"write VMAN_OBSERVER_INTERVAL=5s"}},
		"storage path": {env{"VMAN_STORAGE_PATH": dir}, nil,
			func(c Config) bool { return c.StateDir == dir }, []string{"write VMAN_STATE_DIR=" + dir}},
		"storage path and state_dir": {env{"VMAN_STORAGE_PATH": "/elsewhere", "VMAN_STATE_DIR": dir}, nil,
			func(c Config) bool { return c.StateDir == dir }, nil},
		"storage path and flag": {env{"VMAN_STORAGE_PATH": "/elsewhere"}, []string{"--state-dir", dir},
			func(c Config) bool { return c.StateDir == dir }, nil},
		"dry run": {env{"VMAN_DRY_RUN": "True"}, nil,
			func(c Config) bool { return c.DryRun }, []string{"write VMAN_OPERATOR_DRY_RUN=true"}},
		"unknown": {env{"VMAN_LISSTEN": "x", "VMAN_SUBNET": ""}, nil,
			func(c Config) bool { return c.Listen == "127.0.0.1:8000" },
			[]string{"VMAN_LISSTEN (environment): is unknown and ignored; did you mean VMAN_LISTEN?", "VMAN_SUBNET"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := configure(t, "", tt.env, tt.args...)
			if err != nil || !tt.ok(c) || len(c.Warnings) != len(tt.warn) {
				t.Fatalf("%+v, %v; warnings %q", c, err, c.Warnings)
			}
			for i, word := range tt.warn {
				if !strings.Contains(c.Warnings[i], word) {
					t.Errorf("the warning %q does not have %q", c.Warnings[i], word)
				}
			}
		})
	}
	// The spelling of VMAN is only accepted where VMAN had it.
	if _, err := configure(t, "log: {level: INFO}", nil); err == nil {
		t.Error("log.level INFO in the file is accepted")
	}
}

func TestSettingsAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings {
		for _, name := range []string{s.key, s.flag() + " as a flag", s.variable()} {
			if seen[name] {
				t.Errorf("%s is used twice", name)
			}
			seen[name] = true
		}
	}
	var keys []string
	for _, s := range settings {
		keys = append(keys, s.key)
	}
	slices.Sort(keys)
	if got := slices.Sorted(maps.Keys(describe(configYAML(t)))); !slices.Equal(got, keys) {
		t.Errorf("config.yaml has the settings %q, want %q", got, keys)
	}
}
