package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
)

// An access says which statements write and read a column.
type access int

const (
	mutable   access = iota // inserts and updates write it
	fixed                   // only inserts write it
	readOnly                // the database or a statement of its own writes it
	counter                 // inserts write 1, each update adds 1
	writeOnly               // written as if mutable, never read
)

// A column binds a column of a table to a field of T.
type column[T any] struct {
	name   string
	access access
	// field returns a pointer to the field: a destination of Scan and an argument
	// of a statement.
	field func(*T) any
}

// A table is the list of the columns of a table and the statements made of it.
type table[T any] struct {
	columns []column[T]
	list    string // the columns that are read, separated by commas
	insert  string // takes insertArgs
	update  string // takes updateArgs; a condition follows
	all     string // SELECT of all rows; a condition follows
}

func newTable[T any](name string, columns ...column[T]) table[T] {
	var read, inserted, values, set []string
	for _, c := range columns {
		if c.access != writeOnly {
			read = append(read, c.name)
		}
		switch c.access {
		case mutable, writeOnly:
			set = append(set, c.name+" = ?")
			fallthrough
		case fixed:
			inserted, values = append(inserted, c.name), append(values, "?")
		case counter:
			set = append(set, c.name+" = "+c.name+" + 1")
			inserted, values = append(inserted, c.name), append(values, "1")
		}
	}
	list := strings.Join(read, ", ")
	return table[T]{
		columns: columns,
		list:    list,
		insert: "INSERT INTO " + name + " (" + strings.Join(inserted, ", ") + ")" +
			" VALUES (" + strings.Join(values, ", ") + ")",
		update: "UPDATE " + name + " SET " + strings.Join(set, ", "),
		all:    "SELECT " + list + " FROM " + name,
	}
}

// fields returns pointers to those fields of v that have a column with one of the
// accesses.
func (t *table[T]) fields(v *T, accesses ...access) []any {
	fields := make([]any, 0, len(t.columns))
	for _, c := range t.columns {
		for _, a := range accesses {
			if c.access == a {
				fields = append(fields, c.field(v))
			}
		}
	}
	return fields
}

// dest returns where to scan the columns of list.
func (t *table[T]) dest(v *T) []any { return t.fields(v, mutable, fixed, readOnly, counter) }

func (t *table[T]) insertArgs(v *T) []any { return t.fields(v, mutable, writeOnly, fixed) }

func (t *table[T]) updateArgs(v *T) []any { return t.fields(v, mutable, writeOnly) }

// scan reads a row of list.
func (t *table[T]) scan(row scanner) (T, error) {
	var v T
	err := row.Scan(t.dest(&v)...)
	return v, err
}

// scanner returns a function that scans rows of list one after the other. It is
// faster than scan for many rows.
func (t *table[T]) scanner() func(scanner) (T, error) {
	var v T
	dest := t.dest(&v)
	return func(row scanner) (T, error) {
		err := row.Scan(dest...)
		return v, err
	}
}

// insertRow inserts v and returns the recorded row.
func (t *table[T]) insertRow(ctx context.Context, tx *transaction, v T) (T, error) {
	return t.scan(tx.QueryRowxContext(ctx, t.insert+" RETURNING "+t.list, t.insertArgs(&v)...))
}

// updateRow replaces the mutable columns of the row that meets a condition with
// those of v and returns the recorded row, or errNoRow.
func (t *table[T]) updateRow(ctx context.Context, tx *transaction, v T, condition string, args ...any) (T, error) {
	query := t.update + " WHERE " + condition + " RETURNING " + t.list
	row, err := t.scan(tx.QueryRowxContext(ctx, query, append(t.updateArgs(&v), args...)...))
	return row, noRow(err)
}

// row returns the row that meets a condition, or errNoRow.
func (t *table[T]) row(ctx context.Context, tx *transaction, condition string, args ...any) (T, error) {
	row, err := t.scan(tx.QueryRowxContext(ctx, t.all+" WHERE "+condition, args...))
	return row, noRow(err)
}

// noRow returns err with errNoRow in place of [sql.ErrNoRows].
func noRow(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return errNoRow
	}
	return err
}
