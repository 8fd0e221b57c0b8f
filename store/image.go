package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"time"

	"vmand/vm"
)

// The first content columns are NULL until the content is stored; sum_sha256,
// sum_sha512, format and disk are the requirements of the request.
var imageTable = newTable("images",
	column[vm.Image]{"seq", readOnly, func(i *vm.Image) any { return (*integer64)(&i.Seq) }},
	column[vm.Image]{"name", fixed, func(i *vm.Image) any { return &i.Name }},
	column[vm.Image]{"state", mutable, func(i *vm.Image) any { return (*string)(&i.State) }},
	column[vm.Image]{"reason", mutable, func(i *vm.Image) any { return (*text)(&i.Reason) }},
	column[vm.Image]{"sha256", mutable, func(i *vm.Image) any { return (*text)(&i.SHA256) }},
	column[vm.Image]{"layout", mutable, func(i *vm.Image) any { return (*text)(&i.Layout) }},
	column[vm.Image]{"virtual_mib", mutable, func(i *vm.Image) any { return (*integer64)(&i.VirtualMiB) }},
	column[vm.Image]{"virtual_short", mutable, func(i *vm.Image) any { return (*integer64)(&i.VirtualShort) }},
	column[vm.Image]{"bytes", mutable, func(i *vm.Image) any { return (*integer64)(&i.Bytes) }},
	column[vm.Image]{"sum_sha256", mutable, func(i *vm.Image) any { return (*text)(&i.Sum.SHA256) }},
	column[vm.Image]{"sum_sha512", mutable, func(i *vm.Image) any { return (*text)(&i.Sum.SHA512) }},
	column[vm.Image]{"format", mutable, func(i *vm.Image) any { return (*text)(&i.Format) }},
	column[vm.Image]{"disk", mutable, func(i *vm.Image) any { return (*text)(&i.Disk) }},
	column[vm.Image]{"uploaded", mutable, func(i *vm.Image) any { return (*integer64)(&i.Uploaded) }},
	column[vm.Image]{"source", fixed, func(i *vm.Image) any { return &i.Source }},
	column[vm.Image]{"description", mutable, func(i *vm.Image) any { return (*text)(&i.Description) }},
	column[vm.Image]{"labels", mutable, func(i *vm.Image) any { return (*labels)(&i.Labels) }},
	column[vm.Image]{"created_at", fixed, func(i *vm.Image) any { return (*instant)(&i.CreatedAt) }},
	column[vm.Image]{"updated_at", mutable, func(i *vm.Image) any { return (*instant)(&i.UpdatedAt) }},
	column[vm.Image]{"revision", counter, func(i *vm.Image) any { return (*integer64)(&i.Revision) }},
)

// Image returns one image.
func (s *Store) Image(ctx context.Context, name string) (vm.Image, error) {
	return one(ctx, s, "image", name, imageTable.all+" WHERE name = ?", imageTable.scan)
}

// Images returns a page of the images that f selects.
func (s *Store) Images(ctx context.Context, f vm.ImageFilter, p vm.Page) ([]vm.Image, error) {
	q := selectImages(f)
	query, args := q.sql(imageTable.list, p)
	return list(ctx, s, query, args, p.Limit, imageTable.scanner())
}

// unavailableImage is the condition of a partial index, in its words.
const unavailableImage = "state <> 'available'"

func selectImages(f vm.ImageFilter) selection {
	q := from("images")
	q.label("image_labels", f.Label, f.LabelValue)
	q.only(f.Unavailable, unavailableImage)
	q.and("state = ?", string(f.State))
	q.and("sha256 = ?", f.SHA256)
	return q
}

func insertImage(ctx context.Context, tx *transaction, i vm.Image, now time.Time) (vm.Image, error) {
	if i.CreatedAt.IsZero() {
		i.CreatedAt = now
	}
	i.UpdatedAt = now
	row, err := imageTable.insertRow(ctx, tx, i)
	if duplicate(err) {
		return row, &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("image %s already exists", i.Name), Err: err}
	}
	if err != nil || len(row.Labels) == 0 {
		return row, err
	}
	return row, replaceLabels(ctx, tx, "image_labels", row.Seq, row.Labels)
}

func updateImage(ctx context.Context, tx *transaction, u vm.ImageUpdate, now time.Time) (vm.Image, error) {
	// The transaction holds the write lock, so nothing changes the row between the
	// two statements.
	before, err := imageTable.row(ctx, tx, "name = ?", u.Image.Name)
	if errors.Is(err, errNoRow) || err == nil && before.State != u.From {
		return before, overtaken("image", u.Image.Name, string(u.From))
	}
	if err != nil {
		return before, err
	}
	u.Image.UpdatedAt = now
	row, err := imageTable.updateRow(ctx, tx, u.Image, "seq = ?", before.Seq)
	if err != nil || maps.Equal(before.Labels, row.Labels) {
		return row, err
	}
	return row, replaceLabels(ctx, tx, "image_labels", row.Seq, row.Labels)
}

// contentUsers counts the VMs and the disks that use the content of image ?1 and
// that no other available image names. For an image that is not imported yet it counts
// none, even if other images have the same content.
const contentUsers = `
	SELECT (SELECT count(*) FROM vm_contents WHERE sha256 = i.sha256),
		(SELECT count(*) FROM disks WHERE base = ?2 || i.sha256)
	FROM images AS i
	WHERE name = ?1 AND state IN ('available', 'error')
		AND NOT EXISTS (SELECT 1 FROM images WHERE sha256 = i.sha256 AND state = 'available' AND name <> ?1)`

func deleteImage(ctx context.Context, tx *transaction, name string) error {
	var vms, disks int
	err := tx.QueryRowxContext(ctx, contentUsers, name, vm.ContentBase("")).Scan(&vms, &disks)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if vms+disks > 0 {
		return &vm.Fault{
			Code:   vm.CodeInUse,
			Detail: fmt.Sprintf("image %s is in use by %d VM(s) and %d disk(s)", name, vms, disks),
			Hint:   "first delete the VMs and the disks that were made of it, and eject it from CD-ROM drives",
		}
	}
	err = change(ctx, tx, `DELETE FROM images WHERE name = ?`, name)
	if errors.Is(err, errNoRow) {
		return vm.NotFound("image", name)
	}
	return err
}
