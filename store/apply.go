package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmand/vm"
)

// Apply records c, which it only reads, and returns the rows it wrote. It updates
// disks in the order given and deletes last, so one change can detach the disks
// of a VM and delete the VM, its template, its network and its image.
//
// An update of a VM, a disk or an image that does not exist fails as if the row
// had changed meanwhile; a deletion fails with [vm.ErrNotFound].
func (s *Store) Apply(ctx context.Context, c vm.Change) (vm.Applied, error) {
	var done vm.Applied
	err := s.write(ctx, func(tx *transaction) (err error) {
		done, err = applyIn(ctx, tx, c, time.Now())
		return err
	})
	s.noteChange(c, done, err)
	if err != nil {
		return vm.Applied{}, err
	}
	return done, nil
}

// applyIn is [Store.Apply] inside a transaction. It writes a row after the rows that it
// refers to, and deletes it before them.
func applyIn(ctx context.Context, tx *transaction, c vm.Change, now time.Time) (done vm.Applied, err error) {
	if c.Operation != nil {
		if err := putOperation(ctx, tx, *c.Operation, now); err != nil {
			return done, err
		}
	}
	if err := applyParts(ctx, tx, c, now, &done); err != nil {
		return done, err
	}
	if err := applyVM(ctx, tx, c, now, &done); err != nil {
		return done, err
	}
	if err := applyDisks(ctx, tx, c, now, &done); err != nil {
		return done, err
	}
	if err := applyLearned(ctx, tx, c, now, &done); err != nil {
		return done, err
	}
	if err := deleteRows(ctx, tx, c, &done); err != nil {
		return done, err
	}
	return done, appendEvents(ctx, tx, c.Events, now)
}

// applyParts records the template, the network and the image of c.
func applyParts(ctx context.Context, tx *transaction, c vm.Change, now time.Time, done *vm.Applied) (err error) {
	if c.NewTemplate != nil {
		if done.Template, err = written(insertTemplate(ctx, tx, *c.NewTemplate, now)); err != nil {
			return err
		}
	}
	if c.NewNetwork != nil {
		if done.Network, err = written(insertNetwork(ctx, tx, *c.NewNetwork, now)); err != nil {
			return err
		}
	}
	if c.Network != nil {
		if done.Network, err = written(updateNetwork(ctx, tx, *c.Network, now)); err != nil {
			return err
		}
	}
	if c.NewImage != nil {
		if done.Image, err = written(insertImage(ctx, tx, *c.NewImage, now)); err != nil {
			return err
		}
	}
	if c.Image != nil {
		done.Image, err = written(updateImage(ctx, tx, *c.Image, now))
	}
	return err
}

// applyVM records the VM of c and its seed.
func applyVM(ctx context.Context, tx *transaction, c vm.Change, now time.Time, done *vm.Applied) (err error) {
	if c.NewVM != nil {
		if done.VM, err = written(insertVM(ctx, tx, *c.NewVM, now)); err != nil {
			return err
		}
	}
	if c.VM != nil {
		if done.VM, err = written(updateVM(ctx, tx, *c.VM, now)); err != nil {
			return err
		}
	}
	if c.Seed != nil {
		return putSeed(ctx, tx, *c.Seed)
	}
	return nil
}

// applyDisks records the new disk of c, then its updates in their order.
func applyDisks(ctx context.Context, tx *transaction, c vm.Change, now time.Time, done *vm.Applied) error {
	if c.NewDisk != nil {
		d, err := insertDisk(ctx, tx, *c.NewDisk, now)
		if err != nil {
			return err
		}
		done.Disks = append(done.Disks, d)
	}
	for _, u := range c.Disks {
		d, err := updateDisk(ctx, tx, u, now)
		if err != nil {
			return err
		}
		done.Disks = append(done.Disks, d)
	}
	return nil
}

// applyLearned records what c has learned of guests.
func applyLearned(ctx context.Context, tx *transaction, c vm.Change, now time.Time, done *vm.Applied) error {
	for _, l := range c.Learned {
		v, err := learn(ctx, tx, l, now)
		if err != nil {
			return err
		}
		if v == nil {
			continue
		}
		done.Learned = append(done.Learned, *v)
		if done.VM != nil && done.VM.ID == v.ID {
			done.VM = v
		}
	}
	return nil
}

// deleteRows deletes what c deletes, from the database and from done.
func deleteRows(ctx context.Context, tx *transaction, c vm.Change, done *vm.Applied) error {
	for _, d := range []struct {
		name string
		row  func(ctx context.Context, tx *transaction, name string) error
	}{
		{c.DeleteDisk, deleteDisk},
		{c.DeleteVM, deleteVM},
		{c.DeleteTemplate, deleteTemplate},
		{c.DeleteNetwork, deleteNetwork},
		{c.DeleteImage, deleteImage},
	} {
		if d.name == "" {
			continue
		}
		if err := d.row(ctx, tx, d.name); err != nil {
			return err
		}
	}
	if done.Template != nil && done.Template.Name == c.DeleteTemplate {
		done.Template = nil
	}
	if done.Network != nil && done.Network.Name == c.DeleteNetwork {
		done.Network = nil
	}
	if done.Image != nil && done.Image.Name == c.DeleteImage {
		done.Image = nil
	}
	if done.VM != nil && done.VM.ID == c.DeleteVM {
		done.VM = nil
	}
	done.Disks = without(done.Disks, func(d vm.Disk) bool { return d.ID == c.DeleteDisk })
	done.Learned = without(done.Learned, func(v vm.VM) bool { return v.ID == c.DeleteVM })
	return nil
}

// without is [slices.DeleteFunc], but returns nil if nothing is left.
func without[T any](list []T, del func(T) bool) []T {
	if list = slices.DeleteFunc(list, del); len(list) == 0 {
		return nil
	}
	return list
}

// written returns a pointer to a row that was written, nil with an error.
func written[T any](row T, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return &row, nil
}

// errNoRow means that a change or a read matched no row.
var errNoRow = errors.New("no such row")

// change runs a statement and returns errNoRow if it changed no row.
func change(ctx context.Context, tx *transaction, query string, args ...any) error {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		return errNoRow
	}
	return err
}

// overtaken returns the fault of a row that is no longer in the state it was read
// in.
func overtaken(kind, id, from string) error {
	return &vm.Fault{
		Code:   vm.CodeBusy,
		Detail: fmt.Sprintf("%s %s is no longer %s: something else changed it", kind, id, from),
		Hint:   "read it again and retry",
	}
}
