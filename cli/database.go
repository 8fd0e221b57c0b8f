package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
)

func backup(ctx context.Context, h Host, file string, out io.Writer) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	database, err := h.Backup(ctx, file)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "copied the database %s to %s\n", database, file)
	return err
}

func restore(ctx context.Context, h Host, file string, out io.Writer) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	kept, err := h.Restore(ctx, file)
	if err != nil {
		return err
	}
	previous := "there was no previous database"
	if kept != "" {
		previous = "the previous database is kept as " + kept
	}
	_, err = fmt.Fprintf(out, "restored the database from %s; %s\n"+
		"start vmand to manage the running VMs again\n", file, previous)
	return err
}
