// Package store keeps the recorded state of vmand in one SQLite database. It
// implements the interfaces [vm.Store] and [vm.TokenStore], and holds no policy:
// which change is legal is for package vm to say, here only that a row is still
// in the state it is said to come from.
//
// Every method that writes is one transaction, on disk when the method returns.
// Times keep their milliseconds and come back in UTC; the zero time stays zero.
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

// Options say where the database is.
type Options struct {
	Path string       // of the database file; its directory must exist
	Log  *slog.Logger // nil for none

	// Reserve is how many bytes to take up beside the database, in the file
	// <Path>.reserve, while there is plenty of room. When there is none they are
	// given back, bit by bit, to the changes that would fail. 0 for no reserve.
	Reserve int64

	migrations fs.FS // nil for those of this package
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	path string
	// SQLite has one writer at a time. With a pool of one connection the
	// writers wait for each other here, in order and with a context, and never
	// meet SQLITE_BUSY.
	writer *sqlx.DB
	reader *sqlx.DB

	cache   vmCache
	changes changeLog
	foreign foreignWrites
	writing atomic.Int32 // transactions that run or wait

	reserve *reserve // nil for none

	unwritable atomic.Bool // the last change found the database so

	mu    sync.Mutex
	reads map[string]*sqlx.Stmt // prepared on the reader, by their SQL
}

// readers is how many reads run at once; more of them wait.
const readers = 4

// Open opens the database at o.Path, creates it if there is none, and brings
// its schema up to date, after a copy of what was there has been put beside it.
// It refuses, and leaves untouched, a file that is damaged, that is something
// else, or that a newer vmand wrote. The message of such an error says what to
// do.
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
	var err error
	if s.writer, err = connect(ctx, o.Path, 1, writerPragmas, "immediate"); err != nil {
		return nil, openError(ctx, o.Path, err)
	}
	// What may not be written SQLite opens for reading, without a word. To begin
	// to write shows it, even if there is nothing to write.
	if err := s.writeOnce(ctx, func(tx *sqlx.Tx) error {
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

// Close closes the database. What runs meanwhile ends first or fails.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, stmt := range s.reads {
		errs = append(errs, stmt.Close())
	}
	clear(s.reads)
	// The writer is last: it empties the write-ahead log into the database.
	return errors.Join(append(errs, s.reader.Close(), s.writer.Close())...)
}

// pingNote is the note that tries whether the database can be written.
const pingNote = "ping"

// Ping reads a page of the database. If the last change could not be written, it
// also writes one, and so finds out whether that is still so.
func (s *Store) Ping(ctx context.Context) error {
	var n int
	err := s.reader.GetContext(ctx, &n, `SELECT count(*) FROM (SELECT 1 FROM templates LIMIT 1)`)
	if err == nil && s.unwritable.Load() {
		return s.SetNote(ctx, pingNote, time.Now().UTC().Format(time.RFC3339Nano))
	}
	return s.fault(ctx, err)
}

// The driver runs the pragmas of a connection in the order of the alphabet, and
// of two that contradict each other the last one holds.
var (
	commonPragmas   = []string{"busy_timeout(5000)", "trusted_schema(0)", "temp_store(MEMORY)"}
	writerPragmas   = append([]string{"foreign_keys(1)", "journal_mode(WAL)", "synchronous(FULL)"}, commonPragmas...)
	migratorPragmas = append([]string{"foreign_keys(0)", "journal_mode(WAL)", "synchronous(FULL)"}, commonPragmas...)
	readerPragmas   = append([]string{"foreign_keys(1)", "query_only(1)"}, commonPragmas...)
)

// dataSource returns the name of a connection to the database at path. All that
// a connection has to be is said in it: a pragma holds for one connection, and
// a pool opens connections when it likes.
func dataSource(path string, pragmas []string, txlock, mode string) string {
	q := url.Values{"_pragma": pragmas, "mode": {mode}}
	if txlock != "" {
		q.Set("_txlock", txlock)
	}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}
	return u.String()
}

// connect opens a pool of at most n connections, which it keeps, and tries one.
func connect(ctx context.Context, path string, n int, pragmas []string, txlock string) (*sqlx.DB, error) {
	// rw and not rwc: a file that vanished is an error and not an empty database.
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

// write runs f in a transaction and commits it if f succeeds. When there is no
// room, it makes some and begins again, and so runs f again.
func (s *Store) write(ctx context.Context, f func(*sqlx.Tx) error) (err error) {
	defer func() { s.noteWrite(err) }()
	full := false
	return s.reserve.retry(func() error {
		if !full {
			err := s.writeOnce(ctx, f)
			if full = noRoom(err); !full {
				return err
			}
		}
		// Once all that is in the log is in the database too, the log begins
		// anew in the blocks it has. If that fails, so does the change.
		_, _ = s.writer.ExecContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`)
		return s.writeOnce(ctx, f)
	})
}

// noteWrite remembers whether a change that ended with err shows that the
// database can be written, or that it cannot.
func (s *Store) noteWrite(err error) {
	if err == nil {
		s.unwritable.Store(false)
	} else if faultOf(resultCode(err), s.path) != nil {
		s.unwritable.Store(true)
	}
}

func (s *Store) writeOnce(ctx context.Context, f func(*sqlx.Tx) error) error {
	s.writing.Add(1)
	defer s.writing.Add(-1)
	tx, err := s.writer.BeginTxx(ctx, nil)
	if err != nil {
		return s.fault(ctx, err)
	}
	if s.foreign.due() {
		err = s.look(ctx, tx)
	}
	if err == nil {
		err = f(tx)
	}
	if err != nil {
		// SQLite may have rolled back already, as it does when the disk is full.
		_ = tx.Rollback()
		return s.fault(ctx, err)
	}
	return s.fault(ctx, tx.Commit())
}

// prepared returns query as a statement of the reader, prepared once.
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

// shortList is how many rows are read, in a few milliseconds, whether their
// reader still wants them or not.
const shortList = 1000

// A scanner is one row of a result: [*sqlx.Row] or [*sqlx.Rows].
type scanner interface {
	Scan(dest ...any) error
	StructScan(dest any) error
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

// row reads the row of a query, or returns errNoRow if there is none.
func (s *Store) row(ctx context.Context, query string, scan func(*sqlx.Row) error, args ...any) error {
	if err := ctx.Err(); err != nil {
		return s.fault(ctx, err)
	}
	// To watch a context costs two goroutines, as much as half the read, which
	// has nothing in it that could wait.
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

// list returns what scan makes of each row of a query for at most limit rows,
// or, if limit is 0, for all.
func list[T any](ctx context.Context, s *Store, query string, args []any, limit int, scan func(scanner) (T, error)) ([]T, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.fault(ctx, err)
	}
	if limit > 0 && limit <= shortList {
		ctx = context.WithoutCancel(ctx) // as in one
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
