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

const diskColumns = `seq, id, size_mib, image, base, base_format, mount_point, state, reason, vm_id, created_at, updated_at, revision`

type diskRow struct {
	Seq        int64         `db:"seq"`
	ID         string        `db:"id"`
	SizeMiB    int64         `db:"size_mib"`
	Image      text          `db:"image"`
	Base       text          `db:"base"`
	BaseFormat text          `db:"base_format"`
	MountPoint text          `db:"mount_point"`
	Slot       sql.NullInt64 `db:"slot"` // written, never read: it keeps two disks out of one slot
	State      string        `db:"state"`
	Reason     text          `db:"reason"`
	VMID       text          `db:"vm_id"`
	CreatedAt  instant       `db:"created_at"`
	UpdatedAt  instant       `db:"updated_at"`
	Revision   int64         `db:"revision"`
}

func diskRowOf(d vm.Disk, now time.Time) diskRow {
	if d.CreatedAt.IsZero() {
		d.CreatedAt = now
	}
	r := diskRow{ID: d.ID, SizeMiB: d.SizeMiB, Image: text(d.Image), Base: text(d.Base), BaseFormat: text(d.BaseFormat),
		MountPoint: text(d.MountPoint), State: string(d.State), Reason: text(d.Reason), VMID: text(d.VMID), CreatedAt: instant(d.CreatedAt), UpdatedAt: instant(now)}
	if lun, ok := vm.Slot(d.MountPoint); ok && d.VMID != "" {
		r.Slot = sql.NullInt64{Int64: int64(lun), Valid: true}
	}
	return r
}

func (r diskRow) disk() vm.Disk {
	return vm.Disk{Seq: r.Seq, ID: r.ID,
		DiskFile:   vm.DiskFile{SizeMiB: r.SizeMiB, Image: string(r.Image), Base: string(r.Base), BaseFormat: string(r.BaseFormat)},
		MountPoint: string(r.MountPoint), State: vm.DiskState(r.State), Reason: string(r.Reason), VMID: string(r.VMID),
		CreatedAt: time.Time(r.CreatedAt), UpdatedAt: time.Time(r.UpdatedAt), Revision: r.Revision}
}

// Disk returns one data disk.
func (s *Store) Disk(ctx context.Context, id string) (vm.Disk, error) {
	var r diskRow
	err := s.one(ctx, "disk", id, `SELECT `+diskColumns+` FROM disks WHERE id = ?`, func(row *sqlx.Row) error {
		return row.StructScan(&r)
	})
	return r.disk(), err
}

// Disks returns a page of the data disks that f selects.
func (s *Store) Disks(ctx context.Context, f vm.DiskFilter, p vm.Page) ([]vm.Disk, error) {
	q := after(p)
	q.and("state = ?", string(f.State))
	q.and("vm_id = ?", f.VMID)
	query, args := q.sql(diskColumns, "disks", p)
	return list(ctx, s, query, args, p.Limit, func(rows *sqlx.Rows) (vm.Disk, error) {
		var r diskRow
		err := rows.StructScan(&r)
		return r.disk(), err
	})
}

func insertDisk(ctx context.Context, tx *sqlx.Tx, d vm.Disk, now time.Time) error {
	_, err := tx.NamedExecContext(ctx, `
		INSERT INTO disks (id, size_mib, image, base, base_format, mount_point, slot, state, reason, vm_id, created_at, updated_at, revision)
		VALUES (:id, :size_mib, :image, :base, :base_format, :mount_point, :slot, :state, :reason, :vm_id, :created_at, :updated_at, 1)`, diskRowOf(d, now))
	switch {
	case duplicate(err):
		var known bool
		if e := tx.GetContext(ctx, &known, `SELECT EXISTS (SELECT 1 FROM disks WHERE id = ?)`, d.ID); e != nil {
			return e
		}
		if !known {
			return slotTaken(d, err)
		}
		return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("disk %q already exists", d.ID), Err: err}
	case dangling(err):
		return vm.NotFound("VM", d.VMID)
	}
	return err
}

func updateDisk(ctx context.Context, tx *sqlx.Tx, u vm.DiskUpdate, now time.Time) error {
	err := changeNamed(ctx, tx, `
		UPDATE disks SET size_mib = :size_mib, image = :image, base = :base, base_format = :base_format,
			mount_point = :mount_point, slot = :slot, state = :state, reason = :reason, vm_id = :vm_id, updated_at = :updated_at, revision = revision + 1
		WHERE id = :id AND state = :from`, struct {
		diskRow
		From string `db:"from"`
	}{diskRowOf(u.Disk, now), string(u.From)})
	switch {
	case errors.Is(err, errNoRow):
		return overtaken("disk", u.Disk.ID, string(u.From))
	case duplicate(err): // the id does not change: it is the slot
		return slotTaken(u.Disk, err)
	case dangling(err):
		return vm.NotFound("VM", u.Disk.VMID)
	}
	return err
}

func deleteDisk(ctx context.Context, tx *sqlx.Tx, id string) error {
	err := change(ctx, tx, `DELETE FROM disks WHERE id = ?`, id)
	if errors.Is(err, errNoRow) {
		return vm.NotFound("disk", id)
	}
	return err
}

func slotTaken(d vm.Disk, err error) error {
	return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("mount point %s of vm %s is in use by another disk", d.MountPoint, d.VMID),
		Hint: "leave mount_point out to get the next free one", Err: err}
}
