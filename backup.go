package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"vmand/store"
	"vmand/vm"
)

// commands are what vmand does in place of serving, by the word that asks for it.
var commands = map[string]func(ctx context.Context, cfg Config, file string, stdout io.Writer) error{
	"backup":  backup,
	"restore": restore,
	"network": manageNetworks,
}

// backup copies the database to a new file, whether a vmand uses it or not.
func backup(ctx context.Context, cfg Config, file string, stdout io.Writer) error {
	state, _ := cfg.directories()
	database := filepath.Join(state, databaseFile)
	file, err := filepath.Abs(file)
	if err == nil {
		err = store.Copy(ctx, database, file)
	}
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "the database %s is backed up to %s\n", database, file)
	return err
}

// restore puts a backup in the place of the database, which no vmand may use,
// and keeps what was there.
func restore(ctx context.Context, cfg Config, file string, stdout io.Writer) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore: %w", err)
		}
	}()
	file, err = filepath.Abs(file)
	if err != nil {
		return err
	}
	state, _ := cfg.directories()
	if err := makeDir(state, 0o700); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	lock, err := lockDir(state)
	if err != nil {
		return err
	}
	defer lock.Close()
	database := filepath.Join(state, databaseFile)
	dir, err := os.MkdirTemp(state, ".restore-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ready := filepath.Join(dir, databaseFile)
	if err := prepare(ctx, file, ready, database); err != nil {
		return err
	}
	keep := database + ".before-restore-" + time.Now().UTC().Format("20060102T150405.000Z")
	if err := store.Replace(ctx, database, ready, keep); err != nil {
		return err
	}
	if _, err := os.Lstat(keep); err != nil {
		keep = "nothing"
	}
	_, err = fmt.Fprintf(stdout, "%s is restored; what was there before is kept: %s\nstart vmand: it finds the VMs that run\n", file, keep)
	return err
}

// prepare makes of a backup the database to go on with. That is checked by
// opening it; present is the one it is to replace.
func prepare(ctx context.Context, file, ready, present string) error {
	if err := store.Check(ctx, file); err != nil {
		return err
	}
	if err := store.Copy(ctx, file, ready); err != nil {
		return err
	}
	// A client that has read the events goes on after their last number, so none
	// may be given out again. That cannot be had from a database that is damaged.
	if store.Check(ctx, present) == nil {
		if err := store.RaiseNumbers(ctx, ready, present); err != nil {
			return err
		}
	}
	s, err := store.Open(ctx, store.Options{Path: ready})
	if err != nil {
		return err
	}
	return errors.Join(dropIntents(ctx, s), s.Close())
}

// dropIntents ends what was on its way when the backup was taken. To finish it
// now, as after a crash, could destroy what was made since: a VM that was being
// created then may be in use today, and a disk be back that was being detached.
func dropIntents(ctx context.Context, s *store.Store) error {
	open, err := s.Operations(ctx, vm.OperationFilter{Open: true}, vm.Page{})
	if err != nil {
		return err
	}
	at := time.Now().UTC()
	for _, op := range open {
		op.State, op.Progress, op.FinishedAt = vm.OpFailed, nil, at
		op.Problem = &vm.Problem{Code: vm.CodeInterrupted, Detail: "the operation was on its way in a backup that was restored"}
		op.Log = append(op.Log, vm.LogLine{At: at, Step: "restored", Message: "the database was restored from a backup"})
		if _, err := s.Apply(ctx, vm.Change{Operation: &op}); err != nil {
			return err
		}
	}
	disks, err := s.Disks(ctx, vm.DiskFilter{}, vm.Page{})
	if err != nil {
		return err
	}
	for _, d := range disks {
		var c vm.Change
		switch d.State {
		case vm.DiskCreating:
			c.DeleteDisk = d.ID
		case vm.DiskDetaching:
			d.State, d.Reason = vm.DiskAttached, ""
			c.Disks = []vm.DiskUpdate{{From: vm.DiskDetaching, Disk: d}}
		default:
			continue
		}
		if _, err := s.Apply(ctx, c); err != nil {
			return err
		}
	}
	return nil
}
