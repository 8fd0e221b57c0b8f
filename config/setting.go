package config

import (
	"strings"

	"vmand/network"
	"vmand/observer"
)

const (
	envPrefix     = "VMAN_"
	testEnvPrefix = "VMAN_TEST_" // variables of the tests; a vmand that a test starts ignores them
)

// A setting is one key of the configuration. Its flag and its variable are derived
// from the key, unless env names the variable.
type setting struct {
	key string
	env string
	// field returns a pointer to the field that holds the value. The field's type
	// is the type of the setting.
	field func(c *Config) any
	// check validates the value and fills in what is derived from it. It returns
	// how to fix the value, or "" if it is valid. It is nil if every value of the
	// type is valid.
	check func(c *Config) (fix string)

	alias    string                    // variable of VMAN with the same meaning, or empty
	spelling func(value string) string // translates the value of a variable from VMAN; may be nil
}

func (s setting) flag() string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(s.key)
}

func (s setting) variable() string {
	if s.env != "" {
		return s.env
	}
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// variables returns the variables of the setting; the first that is set counts.
func (s setting) variables() []string {
	if s.alias == "" {
		return []string{s.variable()}
	}
	return []string{s.variable(), s.alias}
}

// isSwitch reports whether the setting is a boolean: its flag needs no value.
func (s setting) isSwitch() bool {
	_, ok := s.field(new(Config)).(*bool)
	return ok
}

// settings lists every setting in the order of config.yaml.
var settings = []setting{
	{
		key:   "listen",
		field: func(c *Config) any { return &c.Listen },
		check: checkListen,
	},
	{
		key:   "listen_insecure",
		field: func(c *Config) any { return &c.ListenInsecure },
	},
	{
		key:   "hosts",
		field: func(c *Config) any { return &c.Server.Hosts },
	},
	{
		key:   "socket",
		field: func(c *Config) any { return &c.Socket },
		check: checkSocket,
	},
	{
		key:   "socket_group",
		field: func(c *Config) any { return &c.Server.Group },
		check: checkGroup,
	},
	{
		key:   "state_dir",
		field: func(c *Config) any { return &c.StateDir },
		alias: "VMAN_STORAGE_PATH",
	},
	{
		key:   "runtime_dir",
		field: func(c *Config) any { return &c.RuntimeDir },
	},
	{
		key:   "default_boot_disk",
		field: func(c *Config) any { return &c.BootDisk },
	},
	{
		key:      "dry_run",
		env:      "VMAN_OPERATOR_DRY_RUN",
		field:    func(c *Config) any { return &c.DryRun },
		alias:    "VMAN_DRY_RUN",
		spelling: lowerWord,
	},
	{
		key:   "qemu.binary",
		field: func(c *Config) any { return &c.QEMU.Binary },
		check: func(c *Config) string { return notEmpty(c.QEMU.Binary) },
	},
	{
		key:   "qemu.img_binary",
		field: func(c *Config) any { return &c.QEMU.ImgBinary },
		check: func(c *Config) string { return notEmpty(c.QEMU.ImgBinary) },
	},
	{
		key:   "qemu.accel",
		field: func(c *Config) any { return &c.QEMU.Accel },
		check: func(c *Config) string { return oneOf(c.QEMU.Accel, "auto", "kvm", "tcg") },
	},
	{
		key:   "qemu.user",
		field: func(c *Config) any { return &c.QEMU.User },
	},
	{
		key:   "network.mode",
		field: func(c *Config) any { return &c.Network.Mode },
		check: func(c *Config) string {
			return oneOf(c.Network.Mode, network.ModeAuto, network.ModeBridge, network.ModeUser)
		},
	},
	{
		key:   "network.passt",
		field: func(c *Config) any { return &c.Network.Passt },
		check: func(c *Config) string { return notEmpty(c.Network.Passt) },
	},
	{
		key:   "observer.interval",
		field: func(c *Config) any { return &c.Observer.Interval },
		check: checkInterval,

		spelling: secondsWord,
	},
	{
		key:   "observer.repair",
		field: func(c *Config) any { return &c.Observer.Repair },
		check: func(c *Config) string {
			return oneOf(c.Observer.Repair, observer.RepairAuto, observer.RepairReport)
		},
	},
	{
		key:   "observer.allow_slow",
		field: func(c *Config) any { return &c.ObserverAllowSlow },
	},
	{
		key:   "storage.low_mib",
		field: func(c *Config) any { return &c.Observer.LowMiB },
		check: func(c *Config) string { return atLeast(c.Observer.LowMiB, 0) },
	},
	{
		key:   "images.max_gib",
		field: func(c *Config) any { return &c.ImagesMaxGiB },
		check: checkImageSize,
	},
	{
		key:   "images.allow_private",
		field: func(c *Config) any { return &c.ImagesAllowPrivate },
		check: checkPrivate,
	},
	{
		key:   "guests.parallel",
		field: func(c *Config) any { return &c.GuestsParallel },
		check: checkGuestsParallel,
	},
	{
		key:   "guests.stop_limit",
		field: func(c *Config) any { return &c.GuestsStopLimit },
		check: checkGuestsStopLimit,
	},
	{
		key:   "operations.keep",
		field: func(c *Config) any { return &c.Manager.Keep },
		check: checkKeep,
	},
	{
		key:   "events.keep",
		field: func(c *Config) any { return &c.Manager.KeepEvents },
		check: func(c *Config) string { return atLeast(c.Manager.KeepEvents, minEvents) },
	},
	{
		key:      "log.level",
		field:    func(c *Config) any { return &c.LogLevel },
		spelling: levelWord,
	},
	{
		key:   "log.format",
		field: func(c *Config) any { return &c.LogFormat },
		check: func(c *Config) string { return oneOf(c.LogFormat, "auto", "text", "json") },
	},
}
