package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

const operationColumns = `seq, id, kind, resource, target, state, step, progress, problem, requested_by, request_id,
	created_at, started_at, finished_at, log, key, fingerprint`

type operationRow struct {
	Seq         int64         `db:"seq"`
	ID          string        `db:"id"`
	Kind        string        `db:"kind"`
	Resource    string        `db:"resource"`
	Target      target        `db:"target"`
	State       string        `db:"state"`
	Step        string        `db:"step"`
	Progress    sql.NullInt64 `db:"progress"`
	Problem     text          `db:"problem"` // JSON
	RequestedBy string        `db:"requested_by"`
	RequestID   string        `db:"request_id"`
	CreatedAt   instant       `db:"created_at"`
	StartedAt   instant       `db:"started_at"`
	FinishedAt  instant       `db:"finished_at"`
	Log         string        `db:"log"` // JSON
	Key         text          `db:"key"`
	Fingerprint text          `db:"fingerprint"`
}

func operationRowOf(o vm.Operation, now time.Time) (operationRow, error) {
	if o.CreatedAt.IsZero() {
		o.CreatedAt = now
	}
	r := operationRow{ID: o.ID, Kind: string(o.Kind), Resource: o.Resource.String(), Target: target(o.Target),
		State: string(o.State), Step: o.Step,
		RequestedBy: o.RequestedBy, RequestID: o.RequestID,
		CreatedAt: instant(o.CreatedAt), StartedAt: instant(o.StartedAt), FinishedAt: instant(o.FinishedAt),
		Key: text(o.Key), Fingerprint: text(o.Fingerprint)}
	if o.Progress != nil {
		r.Progress = sql.NullInt64{Int64: int64(*o.Progress), Valid: true}
	}
	if o.Problem != nil {
		b, err := json.Marshal(o.Problem)
		if err != nil {
			return r, fmt.Errorf("operation %s: encode problem: %w", o.ID, err)
		}
		r.Problem = text(b)
	}
	if o.Log == nil {
		o.Log = []vm.LogLine{}
	}
	b, err := json.Marshal(o.Log)
	if err != nil {
		return r, fmt.Errorf("operation %s: encode log: %w", o.ID, err)
	}
	r.Log = string(b)
	return r, nil
}

func (r operationRow) operation() (vm.Operation, error) {
	o := vm.Operation{Seq: r.Seq, ID: r.ID, Kind: vm.Kind(r.Kind), Resource: vm.ParseResource(r.Resource), Target: vm.Target(r.Target),
		State: vm.OpState(r.State), Step: r.Step,
		RequestedBy: r.RequestedBy, RequestID: r.RequestID,
		CreatedAt: time.Time(r.CreatedAt), StartedAt: time.Time(r.StartedAt), FinishedAt: time.Time(r.FinishedAt),
		Key: string(r.Key), Fingerprint: string(r.Fingerprint)}
	if r.Progress.Valid {
		percent := int(r.Progress.Int64)
		o.Progress = &percent
	}
	if r.Problem != "" {
		if err := json.Unmarshal([]byte(r.Problem), &o.Problem); err != nil {
			return o, fmt.Errorf("operation %s: decode problem: %w", r.ID, err)
		}
	}
	if err := json.Unmarshal([]byte(r.Log), &o.Log); err != nil {
		return o, fmt.Errorf("operation %s: decode log: %w", r.ID, err)
	}
	return o, nil
}

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

// Operation returns one operation.
func (s *Store) Operation(ctx context.Context, id string) (vm.Operation, error) {
	var r operationRow
	err := s.one(ctx, "operation", id, `SELECT `+operationColumns+` FROM operations WHERE id = ?`, func(row *sqlx.Row) error {
		return row.StructScan(&r)
	})
	if err != nil {
		return vm.Operation{}, err
	}
	return r.operation()
}

// openOnly is the condition of the index operations_open, in its words. Said the
// other way round, SQLite would take the index by state, and sort.
const openOnly = "state NOT IN ('succeeded', 'failed', 'cancelled')"

// Operations returns a page of the operations that f selects.
func (s *Store) Operations(ctx context.Context, f vm.OperationFilter, p vm.Page) ([]vm.Operation, error) {
	q := after(p)
	q.and("resource = ?", f.Resource.String())
	q.and("kind = ?", string(f.Kind))
	q.and("state = ?", string(f.State))
	if f.Open {
		q.where += " AND " + openOnly
	}
	query, args := q.sql(operationColumns, "operations", p)
	return list(ctx, s, query, args, p.Limit, func(rows *sqlx.Rows) (vm.Operation, error) {
		var r operationRow
		if err := rows.StructScan(&r); err != nil {
			return vm.Operation{}, err
		}
		return r.operation()
	})
}

// pruneBatch is how many operations or events one transaction forgets: the writers that
// wait behind it wait for milliseconds.
const pruneBatch = 1000

// PruneOperations forgets the operations that were over before a time, and the
// replies that were kept of them, in several transactions when there are many, and returns how many it has
// forgotten, also when it fails.
func (s *Store) PruneOperations(ctx context.Context, before time.Time) (int, error) {
	total := 0
	for {
		var n int64
		err := s.write(ctx, func(tx *sqlx.Tx) error {
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

// putOperation records o in place of what is recorded under its id, if anything.
func putOperation(ctx context.Context, tx *sqlx.Tx, o vm.Operation, now time.Time) error {
	r, err := operationRowOf(o, now)
	if err != nil {
		return err
	}
	// Not an upsert: that uses up a seq each time.
	err = changeNamed(ctx, tx, `
		UPDATE operations SET kind = :kind, resource = :resource, target = :target, state = :state, step = :step, progress = :progress, problem = :problem,
			requested_by = :requested_by, request_id = :request_id, started_at = :started_at, finished_at = :finished_at, log = :log,
			key = :key, fingerprint = :fingerprint
		WHERE id = :id`, r)
	if errors.Is(err, errNoRow) {
		_, err = tx.NamedExecContext(ctx, `
			INSERT INTO operations (id, kind, resource, target, state, step, progress, problem, requested_by, request_id,
				created_at, started_at, finished_at, log, key, fingerprint)
			VALUES (:id, :kind, :resource, :target, :state, :step, :progress, :problem, :requested_by, :request_id,
				:created_at, :started_at, :finished_at, :log, :key, :fingerprint)`, r)
	}
	if duplicate(err) { // the id is new: it is the key
		return &vm.Fault{Code: vm.CodeRepeated, Detail: fmt.Sprintf("%s has used the Idempotency-Key %q before", o.RequestedBy, o.Key),
			Hint: "use a key of its own for each request", Err: err}
	}
	return err
}
