package store

import (
	"context"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

var eventTable = newTable("events",
	column[vm.Event]{"seq", readOnly, func(e *vm.Event) any { return (*integer64)(&e.Seq) }},
	column[vm.Event]{"at", fixed, func(e *vm.Event) any { return (*instant)(&e.At) }},
	column[vm.Event]{"type", fixed, func(e *vm.Event) any { return &e.Type }},
	column[vm.Event]{"resource", fixed, func(e *vm.Event) any { return (*resource)(&e.Resource) }},
	column[vm.Event]{"data", fixed, func(e *vm.Event) any { return (*rawJSON)(&e.Data) }},
)

// Events returns a page of the events that f selects. A prefix of a type ends at its
// first dot.
func (s *Store) Events(ctx context.Context, f vm.EventFilter, p vm.Page) ([]vm.Event, error) {
	q := selectEvents(f)
	query, args := q.sql(eventTable.list, p)
	return list(ctx, s, query, args, p.Limit, eventTable.scanner())
}

func selectEvents(f vm.EventFilter) selection {
	q := from("events")
	column := "type"
	if strings.HasSuffix(f.Type, ".") {
		column = "topic"
	}
	if f.Resource != (vm.Resource{}) {
		column = "+" + column // one resource has fewer events than a type: its index is the one to take
	}
	q.and(column+" = ?", f.Type)
	q.and("resource = ?", f.Resource.String())
	return q
}

// LastEvent returns the number of the newest event ever recorded, even if it was
// deleted since, 0 for none.
func (s *Store) LastEvent(ctx context.Context) (int64, error) {
	var seq int64
	err := s.row(ctx, `SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'`,
		func(row *sqlx.Row) error { return row.Scan(&seq) })
	return seq, err
}

// PruneEvents deletes the events from before a time and all but the newest keep, in
// several transactions if there are many. It returns how many it deleted, also when
// it fails. To find them it scans all events, without blocking writers.
func (s *Store) PruneEvents(ctx context.Context, before time.Time, keep int) (int, error) {
	const old = ` AND (at < ? OR seq <= ?)`
	var surplus int64 // the newest event beyond keep
	err := s.row(ctx, `SELECT coalesce((SELECT seq FROM events ORDER BY seq DESC LIMIT 1 OFFSET ?), 0)`,
		func(row *sqlx.Row) error { return row.Scan(&surplus) }, keep)
	if err != nil {
		return 0, err
	}
	total, done := 0, int64(0)
	for {
		var last, found int64
		err := s.row(ctx, `
			SELECT coalesce(max(seq), 0), count(*)
			FROM (SELECT seq FROM events WHERE seq > ?`+old+` ORDER BY seq LIMIT ?)`,
			func(row *sqlx.Row) error { return row.Scan(&last, &found) },
			done, instant(before), surplus, pruneBatch)
		if err != nil || found == 0 {
			return total, err
		}
		var n int64
		err = s.write(ctx, func(tx *transaction) error {
			res, err := tx.ExecContext(ctx, `DELETE FROM events WHERE seq > ? AND seq <= ?`+old,
				done, last, instant(before), surplus)
			if err == nil {
				n, err = res.RowsAffected()
			}
			return err
		})
		if err != nil {
			return total, err
		}
		total, done = total+int(n), last
	}
}

// appendEvents records events. An event without a time gets now.
func appendEvents(ctx context.Context, tx *transaction, events []vm.Event, now time.Time) error {
	for _, e := range events {
		if e.At.IsZero() {
			e.At = now
		}
		if _, err := tx.ExecContext(ctx, eventTable.insert, eventTable.insertArgs(&e)...); err != nil {
			return err
		}
	}
	return nil
}
