// Command vmand manages the QEMU virtual machines of one host through a REST
// API. Stopping vmand does not stop the VMs; starting it finds them again.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vmand:", err)
		os.Exit(1)
	}
}

func run(args []string) (err error) {
	// What vmand makes is nobody else's, unless it says otherwise.
	syscall.Umask(0o077)
	line, err := parseArgs(args)
	switch {
	case err != nil:
		return err
	case line.help:
		_, err = fmt.Print(usage())
		return err
	case line.version:
		_, err = fmt.Println("vmand", version)
		return err
	}
	cfg, err := readConfig(line.settings, os.Environ(), line.file)
	if err != nil {
		return err
	}
	if line.check {
		_, err = fmt.Println("the configuration can be used")
		return err
	}
	// The first signal asks for an orderly end; stop gives the second one back
	// its default, which ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	c, err := newContainer(ctx, cfg, cfg.logger(os.Stderr))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return c.run(ctx)
}
