package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	_ "embed"

	"vmand/manager"
	"vmand/network"
	"vmand/observer"
	"vmand/qemu"
	"vmand/server"
)

// defaultConfig is config.yaml, where every setting has its default and its
// explanation.
//
//go:embed config.yaml
var defaultConfig []byte

// defaultConfigFile is read when --config names no other. It need not exist.
const defaultConfigFile = "/etc/vman/config.yaml"

// Config is all that vmand can be told, checked and complete: what each package
// takes, under its name. What is wired and not configured is left empty in it.
type Config struct {
	File string // that was read, empty for none

	Listen         string // TCP address, empty for none
	ListenInsecure bool
	Socket         string // absolute path of the unix socket, empty for none
	StateDir       string // absolute
	RuntimeDir     string // absolute
	BootDisk       string // absolute, empty for none
	DryRun         bool

	Server   server.Options
	QEMU     qemu.Options
	Network  network.Options
	Observer observer.Options
	Manager  manager.Options

	ImagesMaxGiB       int
	ImagesAllowPrivate []string // addresses and prefixes

	ObserverAllowSlow bool
	LogLevel          slog.Level
	LogFormat         string // auto, text or json
}

// A setting is one key of the configuration. Its flag and its variable follow
// from the key, unless env says otherwise.
type setting struct {
	key   string
	env   string
	to    func(c *Config) any          // a pointer to where the value goes; its type is the setting's
	check func(c *Config) (fix string) // what is wrong with the value and how to mend it, empty if nothing is
}

func (s setting) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(s.key) }

func (s setting) variable() string {
	if s.env != "" {
		return s.env
	}
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

const (
	envPrefix     = "VMAN_"
	testEnvPrefix = "VMAN_TEST_" // tells the tests something, and a vmand they start nothing
	none          = "none"       // turns off what is on when nothing is said
	maxSocketPath = 107          // bytes: sun_path without its NUL (unix(7))
)

// settings lists every setting in the order of config.yaml.
var settings = []setting{
	{key: "listen", to: func(c *Config) any { return &c.Listen }, check: checkListen},
	{key: "listen_insecure", to: func(c *Config) any { return &c.ListenInsecure }},
	{key: "hosts", to: func(c *Config) any { return &c.Server.Hosts }},
	{key: "socket", to: func(c *Config) any { return &c.Socket }, check: checkSocket},
	{key: "socket_group", to: func(c *Config) any { return &c.Server.Group }, check: checkGroup},
	{key: "state_dir", to: func(c *Config) any { return &c.StateDir }},
	{key: "runtime_dir", to: func(c *Config) any { return &c.RuntimeDir }},
	{key: "default_boot_disk", to: func(c *Config) any { return &c.BootDisk }},
	{key: "dry_run", env: "VMAN_OPERATOR_DRY_RUN", to: func(c *Config) any { return &c.DryRun }},
	{key: "qemu.binary", to: func(c *Config) any { return &c.QEMU.Binary }, check: func(c *Config) string { return checkGiven(c.QEMU.Binary) }},
	{key: "qemu.img_binary", to: func(c *Config) any { return &c.QEMU.ImgBinary }, check: func(c *Config) string { return checkGiven(c.QEMU.ImgBinary) }},
	{key: "qemu.accel", to: func(c *Config) any { return &c.QEMU.Accel }, check: func(c *Config) string { return checkWord(c.QEMU.Accel, "auto", "kvm", "tcg") }},
	{key: "qemu.user", to: func(c *Config) any { return &c.QEMU.User }},
	{key: "network.mode", to: func(c *Config) any { return &c.Network.Mode }, check: func(c *Config) string {
		return checkWord(c.Network.Mode, network.ModeAuto, network.ModeBridge, network.ModeUser)
	}},
	{key: "network.passt", to: func(c *Config) any { return &c.Network.Passt }, check: func(c *Config) string { return checkGiven(c.Network.Passt) }},
	{key: "observer.interval", to: func(c *Config) any { return &c.Observer.Interval }, check: checkInterval},
	{key: "observer.repair", to: func(c *Config) any { return &c.Observer.Repair }, check: func(c *Config) string {
		return checkWord(c.Observer.Repair, observer.RepairAuto, observer.RepairReport)
	}},
	{key: "observer.allow_slow", to: func(c *Config) any { return &c.ObserverAllowSlow }},
	{key: "storage.low_mib", to: func(c *Config) any { return &c.Observer.LowMiB }, check: func(c *Config) string { return checkLeast(c.Observer.LowMiB, 0) }},
	{key: "images.max_gib", to: func(c *Config) any { return &c.ImagesMaxGiB }, check: checkImageSize},
	{key: "images.allow_private", to: func(c *Config) any { return &c.ImagesAllowPrivate }, check: checkPrivate},
	{key: "operations.keep", to: func(c *Config) any { return &c.Manager.Keep }, check: checkKeep},
	{key: "events.keep", to: func(c *Config) any { return &c.Manager.KeepEvents }, check: func(c *Config) string { return checkLeast(c.Manager.KeepEvents, minEvents) }},
	{key: "log.level", to: func(c *Config) any { return &c.LogLevel }},
	{key: "log.format", to: func(c *Config) any { return &c.LogFormat }, check: func(c *Config) string { return checkWord(c.LogFormat, "auto", "text", "json") }},
}

func checkListen(c *Config) string {
	if c.Listen == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return "write HOST:PORT such as 127.0.0.1:8000, or leave it empty for no TCP"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "the port must be a number from 0 (any that is free) to 65535"
	} else if n == 0 && host == "" {
		return "name a host too"
	}
	address, err := netip.ParseAddr(host)
	loopback := host == "localhost" || err == nil && address.IsLoopback()
	if !loopback && !c.ListenInsecure {
		return "plain HTTP beyond loopback shows the tokens to whoever is on the way: use 127.0.0.1, or set listen_insecure to true if you mean it"
	}
	return ""
}

