// Command vmt is the tool of the end-to-end tests in the guest and in network namespaces. It
// runs commands for the host, serves echo, discard, chargen and HTTP, sends and captures raw
// frames, and holds and measures TCP connections.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// commands are the subcommands. Each returns at the latest when its context is done, which is
// on SIGTERM.
var commands = map[string]func(ctx context.Context, args []string) error{
	"agent":   agent,
	"serve":   serve,
	"send":    send,
	"capture": capture,
	"hold":    hold,
	"push":    push,
	"pull":    pull,
	"dhcp6":   dhcp6,
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vmt:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || commands[args[0]] == nil {
		var names []string
		for name := range commands {
			names = append(names, name)
		}
		slices.Sort(names)
		return fmt.Errorf("usage: vmt %s ARGUMENTS", strings.Join(names, "|"))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return commands[args[0]](ctx, args[1:])
}

// pause returns after d or when ctx is done.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
