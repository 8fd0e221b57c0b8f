package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// Apply records c, which it only reads: who wants to know what the store has
// set asks for the row. Disks are updated in the order given, and what is to be
// forgotten goes last, so one change can take the disks off a VM and delete it,
// and its template, its network and its image.
//
// A VM, a disk or an image that is to be updated and is gone counts as changed meanwhile;
// what is to be deleted and is gone is not found.
func (s *Store) Apply(ctx context.Context, c vm.Change) error {
	if c.NewVM != nil || c.VM != nil || c.DeleteVM != "" {
		defer s.cache.drop() // also after an error: the commit may have been done
	}
	learned := false
	defer func() {
		if learned {
			s.cache.drop()
		}
	}()
	return s.write(ctx, func(tx *sqlx.Tx) error {
		now := time.Now()
		if c.Operation != nil {
			if err := putOperation(ctx, tx, *c.Operation, now); err != nil {
				return err
			}
		}
		if c.NewTemplate != nil {
			if err := insertTemplate(ctx, tx, *c.NewTemplate, now); err != nil {
				return err
			}
		}
		if err := applyNetworks(ctx, tx, c, now); err != nil {
			return err
		}
		if err := applyImages(ctx, tx, c, now); err != nil {
			return err
		}
		if err := applyVM(ctx, tx, c, now); err != nil {
			return err
		}
		for _, l := range c.Learned {
			news, err := learn(ctx, tx, l, now)
			if err != nil {
				return err
			}
			learned = learned || news
		}
		if err := forget(ctx, tx, c); err != nil {
			return err
		}
		return appendEvents(ctx, tx, c.Events, now)
	})
}

// forget deletes what VMs and disks are made of.
func forget(ctx context.Context, tx *sqlx.Tx, c vm.Change) error {
	if c.DeleteTemplate != "" {
		if err := deleteTemplate(ctx, tx, c.DeleteTemplate); err != nil {
			return err
		}
	}
	if c.DeleteNetwork != "" {
		if err := deleteNetwork(ctx, tx, c.DeleteNetwork); err != nil {
			return err
		}
	}
	if c.DeleteImage != "" {
		return deleteImage(ctx, tx, c.DeleteImage)
	}
	return nil
}

// applyVM records what c has of VMs, their seeds and disks.
func applyVM(ctx context.Context, tx *sqlx.Tx, c vm.Change, now time.Time) error {
	if c.NewVM != nil {
		if err := insertVM(ctx, tx, *c.NewVM, now); err != nil {
			return err
		}
	}
	if c.VM != nil {
		if err := updateVM(ctx, tx, *c.VM, now); err != nil {
			return err
		}
	}
	if c.Seed != nil {
		if err := putSeed(ctx, tx, *c.Seed); err != nil {
			return err
		}
	}
	if err := applyDisks(ctx, tx, c, now); err != nil {
		return err
	}
	if c.DeleteVM != "" {
		return deleteVM(ctx, tx, c.DeleteVM)
	}
	return nil
}

func applyDisks(ctx context.Context, tx *sqlx.Tx, c vm.Change, now time.Time) error {
	if c.NewDisk != nil {
		if err := insertDisk(ctx, tx, *c.NewDisk, now); err != nil {
			return err
		}
	}
	for _, u := range c.Disks {
		if err := updateDisk(ctx, tx, u, now); err != nil {
			return err
		}
	}
	if c.DeleteDisk != "" {
		return deleteDisk(ctx, tx, c.DeleteDisk)
	}
	return nil
}

// errNoRow says that a change or a read met no row.
var errNoRow = errors.New("no such row")

// change runs a statement that has to change a row.
func change(ctx context.Context, tx *sqlx.Tx, query string, args ...any) error {
	res, err := tx.ExecContext(ctx, query, args...)
	return changed(res, err)
}

// changeNamed is change with the arguments in the fields of one struct.
func changeNamed(ctx context.Context, tx *sqlx.Tx, query string, arg any) error {
	res, err := tx.NamedExecContext(ctx, query, arg)
	return changed(res, err)
}

func changed(res sql.Result, err error) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return errNoRow
	}
	return err
}

// overtaken returns the fault of a row that is not in the state it was in when
// it was read.
func overtaken(kind, id, from string) error {
	return &vm.Fault{Code: vm.CodeBusy, Detail: fmt.Sprintf("%s %s is no longer %s: something else changed it", kind, id, from),
		Hint: "look at it again and retry"}
}
