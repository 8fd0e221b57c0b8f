package store

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
)

// foreignWrites detects writes of other processes, such as sqlite3, to the database. They
// invalidate the caches of this process.
//
// SQLite changes data_version of a connection when another connection has written. In this
// process only the writer's connection writes, so its data_version shows only foreign writes.
type foreignWrites struct {
	looked  atomic.Int64 // when, as time.Since(born)
	version atomic.Int64 // data_version then
	born    time.Time
}

// foreignCheck is how long a foreign write may stay unnoticed by readers.
const foreignCheck = time.Second

// due reports whether it is time to look, to one caller each time.
func (f *foreignWrites) due() bool {
	now, last := int64(time.Since(f.born)), f.looked.Load()
	return now-last > int64(foreignCheck) && f.looked.CompareAndSwap(last, now)
}

// look notices the foreign writes until now. q is the writer or a transaction of it.
func (s *Store) look(ctx context.Context, q sqlx.QueryerContext) error {
	s.foreign.looked.Store(int64(time.Since(s.foreign.born)))
	var version int64
	if err := sqlx.GetContext(ctx, q, &version, "PRAGMA data_version"); err != nil {
		return err
	}
	if s.foreign.version.Swap(version) != version {
		s.cache.clear()
		s.changes.reset()
	}
	return nil
}

// lookIfDue is look for a reader. It does not wait for a writer: a transaction
// that is running looks itself when it is due.
func (s *Store) lookIfDue(ctx context.Context) {
	if s.writing.Load() > 0 || !s.foreign.due() {
		return
	}
	if s.look(context.WithoutCancel(ctx), s.writer) != nil {
		s.cache.clear() // better slow than wrong
	}
}

// ForeignVersion returns a number that changes when another process writes to the
// database. It waits for a write of this process that is running.
func (s *Store) ForeignVersion(ctx context.Context) (int64, error) {
	if err := s.look(ctx, s.writer); err != nil {
		return 0, err
	}
	return s.foreign.version.Load(), nil
}
