package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"vmand/vm"
)

var operationTable = newTable("operations",
	column[vm.Operation]{"seq", readOnly, func(o *vm.Operation) any { return (*integer64)(&o.Seq) }},
	column[vm.Operation]{"id", fixed, func(o *vm.Operation) any { return &o.ID }},
	column[vm.Operation]{"kind", mutable, func(o *vm.Operation) any { return (*string)(&o.Kind) }},
	column[vm.Operation]{"resource", mutable, func(o *vm.Operation) any { return (*resource)(&o.Resource) }},
	column[vm.Operation]{"target", mutable, func(o *vm.Operation) any { return (*target)(&o.Target) }},
	column[vm.Operation]{"state", mutable, func(o *vm.Operation) any { return (*string)(&o.State) }},
	column[vm.Operation]{"step", mutable, func(o *vm.Operation) any { return &o.Step }},
	column[vm.Operation]{"progress", mutable, func(o *vm.Operation) any { return &o.Progress }},
	column[vm.Operation]{"problem", mutable, func(o *vm.Operation) any { return &jsonPointer[vm.Problem]{&o.Problem} }},
	column[vm.Operation]{"requested_by", mutable, func(o *vm.Operation) any { return &o.RequestedBy }},
	column[vm.Operation]{"request_id", mutable, func(o *vm.Operation) any { return &o.RequestID }},
	column[vm.Operation]{"created_at", fixed, func(o *vm.Operation) any { return (*instant)(&o.CreatedAt) }},
	column[vm.Operation]{"started_at", mutable, func(o *vm.Operation) any { return (*instant)(&o.StartedAt) }},
	column[vm.Operation]{"finished_at", mutable, func(o *vm.Operation) any { return (*instant)(&o.FinishedAt) }},
	column[vm.Operation]{"log", mutable, func(o *vm.Operation) any { return (*operationLog)(&o.Log) }},
	column[vm.Operation]{"key", mutable, func(o *vm.Operation) any { return (*text)(&o.Key) }},
	column[vm.Operation]{"fingerprint", mutable, func(o *vm.Operation) any { return (*text)(&o.Fingerprint) }},
)

// target is stored as a JSON object, NULL for the whole resource.
type target vm.Target

// Value implements [driver.Valuer].
func (t target) Value() (driver.Value, error) {
	if t == (target{}) {
		return nil, nil
	}
	return encode(vm.Target(t))
}

// Scan implements [sql.Scanner].
func (t *target) Scan(src any) error {
	*t = target{}
	return decode(src, (*vm.Target)(t))
}

// operationLog is stored as a JSON array. It is read as an empty list and not as
// nil if it has no lines.
type operationLog []vm.LogLine

// Value implements [driver.Valuer].
func (l operationLog) Value() (driver.Value, error) {
	if l == nil {
		return "[]", nil
	}
	return encode([]vm.LogLine(l))
}

// Scan implements [sql.Scanner].
func (l *operationLog) Scan(src any) error {
	*l = nil // the row before has the array
	return decode(src, (*[]vm.LogLine)(l))
}

// Operation returns one operation.
func (s *Store) Operation(ctx context.Context, id string) (vm.Operation, error) {
	return one(ctx, s, "operation", id, operationTable.all+" WHERE id = ?", operationTable.scan)
}

// openOnly is the condition of the partial index operations_open, in its words.
const openOnly = "state NOT IN ('succeeded', 'failed', 'cancelled')"

// Operations returns a page of the operations that f selects.
func (s *Store) Operations(ctx context.Context, f vm.OperationFilter, p vm.Page) ([]vm.Operation, error) {
	q := from("operations")
	q.and("resource = ?", f.Resource.String())
	q.and("kind = ?", string(f.Kind))
	q.and("state = ?", string(f.State))
	q.only(f.Open, openOnly)
	query, args := q.sql(operationTable.list, p)
	return list(ctx, s, query, args, p.Limit, operationTable.scanner())
}

// pruneBatch is how many operations or events one transaction deletes. Other writers
// wait for it for milliseconds.
const pruneBatch = 1000

// PruneOperations deletes the operations that ended before a time, with their
// replies, in several transactions if there are many. It returns how many it deleted,
// also when it fails.
func (s *Store) PruneOperations(ctx context.Context, before time.Time) (int, error) {
	total := 0
	for {
		var n int64
		err := s.write(ctx, func(tx *transaction) error {
			res, err := tx.ExecContext(ctx, `
				DELETE FROM operations WHERE seq IN (
					SELECT seq FROM operations
					WHERE finished_at > 0 AND finished_at < ? AND state IN ('succeeded', 'failed', 'cancelled') LIMIT ?)`,
				instant(before), pruneBatch)
			if err == nil {
				n, err = res.RowsAffected()
			}
			return err
		})
		if err != nil {
			return total, err
		}
		total += int(n)
		if n < pruneBatch {
			return total, nil
		}
	}
}

// putOperation inserts o, or replaces the operation with its id.
func putOperation(ctx context.Context, tx *transaction, o vm.Operation, now time.Time) error {
	if o.CreatedAt.IsZero() {
		o.CreatedAt = now
	}
	// An upsert would use up a number of the sequence each time.
	err := change(ctx, tx, operationTable.update+" WHERE id = ?", append(operationTable.updateArgs(&o), o.ID)...)
	if errors.Is(err, errNoRow) {
		_, err = tx.ExecContext(ctx, operationTable.insert, operationTable.insertArgs(&o)...)
	}
	if duplicate(err) { // the id is new, so it is the key
		return &vm.Fault{
			Code:   vm.CodeRepeated,
			Detail: fmt.Sprintf("%s has used the Idempotency-Key %q before", o.RequestedBy, o.Key),
			Hint:   "use a different key for each request",
			Err:    err,
		}
	}
	return err
}
