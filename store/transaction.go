package store

import (
	"context"
	"database/sql"
	"errors"
	"sync"

	"github.com/jmoiron/sqlx"
)

// A transaction is a [sqlx.Tx] of the writer that uses prepared statements. To
// prepare them in each transaction takes half of the CPU time of a change
// (BenchmarkApply).
type transaction struct {
	*sqlx.Tx
	statements *statements
}

// statements are the prepared statements of the writer. A transaction holds the only
// connection of the writer, so missing statements are prepared after it.
type statements struct {
	mu       sync.Mutex
	prepared map[string]*sqlx.Stmt // by their SQL; nil if it is missing
	missing  []string
}

// get returns the prepared statement of a query, nil if it is not prepared yet.
func (s *statements) get(query string) *sqlx.Stmt {
	s.mu.Lock()
	defer s.mu.Unlock()
	stmt, known := s.prepared[query]
	if !known {
		s.prepared[query] = nil
		s.missing = append(s.missing, query)
	}
	return stmt
}

// prepare prepares the missing statements. It must not be called in a transaction.
// It is best effort.
func (s *statements) prepare(ctx context.Context, writer *sqlx.DB) {
	s.mu.Lock()
	missing := s.missing
	s.missing = nil
	s.mu.Unlock()
	for _, query := range missing {
		stmt, err := writer.PreparexContext(ctx, query)
		s.mu.Lock()
		if err == nil {
			s.prepared[query] = stmt
		} else {
			delete(s.prepared, query) // the next transaction misses it again
		}
		s.mu.Unlock()
	}
}

// close closes all statements.
func (s *statements) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, stmt := range s.prepared {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	clear(s.prepared)
	return errors.Join(errs...)
}

// ExecContext is [sqlx.Tx.ExecContext] with a prepared statement.
func (tx *transaction) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if stmt := tx.statements.get(query); stmt != nil {
		return tx.StmtxContext(ctx, stmt).ExecContext(ctx, args...)
	}
	return tx.Tx.ExecContext(ctx, query, args...)
}

// QueryRowxContext is [sqlx.Tx.QueryRowxContext] with a prepared statement.
func (tx *transaction) QueryRowxContext(ctx context.Context, query string, args ...any) *sqlx.Row {
	if stmt := tx.statements.get(query); stmt != nil {
		return tx.StmtxContext(ctx, stmt).QueryRowxContext(ctx, args...)
	}
	return tx.Tx.QueryRowxContext(ctx, query, args...)
}
