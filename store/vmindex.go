package store

import (
	"context"
	"maps"
	"slices"

	"vmand/vm"
)

// replaceIndexes rewrites the index tables of a VM of which the source columns
// changed: few updates change any.
func replaceIndexes(ctx context.Context, tx *transaction, before, v vm.VM) error {
	if !maps.Equal(before.Labels, v.Labels) {
		if err := replaceLabels(ctx, tx, "vm_labels", v.Seq, v.Labels); err != nil {
			return err
		}
	}
	if !slices.EqualFunc(before.NICs, v.NICs, vm.NIC.Equal) {
		if err := replaceAddresses(ctx, tx, v); err != nil {
			return err
		}
	}
	if !slices.Equal(before.Forwards, v.Forwards) {
		if err := replaceHostPorts(ctx, tx, v); err != nil {
			return err
		}
	}
	if !slices.Equal(contentsOf(before), contentsOf(v)) {
		return replaceContents(ctx, tx, v)
	}
	return nil
}

// contentsOf returns the SHA-256 of all image content that v uses.
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

// replaceContents replaces the recorded set of image content that a VM uses.
func replaceContents(ctx context.Context, tx *transaction, v vm.VM) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM vm_contents WHERE vm_id = ?`, v.ID); err != nil {
		return err
	}
	for _, sum := range contentsOf(v) {
		_, err := tx.ExecContext(ctx, `INSERT INTO vm_contents (vm_id, sha256) VALUES (?, ?)`, v.ID, sum)
		if err != nil {
			return err
		}
	}
	return nil
}
