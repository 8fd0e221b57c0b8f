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

const diskColumns = `seq, id, size_mib, mount_point, state, reason, vm_id, created_at, updated_at, revision`

type diskRow struct {
	Seq        int64          `db:"seq"`
	ID         string         `db:"id"`
	SizeMiB    int64          `db:"size_mib"`
	MountPoint string         `db:"mount_point"`
	Slot       sql.NullInt64  `db:"slot"` // written, never read: it keeps two disks out of one slot
	State      string         `db:"state"`
	Reason     string         `db:"reason"`
	VMID       sql.NullString `db:"vm_id"`
	CreatedAt  int64          `db:"created_at"`
	UpdatedAt  int64          `db:"updated_at"`
	Revision   int64          `db:"revision"`
}

func diskRowOf(d vm.Disk) diskRow {
	r := diskRow{ID: d.ID, SizeMiB: d.SizeMiB, MountPoint: d.MountPoint, State: string(d.State), Reason: d.Reason,
		VMID: sql.NullString{String: d.VMID, Valid: d.VMID != ""}, CreatedAt: millis(d.CreatedAt)}
	if lun, ok := vm.Slot(d.MountPoint); ok && r.VMID.Valid {
		r.Slot = sql.NullInt64{Int64: int64(lun), Valid: true}
	}
	return r
}

func (r diskRow) disk() vm.Disk {
	return vm.Disk{Seq: r.Seq, ID: r.ID, SizeMiB: r.SizeMiB, MountPoint: r.MountPoint, State: vm.DiskState(r.State), Reason: r.Reason,
		VMID: r.VMID.String, CreatedAt: instant(r.CreatedAt), UpdatedAt: instant(r.UpdatedAt), Revision: r.Revision}
}

// Disk returns one data disk.
func (s *Store) Disk(ctx context.Context, id string) (vm.Disk, error) {
	var r diskRow
	if err := s.get(ctx, &r, "disk", id, `SELECT `+diskColumns+` FROM disks WHERE id = ?`); err != nil {
		return vm.Disk{}, err
	}
	return r.disk(), nil
}

// Disks returns a page of the data disks that f selects.
func (s *Store) Disks(ctx context.Context, f vm.DiskFilter, p vm.Page) ([]vm.Disk, error) {
	q := after(p)
	q.and("state = ?", string(f.State))
	q.and("vm_id = ?", f.VMID)
	query, args := q.sql(diskColumns, "disks", p)
	var rows []diskRow
	if err := s.list(ctx, &rows, query, args); err != nil {
		return nil, err
	}
	list := make([]vm.Disk, len(rows))
	for i, r := range rows {
		list[i] = r.disk()
	}
	return list, nil
}

func insertDisk(ctx context.Context, tx *sqlx.Tx, d vm.Disk, now time.Time) error {
	r := diskRowOf(d)
	r.UpdatedAt = now.UnixMilli()
	if r.CreatedAt == 0 {
		r.CreatedAt = r.UpdatedAt
	}
	_, err := tx.NamedExecContext(ctx, `
		INSERT INTO disks (id, size_mib, mount_point, slot, state, reason, vm_id, created_at, updated_at, revision)
		VALUES (:id, :size_mib, :mount_point, :slot, :state, :reason, :vm_id, :created_at, :updated_at, 1)`, r)
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
		return vm.NotFound("vm", d.VMID)
	}
	return err
}

func updateDisk(ctx context.Context, tx *sqlx.Tx, u vm.DiskUpdate, now time.Time) error {
	r := diskRowOf(u.Disk)
	r.UpdatedAt = now.UnixMilli()
	err := changeNamed(ctx, tx, `
		UPDATE disks SET size_mib = :size_mib, mount_point = :mount_point, slot = :slot, state = :state, reason = :reason,
			vm_id = :vm_id, updated_at = :updated_at, revision = revision + 1
		WHERE id = :id AND state = :from`, struct {
		diskRow
		From string `db:"from"`
	}{r, string(u.From)})
	switch {
	case errors.Is(err, errNoRow):
		return overtaken("disk", u.Disk.ID, string(u.From))
	case duplicate(err): // the id does not change: it is the slot
		return slotTaken(u.Disk, err)
	case dangling(err):
		return vm.NotFound("vm", u.Disk.VMID)
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
