package store

import (
	"context"
	"errors"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// OperationByKey returns the operation that requestedBy began under a key, and its
// reply, nil if none was kept.
func (s *Store) OperationByKey(ctx context.Context, requestedBy, key string) (vm.Operation, *vm.Reply, error) {
	const joined = " LEFT JOIN replies ON operation = seq WHERE requested_by = ? AND key = ?"
	query := "SELECT " + operationTable.list + ", status, location, etag, body FROM operations" + joined
	var o vm.Operation
	var r vm.Reply
	var status *int // NULL if no reply is kept
	dest := append(operationTable.dest(&o), &status, (*text)(&r.Location), (*text)(&r.ETag), &r.Body)
	err := s.row(ctx, query, func(row *sqlx.Row) error { return row.Scan(dest...) }, requestedBy, key)
	if errors.Is(err, errNoRow) {
		return vm.Operation{}, nil, vm.NotFound("operation under the key", key)
	}
	if err != nil || status == nil {
		return o, nil, err
	}
	r.Status = *status
	return o, &r, nil
}

// KeepReply stores the reply to the request that began an operation, in place of any
// reply stored before.
func (s *Store) KeepReply(ctx context.Context, operationID string, r vm.Reply) error {
	return s.write(ctx, func(tx *transaction) error {
		err := change(ctx, tx, `
			INSERT INTO replies (operation, status, location, etag, body)
			SELECT seq, ?, ?, ?, ? FROM operations WHERE id = ?
			ON CONFLICT (operation) DO UPDATE SET status = excluded.status, location = excluded.location,
				etag = excluded.etag, body = excluded.body`,
			r.Status, text(r.Location), text(r.ETag), r.Body, operationID)
		if errors.Is(err, errNoRow) {
			return vm.NotFound("operation", operationID)
		}
		return err
	})
}
