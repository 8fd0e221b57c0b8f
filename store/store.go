// Package store keeps the recorded state of vmand in one SQLite database. It
// implements the interfaces [vm.Store] and [vm.TokenStore]. It holds no policy: it
// checks that a row is still in the state that a change expects, not whether the
// change is legal.
//
// Every method that writes is one transaction, which is on disk when the method
// returns. Times are stored in milliseconds and returned in UTC; the zero time stays
// zero.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"vmand/vm"
)

var (
	_ vm.Store      = (*Store)(nil)
	_ vm.TokenStore = (*Store)(nil)
)

// Options are the settings of a [Store].
type Options struct {
	Path string       // of the database file; its directory must exist
	Log  *slog.Logger // nil: no log

	// Reserve is how many bytes the file <Path>.reserve occupies while there is plenty
	// of space. When the file system is full they are freed step by step for changes
	// that would fail. 0 means no reserve.
	Reserve int64

	migrations fs.FS // nil: those of this package
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	path string
	// SQLite allows one writer at a time. In a pool of one connection, writers wait
	// for each other in order and with a context, and never get SQLITE_BUSY.
	writer *sqlx.DB
	reader *sqlx.DB

	cache   vmCache
	changes changeLog
	foreign foreignWrites
	writing atomic.Int32 // transactions that run or wait

	statements statements // of the writer

	reserve *reserve // nil for none

	unwritable atomic.Bool // the last change could not be written

	mu    sync.Mutex
	reads map[string]*sqlx.Stmt // prepared on the reader, by their SQL
}

// readers is how many reads run at once; further ones wait.
const readers = 4

// Open opens the database at o.Path, or creates it, and brings its schema up to date
// after it has written a backup beside it. It refuses a file that is damaged, that
// is not a vmand database, or that a newer vmand wrote, and does not change it. The
// message of such an error says what to do.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.migrations == nil {
		o.migrations = embedded
	}
	r := newReserve(o)
	var s *Store
	err := r.retry(func() (err error) {
		s, err = openOnce(ctx, o, r)
		return err
	})
	return s, err
}

func openOnce(ctx context.Context, o Options, r *reserve) (*Store, error) {
	if err := createFile(o.Path); err != nil {
		return nil, err
	}
	if err := migrate(ctx, o); err != nil {
		return nil, err
	}
	s := &Store{path: o.Path, reserve: r, reads: make(map[string]*sqlx.Stmt), foreign: foreignWrites{born: time.Now()}}
	s.statements.prepared = make(map[string]*sqlx.Stmt)
	var err error
	if s.writer, err = connect(ctx, o.Path, 1, writerPragmas, "immediate"); err != nil {
		return nil, openError(ctx, o.Path, err)
	}
	// SQLite silently opens a file for reading if it may not be written. The start of
	// a write shows that, even if it changes no row.
	if err := s.writeOnce(ctx, func(tx *transaction) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM tokens WHERE FALSE`)
		return err
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("open the database: %w", err), s.writer.Close())
	}
	if s.reader, err = connect(ctx, o.Path, readers, readerPragmas, ""); err != nil {
		return nil, errors.Join(openError(ctx, o.Path, err), s.writer.Close())
	}
	if err := s.look(ctx, s.writer); err != nil {
		return nil, errors.Join(openError(ctx, o.Path, err), s.reader.Close(), s.writer.Close())
	}
	return s, nil
}

// Close closes the database. Concurrent calls finish first or fail.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, stmt := range s.reads {
		errs = append(errs, stmt.Close())
	}
	clear(s.reads)
	errs = append(errs, s.statements.close())
	// The writer is last: it merges the write-ahead log into the database.
	return errors.Join(append(errs, s.reader.Close(), s.writer.Close())...)
}

// pingNote is the note that Ping writes to find out whether that works.
const pingNote = "ping"

// Ping reads a page of the database. If the last change could not be written, it also
// writes one, to find out whether the database is writable again.
func (s *Store) Ping(ctx context.Context) error {
	var n int
	err := s.reader.GetContext(ctx, &n, `SELECT count(*) FROM (SELECT 1 FROM templates LIMIT 1)`)
	if err == nil && s.unwritable.Load() {
		return s.SetNote(ctx, pingNote, time.Now().UTC().Format(time.RFC3339Nano))
	}
	return s.fault(ctx, err)
}

// The driver runs the pragmas of a connection in alphabetical order; of two that
// contradict each other, the last one holds.
var (
	commonPragmas   = []string{"busy_timeout(5000)", "trusted_schema(0)", "temp_store(MEMORY)"}
	writerPragmas   = append([]string{"foreign_keys(1)", "journal_mode(WAL)", "synchronous(FULL)"}, commonPragmas...)
	migratorPragmas = append([]string{"foreign_keys(0)", "journal_mode(WAL)", "synchronous(FULL)"}, commonPragmas...)
	readerPragmas   = append([]string{"foreign_keys(1)", "query_only(1)"}, commonPragmas...)
)

// dataSource returns the name of a connection to the database at path. It contains
// all settings, because a pragma holds for one connection and a pool opens
// connections on its own.
func dataSource(path string, pragmas []string, txlock, mode string) string {
	q := url.Values{"_pragma": pragmas, "mode": {mode}}
	if txlock != "" {
		q.Set("_txlock", txlock)
	}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}
	return u.String()
}

// connect opens a pool that keeps up to n connections, and tests one.
func connect(ctx context.Context, path string, n int, pragmas []string, txlock string) (*sqlx.DB, error) {
	// rw and not rwc: a missing file is an error and not an empty database.
	db, err := sqlx.Open("sqlite", dataSource(path, pragmas, txlock, "rw"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// write runs f in a transaction and commits it if f succeeds. When there is no space,
// it frees some and runs f again in a new transaction.
func (s *Store) write(ctx context.Context, f func(*transaction) error) (err error) {
	defer func() { s.noteWrite(err) }()
	full := false
	return s.reserve.retry(func() error {
		if !full {
			err := s.writeOnce(ctx, f)
			if full = noSpace(err); !full {
				return err
			}
		}
		// After a checkpoint the log restarts at the beginning of its file. If the
		// checkpoint fails, so does the change.
		_, _ = s.writer.ExecContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`)
		return s.writeOnce(ctx, f)
	})
}

