// Command vmand manages the QEMU virtual machines of one host through a REST
// API. Stopping vmand does not stop the VMs; starting it finds them again.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "vmand:", err)
		os.Exit(1)
	}
}

// run does what the command line asks for, and returns when it is told to stop.
func run(args []string, stdout io.Writer) error {
	// What vmand makes is nobody else's, unless it says otherwise.
	syscall.Umask(0o077)
	line, err := parseArgs(args)
	if err != nil {
		return err
	}
	if text := line.answer(); text != "" {
		_, err = io.WriteString(stdout, text)
		return err
	}
	cfg, err := readConfig(line.settings, os.Environ(), line.file)
	if err != nil {
		return err
	}
	if line.check {
		_, err = fmt.Fprintln(stdout, "the configuration can be used")
		return err
	}
	// The first signal asks for an orderly end; stop gives the second one back
	// its default, which ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if line.command == consoleCommand {
		return console(ctx, cfg, line.operand, line.console, standard{os.Stdin, os.Stdout, os.Stderr})
	}
	if command := commands[line.command]; command != nil {
		return command(ctx, cfg, line.operand, stdout)
	}
	return serve(ctx, cfg)
}
