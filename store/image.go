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

const imageColumns = `seq, name, state, reason, sha256, layout, virtual_mib, bytes, sum_sha256, sum_sha512, format, uploaded, source,
	description, labels, created_at, updated_at, revision`

type imageRow struct {
	Seq         int64   `db:"seq"`
	Name        string  `db:"name"`
	State       string  `db:"state"`
	Reason      text    `db:"reason"`
	SHA256      text    `db:"sha256"`
	Layout      text    `db:"layout"`
	VirtualMiB  int64   `db:"virtual_mib"`
	Bytes       int64   `db:"bytes"`
	SumSHA256   text    `db:"sum_sha256"`
	SumSHA512   text    `db:"sum_sha512"`
	Format      text    `db:"format"`
	Uploaded    int64   `db:"uploaded"`
	Source      string  `db:"source"`
	Description text    `db:"description"`
	Labels      labels  `db:"labels"`
	CreatedAt   instant `db:"created_at"`
	UpdatedAt   instant `db:"updated_at"`
	Revision    int64   `db:"revision"`
}

func imageRowOf(i vm.Image, now time.Time) imageRow {
	if i.CreatedAt.IsZero() {
		i.CreatedAt = now
	}
	return imageRow{Name: i.Name, State: string(i.State), Reason: text(i.Reason),
		SHA256: text(i.SHA256), Layout: text(i.Layout), VirtualMiB: i.VirtualMiB, Bytes: i.Bytes,
		SumSHA256: text(i.Sum.SHA256), SumSHA512: text(i.Sum.SHA512), Format: text(i.Format), Uploaded: i.Uploaded, Source: i.Source,
		Description: text(i.Description), Labels: i.Labels, CreatedAt: instant(i.CreatedAt), UpdatedAt: instant(now)}
}

func (r imageRow) image() vm.Image {
	return vm.Image{Seq: r.Seq, Name: r.Name, State: vm.ImageState(r.State), Reason: string(r.Reason),
		ImageContent: vm.ImageContent{SHA256: string(r.SHA256), Layout: vm.ImageFormat(r.Layout), VirtualMiB: r.VirtualMiB, Bytes: r.Bytes},
		Sum:          vm.ImageSum{SHA256: string(r.SumSHA256), SHA512: string(r.SumSHA512)},
		Format:       vm.ImageFormat(r.Format), Uploaded: r.Uploaded, Source: r.Source, Description: string(r.Description), Labels: r.Labels,
		CreatedAt: time.Time(r.CreatedAt), UpdatedAt: time.Time(r.UpdatedAt), Revision: r.Revision}
}

const imageByName = `SELECT ` + imageColumns + ` FROM images WHERE name = ?`

func scanImage(row scanner) (vm.Image, error) {
	var r imageRow
	err := row.StructScan(&r)
	return r.image(), err
}

// Image returns one image.
func (s *Store) Image(ctx context.Context, name string) (vm.Image, error) {
	return one(ctx, s, "image", name, imageByName, scanImage)
}

// Images returns a page of the images that f selects.
func (s *Store) Images(ctx context.Context, f vm.ImageFilter, p vm.Page) ([]vm.Image, error) {
	q := after(p)
	q.and("state = ?", string(f.State))
	q.and("sha256 = ?", f.SHA256)
	q.andLabel(f.Label, f.LabelValue)
	query, args := q.sql(imageColumns, "images", p)
	return list(ctx, s, query, args, p.Limit, scanImage)
}

// applyImages makes and updates the images of c; they come before what may be
// made of them, as the deletion of one comes after.
func applyImages(ctx context.Context, tx *sqlx.Tx, c vm.Change, now time.Time) error {
	if c.NewImage != nil {
		if err := insertImage(ctx, tx, *c.NewImage, now); err != nil {
			return err
		}
	}
	if c.Image != nil {
		return updateImage(ctx, tx, *c.Image, now)
	}
	return nil
}

func insertImage(ctx context.Context, tx *sqlx.Tx, i vm.Image, now time.Time) error {
	_, err := tx.NamedExecContext(ctx, `
		INSERT INTO images (name, state, reason, sha256, layout, virtual_mib, bytes, sum_sha256, sum_sha512, format, uploaded, source,
			description, labels, created_at, updated_at, revision)
		VALUES (:name, :state, :reason, :sha256, :layout, :virtual_mib, :bytes, :sum_sha256, :sum_sha512, :format, :uploaded, :source,
			:description, :labels, :created_at, :updated_at, 1)`, imageRowOf(i, now))
	if duplicate(err) {
		return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("image %q already exists", i.Name), Err: err}
	}
	return err
}

func updateImage(ctx context.Context, tx *sqlx.Tx, u vm.ImageUpdate, now time.Time) error {
	err := changeNamed(ctx, tx, `
		UPDATE images SET state = :state, reason = :reason, sha256 = :sha256, layout = :layout, virtual_mib = :virtual_mib, bytes = :bytes,
			sum_sha256 = :sum_sha256, sum_sha512 = :sum_sha512, format = :format, uploaded = :uploaded,
			description = :description, labels = :labels, updated_at = :updated_at, revision = revision + 1
		WHERE name = :name AND state = :from`, struct {
		imageRow
		From string `db:"from"`
	}{imageRowOf(u.Image, now), string(u.From)})
	if errors.Is(err, errNoRow) {
		return overtaken("image", u.Image.Name, string(u.From))
	}
	return err
}

// contentUsers counts what uses the content of the image ?1 and would be left
// with content that has no name. What is still to get its content has none that
// anything could use, even if it is the same as that of others.
const contentUsers = `
	SELECT (SELECT count(*) FROM vm_contents WHERE sha256 = i.sha256), (SELECT count(*) FROM disks WHERE base = ?2 || i.sha256)
	FROM images AS i
	WHERE name = ?1 AND state IN ('available', 'error')
		AND NOT EXISTS (SELECT 1 FROM images WHERE sha256 = i.sha256 AND state = 'available' AND name <> ?1)`

func deleteImage(ctx context.Context, tx *sqlx.Tx, name string) error {
	var vms, disks int
	err := tx.QueryRowxContext(ctx, contentUsers, name, vm.ContentBase("")).Scan(&vms, &disks)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if vms+disks > 0 {
		return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("image %s is in use by %d VM(s) and %d disk(s)", name, vms, disks),
			Hint: "delete the VMs and the disks that were made of it, and eject it from CD-ROM drives, first"}
	}
	err = change(ctx, tx, `DELETE FROM images WHERE name = ?`, name)
	if errors.Is(err, errNoRow) {
		return vm.NotFound("image", name)
	}
	return err
}
