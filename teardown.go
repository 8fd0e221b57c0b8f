package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"vmand/network"
)

// manageNetworks carries out "vmand network teardown": it removes from the host
// what vmand has made for its networks. What is recorded stays: the next vmand
// makes it again.
func manageNetworks(ctx context.Context, cfg Config, verb string, stdout io.Writer) error {
	if verb != "teardown" {
		return fmt.Errorf("vmand network %s: it knows teardown alone", verb)
	}
	_, run := cfg.directories()
	removed, err := network.Teardown(ctx, run, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	for _, what := range removed {
		fmt.Fprintln(stdout, "removed", what)
	}
	if err != nil {
		return fmt.Errorf("network teardown: %w", err)
	}
	if len(removed) == 0 {
		_, err = fmt.Fprintln(stdout, "there was nothing to remove")
	}
	return err
}
