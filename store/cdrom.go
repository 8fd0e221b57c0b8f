package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// packCDROMs returns the column cdroms, as packNICs does.
func packCDROMs(list []vm.CDROM) (text, error) {
	var b []byte
	for _, d := range list {
		b = appendWord(b, d.ID, ',')
		b = appendWord(b, d.Image, ',')
		b = appendWord(b, d.SHA256, ',')
		b = appendNumber(b, int64(d.BootIndex), ';')
	}
	var back cdroms
	if err := back.Scan(string(b)); err != nil || !slices.Equal(list, []vm.CDROM(back)) {
		return "", fmt.Errorf("the CD-ROM drives %+v cannot be recorded, they would come back as %+v, %v", list, back, err)
	}
	return text(b), nil
}

// cdroms are read from the column of that name.
type cdroms []vm.CDROM

// Scan implements [sql.Scanner].
func (l *cdroms) Scan(src any) error {
	*l = nil
	c := unpack(src)
	for c.more() {
		*l = append(*l, vm.CDROM{ID: c.word(','), Image: c.field(','), SHA256: c.field(','), BootIndex: int(c.number(';', maxNumber))})
	}
	return c.err
}

// contentsOf returns the SHA-256 of all content of images that v has in it.
func contentsOf(v vm.VM) []string {
	var all []string
	if sum, ok := v.Root.Content(); ok {
		all = append(all, sum)
	}
	for _, d := range v.CDROMs {
		if d.SHA256 != "" && !slices.Contains(all, d.SHA256) {
			all = append(all, d.SHA256)
		}
	}
	return all
}

// replaceContents records which content of images a VM has in it, in place of
// what it had before.
func replaceContents(ctx context.Context, tx *sqlx.Tx, v vm.VM) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM vm_contents WHERE vm_id = ?`, v.ID); err != nil {
		return err
	}
	for _, sum := range contentsOf(v) {
		if _, err := tx.ExecContext(ctx, `INSERT INTO vm_contents (vm_id, sha256) VALUES (?, ?)`, v.ID, sum); err != nil {
			return err
		}
	}
	return nil
}
