package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmand/vm"
)

var diskTable = newTable("disks",
	column[vm.Disk]{"seq", readOnly, func(d *vm.Disk) any { return (*integer64)(&d.Seq) }},
	column[vm.Disk]{"id", fixed, func(d *vm.Disk) any { return &d.ID }},
	column[vm.Disk]{"size_mib", mutable, func(d *vm.Disk) any { return (*integer64)(&d.SizeMiB) }},
	column[vm.Disk]{"size_short", mutable, func(d *vm.Disk) any { return (*integer64)(&d.ShortBytes) }},
	column[vm.Disk]{"image", mutable, func(d *vm.Disk) any { return (*text)(&d.Image) }},
	column[vm.Disk]{"base", mutable, func(d *vm.Disk) any { return (*text)(&d.Base) }},
	column[vm.Disk]{"base_format", mutable, func(d *vm.Disk) any { return (*text)(&d.BaseFormat) }},
	column[vm.Disk]{"mount_point", mutable, func(d *vm.Disk) any { return (*text)(&d.MountPoint) }},
	column[vm.Disk]{"slot", writeOnly, slotOf},
	column[vm.Disk]{"state", mutable, func(d *vm.Disk) any { return (*string)(&d.State) }},
	column[vm.Disk]{"reason", mutable, func(d *vm.Disk) any { return (*text)(&d.Reason) }},
	column[vm.Disk]{"vm_id", mutable, func(d *vm.Disk) any { return (*text)(&d.VMID) }},
	column[vm.Disk]{"created_at", fixed, func(d *vm.Disk) any { return (*instant)(&d.CreatedAt) }},
	column[vm.Disk]{"updated_at", mutable, func(d *vm.Disk) any { return (*instant)(&d.UpdatedAt) }},
	column[vm.Disk]{"revision", counter, func(d *vm.Disk) any { return (*integer64)(&d.Revision) }},
)

// slotOf returns the LUN of a disk on a VM, nil for none. A unique index keeps two
// disks out of one slot.
func slotOf(d *vm.Disk) any {
	if lun, ok := vm.Slot(d.MountPoint); ok && d.VMID != "" {
		return lun
	}
	return nil
}

// Disk returns one data disk.
func (s *Store) Disk(ctx context.Context, id string) (vm.Disk, error) {
	return one(ctx, s, "disk", id, diskTable.all+" WHERE id = ?", diskTable.scan)
}

// Disks returns a page of the data disks that f selects.
func (s *Store) Disks(ctx context.Context, f vm.DiskFilter, p vm.Page) ([]vm.Disk, error) {
	q := from("disks")
	q.and("state = ?", string(f.State))
	q.and("vm_id = ?", f.VMID)
	query, args := q.sql(diskTable.list, p)
	return list(ctx, s, query, args, p.Limit, diskTable.scanner())
}

func insertDisk(ctx context.Context, tx *transaction, d vm.Disk, now time.Time) (vm.Disk, error) {
	if d.CreatedAt.IsZero() {
		d.CreatedAt = now
	}
	d.UpdatedAt = now
	row, err := diskTable.insertRow(ctx, tx, d)
	switch {
	case duplicate(err):
		var known bool
		if e := tx.GetContext(ctx, &known, `SELECT EXISTS (SELECT 1 FROM disks WHERE id = ?)`, d.ID); e != nil {
			return row, e
		}
		if !known {
			return row, slotTaken(d, err)
		}
		return row, &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("disk %s already exists", d.ID), Err: err}
	case dangling(err):
		return row, vm.NotFound("VM", d.VMID)
	}
	return row, err
}

func updateDisk(ctx context.Context, tx *transaction, u vm.DiskUpdate, now time.Time) (vm.Disk, error) {
	u.Disk.UpdatedAt = now
	row, err := diskTable.updateRow(ctx, tx, u.Disk, "id = ? AND state = ?", u.Disk.ID, string(u.From))
	switch {
	case errors.Is(err, errNoRow):
		return row, overtaken("disk", u.Disk.ID, string(u.From))
	case duplicate(err): // the id does not change, so it is the slot
		return row, slotTaken(u.Disk, err)
	case dangling(err):
		return row, vm.NotFound("VM", u.Disk.VMID)
	}
	return row, err
}

func deleteDisk(ctx context.Context, tx *transaction, id string) error {
	err := change(ctx, tx, `DELETE FROM disks WHERE id = ?`, id)
	if errors.Is(err, errNoRow) {
		return vm.NotFound("disk", id)
	}
	return err
}

func slotTaken(d vm.Disk, err error) error {
	return &vm.Fault{
		Code:   vm.CodeInUse,
		Detail: fmt.Sprintf("mount point %s of VM %s is in use by another disk", d.MountPoint, d.VMID),
		Hint:   "leave mount_point out to get the next free one",
		Err:    err,
	}
}