func checkSocket(c *Config) string {
	if len(c.Socket) > maxSocketPath {
		return fmt.Sprintf("%s has %d bytes and the kernel takes %d: set socket or runtime_dir to a shorter path", c.Socket, len(c.Socket), maxSocketPath)
	}
	if c.Socket == "" && c.Listen == "" {
		return "with no socket and no listen nobody could reach the API: set one of them"
	}
	return ""
}

func checkGroup(c *Config) string {
	if c.Server.Group == "" {
		return ""
	}
	if _, err := strconv.ParseUint(c.Server.Group, 10, 31); err == nil {
		return ""
	}
	if _, err := user.LookupGroup(c.Server.Group); err != nil {
		return `there is no such group: create it, name another, or write "none"`
	}
	return ""
}

const (
	minInterval     = 100 * time.Millisecond
	maxInterval     = 5 * time.Second
	maxSlowInterval = time.Hour
	minKeep         = time.Hour
	minEvents       = 1000
)

func checkInterval(c *Config) string {
	switch interval := c.Observer.Interval; {
	case interval < minInterval:
		return fmt.Sprintf("must be at least %s", minInterval)
	case interval > maxSlowInterval:
		return "must be at most 1h"
	case interval > maxInterval && !c.ObserverAllowSlow:
		return "is longer than 5s, and a VM that ends unseen is noticed that late: set observer.allow_slow to true if you mean it"
	}
	return ""
}

func checkImageSize(c *Config) string {
	if c.ImagesMaxGiB < 1 || c.ImagesMaxGiB > maxImageGiB {
		return fmt.Sprintf("must be 1 to %d", maxImageGiB)
	}
	c.QEMU.Images.MaxBytes = int64(c.ImagesMaxGiB) << 30
	return ""
}

const maxImageGiB = 16 << 10 // as large as a disk can be

