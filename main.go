// Command vmand manages the QEMU virtual machines of one host through a REST
// API. Stopping vmand does not stop the VMs; starting it finds them again.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"vmand/cli"
	"vmand/config"
	"vmand/store"
)

// These are set by the linker, from scripts/version.sh.
var (
	version = "unknown"
	commit  = "unknown"
	date    = "unknown" // of the commit
)

func main() {
	std := cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	if args, ok := clientArgs(os.Args); ok {
		os.Exit(cli.Main(args, std, version))
	}
	if err := run(os.Args[1:], std); err != nil {
		fmt.Fprintln(os.Stderr, "vmand:", err)
		os.Exit(statusOf(err))
	}
}

// clientArgs returns the arguments of the client, and whether it is called: as vman, or as
// vmand vman.
func clientArgs(args []string) ([]string, bool) {
	if len(args) > 0 && filepath.Base(args[0]) == "vman" {
		return args[1:], true
	}
	if len(args) > 1 && args[1] == "vman" {
		return args[2:], true
	}
	return nil, false
}

// exitConfig is the exit status for an invalid configuration (sysexits.h, EX_CONFIG),
// after which a service manager must not start vmand again.
const exitConfig = 78

// exitNewer is the exit status for a database of a newer vmand (EX_DATAERR), after
// which a service manager must not start vmand again, either.
const exitNewer = 65

// errConfig marks an invalid configuration.
type errConfig struct{ error }

// statusOf returns the exit status for an error.
func statusOf(err error) int {
	switch {
	case errors.As(err, new(errConfig)):
		return exitConfig
	case errors.Is(err, store.ErrNewer):
		return exitNewer
	}
	return 1
}

// run executes the command line. It returns when the command is done, or, for the
// daemon, after SIGINT or SIGTERM.
func run(args []string, std cli.Streams) error {
	syscall.Umask(0o077) // files are private unless created with another mode on purpose
	line, err := parseArgs(args)
	if err != nil {
		return err
	}
	if text := line.answer(); text != "" {
		_, err = io.WriteString(std.Out, text)
		return err
	}
	read := func() (config.Config, error) { return config.Read(line.sources()) }
	cfg, err := read()
	if err != nil {
		return errConfig{err}
	}
	if line.checkConfig {
		for _, warning := range cfg.Warnings {
			fmt.Fprintln(std.Err, "warning:", warning)
		}
		_, err = fmt.Fprintln(std.Out, "the configuration is valid")
		return err
	}
	// The first signal requests an orderly end. It also calls stop, so a second
	// signal has its default effect and ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if line.command != nil {
		return line.command.Run(ctx, hostOf(cfg), std)
	}
	return serve(ctx, read)
}
