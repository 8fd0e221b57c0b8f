package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

type tokenRow struct {
	Name      string `db:"name"`
	Role      string `db:"role"`
	Hash      []byte `db:"hash"`
	CreatedAt int64  `db:"created_at"`
}

// Tokens returns every token, in order of their names.
func (s *Store) Tokens(ctx context.Context) ([]vm.Token, error) {
	var rows []tokenRow
	if err := s.list(ctx, &rows, `SELECT name, role, hash, created_at FROM tokens ORDER BY name`, nil); err != nil {
		return nil, err
	}
	list := make([]vm.Token, len(rows))
	for i, r := range rows {
		list[i] = vm.Token{Name: r.Name, Role: vm.Role(r.Role), CreatedAt: instant(r.CreatedAt)}
		if n := copy(list[i].Hash[:], r.Hash); n != len(list[i].Hash) {
			return nil, fmt.Errorf("token %q: its hash has %d bytes", r.Name, n)
		}
	}
	return list, nil
}

// PutToken records t, as of now unless it says when, in place of any token of
// the same name.
func (s *Store) PutToken(ctx context.Context, t vm.Token) error {
	r := tokenRow{Name: t.Name, Role: string(t.Role), Hash: t.Hash[:], CreatedAt: millis(t.CreatedAt)}
	if r.CreatedAt == 0 {
		r.CreatedAt = time.Now().UnixMilli()
	}
	return s.write(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.NamedExecContext(ctx, `
			INSERT INTO tokens (name, role, hash, created_at) VALUES (:name, :role, :hash, :created_at)
			ON CONFLICT (name) DO UPDATE SET role = excluded.role, hash = excluded.hash, created_at = excluded.created_at`, r)
		return err
	})
}