func checkPrivate(c *Config) string {
	for _, s := range c.ImagesAllowPrivate {
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			return "must be a list of addresses and subnets, such as [10.0.0.0/8, 127.0.0.1]"
		}
		c.QEMU.Images.AllowPrivate = append(c.QEMU.Images.AllowPrivate, p.Masked())
	}
	return ""
}

func checkKeep(c *Config) string {
	if c.Manager.Keep < minKeep {
		return "must be at least 1h"
	}
	return ""
}

func checkLeast(value, least int) string {
	if value < least {
		return fmt.Sprintf("must be at least %d", least)
	}
	return ""
}

func checkGiven(value string) string {
	if value == "" {
		return "must not be empty"
	}
	return ""
}

func checkWord(value string, known ...string) string {
	if slices.Contains(known, value) {
		return ""
	}
	return "must be one of " + strings.Join(known, ", ")
}

// complete fills in what depends on the host, and makes paths absolute. It
// returns what is wrong with a setting, by key.
func (c *Config) complete() map[string]string {
	wrong := map[string]string{}
	var err error
	root := os.Geteuid() == 0
	if c.StateDir, err = absolute(c.StateDir, func() (string, error) { return defaultStateDir(root) }); err != nil {
		wrong["state_dir"] = err.Error()
	}
	if c.RuntimeDir, err = absolute(c.RuntimeDir, func() (string, error) { return defaultRuntimeDir(root, c.StateDir), nil }); err != nil {
		wrong["runtime_dir"] = err.Error()
	}
	if c.BootDisk, err = absolute(c.BootDisk, nothing); err != nil {
		wrong["default_boot_disk"] = err.Error()
	}
	if c.Socket == none {
		c.Socket = ""
	} else if c.Socket, err = absolute(c.Socket, func() (string, error) { return filepath.Join(c.RuntimeDir, "vmand.sock"), nil }); err != nil {
		wrong["socket"] = err.Error()
	}
	switch c.Server.Group {
	case none:
		c.Server.Group = ""
	case "":
		if _, err := user.LookupGroup(defaultGroup); err == nil {
			c.Server.Group = defaultGroup
		}
	}
	return wrong
}

// defaultGroup may use the socket when nothing else is said.
const defaultGroup = "vman"

func nothing() (string, error) { return "", nil }

func absolute(path string, otherwise func() (string, error)) (string, error) {
	if path == "" {
		return otherwise()
	}
	return filepath.Abs(path)
}

func defaultStateDir(root bool) (string, error) {
	if root {
		return "/var/lib/vman", nil
	}
	// A relative path there is to be ignored (XDG Base Directory Specification).
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vman"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errors.New("there is no home directory to put it in: name a directory")
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

// directories returns the state and the runtime directory that are used:
// nothing a dry run does is to touch the records of VMs that are real.
func (c *Config) directories() (state, run string) {
	if c.DryRun {
		return filepath.Join(c.StateDir, dryRunDir), filepath.Join(c.RuntimeDir, dryRunDir)
	}
	return c.StateDir, c.RuntimeDir
}

// logger returns the logger the configuration asks for, on standard error, and
// what writes the lines that still wait at the end.
func (c *Config) logger(stderr *os.File) (log *slog.Logger, flush func()) {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	w := newBatchWriter(stderr)
	var h slog.Handler = slog.NewJSONHandler(w, o)
	if c.LogFormat == "text" || c.LogFormat == "auto" && isTerminal(stderr) {
		h = slog.NewTextHandler(w, o)
	}
	return slog.New(promptHandler{h, w}), w.flush
}

// readFile returns the content of the configuration file and its name, or
// nothing if no file was asked for and there is none.
func readFile(asked string) (content []byte, name string, err error) {
	if asked != "" {
		content, err = os.ReadFile(asked)
		if err != nil {
			return nil, "", fmt.Errorf("--config: %w", err)
		}
		return content, asked, nil
	}
	content, err = os.ReadFile(defaultConfigFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read the configuration: %w", err)
	}
	return content, defaultConfigFile, nil
}