// noteWrite remembers whether the database is writable, if the result err of a change
// shows it.
func (s *Store) noteWrite(err error) {
	if err == nil {
		s.unwritable.Store(false)
	} else if faultOf(resultCode(err), s.path) != nil {
		s.unwritable.Store(true)
	}
}

func (s *Store) writeOnce(ctx context.Context, f func(*transaction) error) error {
	s.writing.Add(1)
	defer s.writing.Add(-1)
	defer s.statements.prepare(ctx, s.writer)
	begun, err := s.writer.BeginTxx(ctx, nil)
	if err != nil {
		return s.fault(ctx, err)
	}
	tx := &transaction{begun, &s.statements}
	if s.foreign.due() {
		err = s.look(ctx, tx)
	}
	if err == nil {
		err = f(tx)
	}
	if err != nil {
		// SQLite may have rolled back already, as on a full disk.
		_ = tx.Rollback()
		return s.fault(ctx, err)
	}
	return s.fault(ctx, tx.Commit())
}

// prepared returns the prepared statement of a query on the reader.
func (s *Store) prepared(ctx context.Context, query string) (*sqlx.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stmt, ok := s.reads[query]; ok {
		return stmt, nil
	}
	stmt, err := s.reader.PreparexContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("prepare %q: %w", query, err)
	}
	s.reads[query] = stmt
	return stmt, nil
}

// shortList is how many rows are read without watching the context: a few
// milliseconds.
const shortList = 1000

// A scanner is one row of a result: [*sqlx.Row] or [*sqlx.Rows].
type scanner interface {
	Scan(dest ...any) error
}

// one returns the row of query for id, or the fault that the kind of thing id
// names does not exist.
func one[T any](ctx context.Context, s *Store, kind, id, query string, scan func(scanner) (T, error)) (T, error) {
	var found T
	err := s.row(ctx, query, func(row *sqlx.Row) (err error) {
		found, err = scan(row)
		return err
	}, id)
	if errors.Is(err, errNoRow) {
		err = vm.NotFound(kind, id)
	}
	return found, err
}

// row passes the row of a query to scan, or returns errNoRow if there is none.
func (s *Store) row(ctx context.Context, query string, scan func(*sqlx.Row) error, args ...any) error {
	if err := ctx.Err(); err != nil {
		return s.fault(ctx, err)
	}
	// The driver watches a context with two goroutines, which cost half of the read.
	// The read itself never waits.
	ctx = context.WithoutCancel(ctx)
	stmt, err := s.prepared(ctx, query)
	if err == nil {
		err = scan(stmt.QueryRowxContext(ctx, args...))
	}
	if errors.Is(err, sql.ErrNoRows) {
		return errNoRow
	}
	return s.fault(ctx, err)
}

// list returns what scan makes of each row of a query. limit is the LIMIT of the
// query, 0 for none.
func list[T any](
	ctx context.Context, s *Store, query string, args []any, limit int, scan func(scanner) (T, error),
) ([]T, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.fault(ctx, err)
	}
	if limit > 0 && limit <= shortList {
		ctx = context.WithoutCancel(ctx) // as in row
	}
	stmt, err := s.prepared(ctx, query)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	rows, err := stmt.QueryxContext(ctx, args...)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	defer rows.Close()
	all := make([]T, 0, min(limit, shortList))
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, s.fault(ctx, err)
		}
		all = append(all, v)
	}
	if err := rows.Err(); err != nil {
		return nil, s.fault(ctx, err)
	}
	return all, nil
}
