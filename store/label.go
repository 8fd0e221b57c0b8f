package store

import (
	"context"
)

// replaceLabels rewrites the labels of a row in an index table, vm_labels or
// image_labels.
func replaceLabels(ctx context.Context, tx *transaction, index string, owner int64, labels map[string]string) error {
	if _, err := tx.ExecContext(ctx, "DELETE FROM "+index+" WHERE owner = ?", owner); err != nil {
		return err
	}
	for key, value := range labels {
		_, err := tx.ExecContext(ctx, "INSERT INTO "+index+" (owner, key, value) VALUES (?, ?, ?)", owner, key, value)
		if err != nil {
			return err
		}
	}
	return nil
}
