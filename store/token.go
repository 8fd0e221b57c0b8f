package store

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"vmand/vm"
)

var tokenTable = newTable("tokens",
	column[vm.Token]{"name", fixed, func(t *vm.Token) any { return &t.Name }},
	column[vm.Token]{"role", mutable, func(t *vm.Token) any { return (*string)(&t.Role) }},
	column[vm.Token]{"hash", mutable, func(t *vm.Token) any { return (*hash)(&t.Hash) }},
	column[vm.Token]{"created_at", mutable, func(t *vm.Token) any { return (*instant)(&t.CreatedAt) }},
)

// hash is a SHA-256 that is stored as a BLOB.
type hash [32]byte

// Value implements [driver.Valuer].
func (h hash) Value() (driver.Value, error) { return h[:], nil }

// Scan implements [sql.Scanner].
func (h *hash) Scan(src any) error {
	b, ok := src.([]byte)
	if !ok || len(b) != len(h) {
		return fmt.Errorf("%T in a column of hashes", src)
	}
	*h = hash(b)
	return nil
}

// Tokens returns all tokens in order of their names.
func (s *Store) Tokens(ctx context.Context) ([]vm.Token, error) {
	return list(ctx, s, tokenTable.all+" ORDER BY name", nil, 0, tokenTable.scanner())
}

// PutToken inserts t or replaces the token with its name. A zero CreatedAt is set to
// now.
func (s *Store) PutToken(ctx context.Context, t vm.Token) error {
	if t.CreatedAt.IsZero() {
		t.CreatedAt = time.Now()
	}
	const upsert = `
		ON CONFLICT (name) DO UPDATE
		SET role = excluded.role, hash = excluded.hash, created_at = excluded.created_at`
	return s.write(ctx, func(tx *transaction) error {
		_, err := tx.ExecContext(ctx, tokenTable.insert+upsert, tokenTable.insertArgs(&t)...)
		return err
	})
}
