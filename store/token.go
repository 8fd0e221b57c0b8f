package store

import (
	"context"
	"time"

	"vmand/vm"
)

type tokenRow struct {
	Name      string  `db:"name"`
	Role      string  `db:"role"`
	Hash      []byte  `db:"hash"`
	CreatedAt instant `db:"created_at"`
}

// Tokens returns all tokens in order of their names.
func (s *Store) Tokens(ctx context.Context) ([]vm.Token, error) {
	const query = `SELECT name, role, hash, created_at FROM tokens ORDER BY name`
	return list(ctx, s, query, nil, 0, func(rows scanner) (vm.Token, error) {
		var r tokenRow
		if err := rows.StructScan(&r); err != nil {
			return vm.Token{}, err
		}
		return vm.Token{
			Name:      r.Name,
			Role:      vm.Role(r.Role),
			Hash:      [32]byte(r.Hash), // a CHECK of the table says that there are 32
			CreatedAt: time.Time(r.CreatedAt),
		}, nil
	})
}

// PutToken inserts t or replaces the token with its name. A zero CreatedAt is set to
// now.
func (s *Store) PutToken(ctx context.Context, t vm.Token) error {
	r := tokenRow{Name: t.Name, Role: string(t.Role), Hash: t.Hash[:], CreatedAt: instant(t.CreatedAt)}
	if t.CreatedAt.IsZero() {
		r.CreatedAt = instant(time.Now())
	}
	return s.write(ctx, func(tx *transaction) error {
		_, err := tx.NamedExecContext(ctx, `
			INSERT INTO tokens (name, role, hash, created_at) VALUES (:name, :role, :hash, :created_at)
			ON CONFLICT (name) DO UPDATE
			SET role = excluded.role, hash = excluded.hash, created_at = excluded.created_at`, r)
		return err
	})
}
