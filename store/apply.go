package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// Apply records c, which it only reads, and returns the rows it wrote. It updates
// disks in the order given and deletes last, so one change can detach the disks
// of a VM and delete the VM, its template, its network and its image.
//
// An update of a VM, a disk or an image that does not exist fails as if the row
// had changed meanwhile; a deletion fails with [vm.ErrNotFound].
func (s *Store) Apply(ctx context.Context, c vm.Change) (vm.Applied, error) {
	if c.NewVM != nil || c.VM != nil || c.DeleteVM != "" {
		defer s.cache.drop() // also after an error: the commit may have been done
	}
	var done vm.Applied
	defer func() {
		if len(done.Learned) > 0 {
			s.cache.drop()
		}
	}()
	err := s.write(ctx, func(tx *sqlx.Tx) error {
		done = vm.Applied{}
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
		var learned []string
		for _, l := range c.Learned {
			news, err := learn(ctx, tx, l, now)
			if err != nil {
				return err
			}
			if news {
				learned = append(learned, l.VMID)
			}
		}
		if err := forget(ctx, tx, c); err != nil {
			return err
		}
		if err := appendEvents(ctx, tx, c.Events, now); err != nil {
			return err
		}
		return readBack(ctx, tx, c, learned, &done)
	})
	if err != nil {
		return vm.Applied{}, err
	}
	return done, nil
}

// readBack fills done with the rows that c wrote and that still exist. learned
// lists the VMs that c.Learned changed.
func readBack(ctx context.Context, tx *sqlx.Tx, c vm.Change, learned []string, done *vm.Applied) (err error) {
	if t := c.NewTemplate; t != nil {
		done.Template, err = rowInTx(ctx, tx, templateByName, t.Name, scanTemplate)
	}
	if v := cmp.Or(c.NewVM, updated(c.VM)); v != nil && err == nil {
		done.VM, err = rowInTx(ctx, tx, vmByID, v.ID, scanVM)
	}
	for _, id := range diskIDs(c) {
		var d *vm.Disk
		if err == nil {
			d, err = rowInTx(ctx, tx, diskByID, id, scanDisk)
		}
		if d != nil {
			done.Disks = append(done.Disks, *d)
		}
	}
	if c.NewImage != nil && err == nil {
		done.Image, err = rowInTx(ctx, tx, imageByName, c.NewImage.Name, scanImage)
	}
	if c.Image != nil && err == nil {
		done.Image, err = rowInTx(ctx, tx, imageByName, c.Image.Image.Name, scanImage)
	}
	if n := cmp.Or(c.NewNetwork, c.Network); n != nil && err == nil {
		done.Network, err = rowInTx(ctx, tx, networkByName, n.Name, scanNetwork)
	}
	for _, id := range learned {
		var v *vm.VM
		if err == nil {
			v, err = rowInTx(ctx, tx, vmByID, id, scanVM)
		}
		if v != nil {
			done.Learned = append(done.Learned, *v)
		}
	}
	return err
}

// updated returns the VM in u, nil if u is nil.
func updated(u *vm.VMUpdate) *vm.VM {
	if u == nil {
		return nil
	}
	return &u.VM
}

// diskIDs returns the ids of the disks that c inserts and updates.
func diskIDs(c vm.Change) (ids []string) {
	if c.NewDisk != nil {
		ids = append(ids, c.NewDisk.ID)
	}
	for _, u := range c.Disks {
		ids = append(ids, u.Disk.ID)
	}
	return ids
}

// rowInTx returns the row of a query inside tx, or nil if there is none.
func rowInTx[T any](ctx context.Context, tx *sqlx.Tx, query, id string, scan func(scanner) (T, error)) (*T, error) {
	row, err := scan(tx.QueryRowxContext(ctx, query, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &row, err
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
