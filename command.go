package main

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"vmand/cli"
	"vmand/config"
	"vmand/network"
	"vmand/store"
)

// configYAML is the default configuration.
//
//go:embed config.yaml
var configYAML []byte

// A commandLine is the parsed command line.
type commandLine struct {
	flags       *pflag.FlagSet
	configFile  string // --config
	checkConfig bool
	version     bool
	help        bool
	command     *cli.Command // nil for the daemon
}

// parseArgs parses the command line. It does not check the values of settings:
// [config.Read] does, together with their other sources.
func parseArgs(args []string) (commandLine, error) {
	c := commandLine{flags: pflag.NewFlagSet("vmand", pflag.ContinueOnError)}
	c.flags.Usage = func() {}
	c.flags.StringVar(&c.configFile, "config", "", "")
	c.flags.BoolVar(&c.checkConfig, "check-config", false, "")
	c.flags.BoolVar(&c.version, "version", false, "")
	c.flags.BoolVarP(&c.help, "help", "h", false, "")
	var console cli.ConsoleFlags
	c.flags.BoolVar(&console.ReadOnly, "read-only", false, "")
	c.flags.BoolVar(&console.TakeOver, "take-over", false, "")
	config.AddFlags(c.flags)
	if err := c.flags.Parse(args); err != nil {
		return c, fmt.Errorf("%w; see vmand --help", err)
	}
	var err error
	c.command, err = cli.Parse(c.flags.Args(), console)
	return c, err
}

// sources returns where the settings come from.
func (c commandLine) sources() config.Sources {
	return config.Sources{Flags: c.flags, File: c.configFile, Defaults: configYAML}
}

// answer returns the text that --help or --version requests, "" for neither.
func (c commandLine) answer() string {
	switch {
	case c.help:
		return usage + cli.Usage + usageFlags + config.Help(configYAML)
	case c.version:
		return fmt.Sprintf("vmand %s (commit %s, %s)\n", version, commit, date)
	}
	return ""
}

const usage = `vmand runs the QEMU virtual machines of this host and serves the REST API that manages
them. It needs no configuration. Stopping vmand does not stop the VMs.

Usage:
  vmand [flags]
`

const usageFlags = `
  --config FILE    read settings from FILE instead of ` + config.DefaultFile + `
  --check-config   validate the configuration and exit
  --version        print the version
  -h, --help       print this help

Each setting is a flag, an environment variable and a key of the configuration file.
Flags override variables, variables override the file.
`

// hostOf returns the functions that the client commands use on this host.
func hostOf(cfg config.Config) cli.Host {
	state, run := cfg.Directories()
	database := filepath.Join(state, databaseFile)
	return cli.Host{
		Socket: cfg.Socket,
		Guests: cli.GuestsOptions{Parallel: cfg.GuestsParallel, Limit: cfg.GuestsStopLimit},
		Backup: func(ctx context.Context, file string) (string, error) {
			return database, store.Copy(ctx, database, file)
		},
		Restore: func(ctx context.Context, file string) (string, error) {
			return restore(ctx, state, file)
		},
		Teardown: func(ctx context.Context) ([]string, error) {
			if cfg.DryRun { // has set up nothing
				return nil, nil
			}
			return network.Teardown(ctx, run, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
}

// restore replaces the database in the state directory, which no daemon may be
// using, with a backup.
func restore(ctx context.Context, state, file string) (kept string, err error) {
	if err := makeDir(state, 0o700); err != nil {
		return "", fmt.Errorf("state_dir: %w", err)
	}
	lock, err := lockDir(state)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	return store.Restore(ctx, filepath.Join(state, databaseFile), file)
}
