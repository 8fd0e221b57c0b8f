package store

import (
	"context"
	"errors"

	"github.com/jmoiron/sqlx"
)

// Note returns the value of a name, "" if it was never written.
func (s *Store) Note(ctx context.Context, name string) (string, error) {
	var value string
	scan := func(row *sqlx.Row) error { return row.Scan(&value) }
	err := s.row(ctx, `SELECT value FROM notes WHERE name = ?`, scan, name)
	if errors.Is(err, errNoRow) {
		return "", nil
	}
	return value, err
}

// SetNote sets the value of a name.
func (s *Store) SetNote(ctx context.Context, name, value string) error {
	return s.write(ctx, func(tx *transaction) error {
		_, err := tx.ExecContext(ctx, `
			INSERT INTO notes (name, value) VALUES (?, ?)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
		return err
	})
}
