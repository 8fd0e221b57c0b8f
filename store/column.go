package store

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"vmand/vm"
)

// text is a string that is stored as NULL when it is empty: a NULL is read in half
// the time.
type text string

// Value implements [driver.Valuer].
func (t text) Value() (driver.Value, error) {
	if t == "" {
		return nil, nil
	}
	return string(t), nil
}

// Scan implements [sql.Scanner].
func (t *text) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*t = ""
	case string:
		*t = text(v)
	default:
		return fmt.Errorf("%T in a column of text", src)
	}
	return nil
}

// instant is a time that is stored as Unix milliseconds, 0 for the zero time. The
// driver would store the String of a [time.Time].
type instant time.Time

// Value implements [driver.Valuer].
func (i instant) Value() (driver.Value, error) {
	return millis(time.Time(i)), nil
}

// Scan implements [sql.Scanner].
func (i *instant) Scan(src any) error {
	ms, ok := src.(int64)
	if !ok {
		return fmt.Errorf("%T in a column of milliseconds", src)
	}
	*i = instant(timeOf(ms))
	return nil
}

// integer and integer64 are scanned without the reflection that database/sql uses
// for an int.
type (
	integer   int
	integer64 int64
)

// Scan implements [sql.Scanner].
func (i *integer) Scan(src any) error {
	v, ok := src.(int64)
	if !ok {
		return fmt.Errorf("%T in a column of integers", src)
	}
	*i = integer(v)
	return nil
}

// Scan implements [sql.Scanner].
func (i *integer64) Scan(src any) error {
	v, ok := src.(int64)
	if !ok {
		return fmt.Errorf("%T in a column of integers", src)
	}
	*i = integer64(v)
	return nil
}

// resource is kept as its name, such as "vms/web-1".
type resource vm.Resource

// Value implements [driver.Valuer].
func (r resource) Value() (driver.Value, error) { return vm.Resource(r).String(), nil }

// Scan implements [sql.Scanner].
func (r *resource) Scan(src any) error {
	var t text
	if err := t.Scan(src); err != nil {
		return err
	}
	*r = resource(vm.ParseResource(string(t)))
	return nil
}

// labels are kept as a JSON object, NULL for none.
type labels map[string]string

// Value implements [driver.Valuer].
func (l labels) Value() (driver.Value, error) {
	if len(l) == 0 {
		return nil, nil
	}
	return encode(map[string]string(l))
}

// Scan implements [sql.Scanner].
func (l *labels) Scan(src any) error {
	*l = nil // the row before has the map
	return decode(src, (*map[string]string)(l))
}

func encode(v any) (driver.Value, error) {
	b, err := json.Marshal(v)
	return string(b), err // a []byte would be stored as a BLOB
}

// decode decodes a column of JSON. It is a no-op for NULL.
func decode(src, into any) error {
	switch v := src.(type) {
	case nil:
		return nil
	case string:
		return json.Unmarshal([]byte(v), into)
	}
	return fmt.Errorf("%T in a column of JSON", src)
}

// prefix and address are stored as text, NULL for none.
type (
	prefix  netip.Prefix
	address netip.Addr
)

// Value implements [driver.Valuer].
func (p prefix) Value() (driver.Value, error) {
	if !netip.Prefix(p).IsValid() {
		return nil, nil
	}
	return netip.Prefix(p).String(), nil
}

// Scan implements [sql.Scanner].
func (p *prefix) Scan(src any) error {
	var t text
	if err := t.Scan(src); err != nil || t == "" {
		*p = prefix{}
		return err
	}
	parsed, err := netip.ParsePrefix(string(t))
	*p = prefix(parsed)
	return err
}

// Value implements [driver.Valuer].
func (a address) Value() (driver.Value, error) {
	if !netip.Addr(a).IsValid() {
		return nil, nil
	}
	return netip.Addr(a).String(), nil
}

// Scan implements [sql.Scanner].
func (a *address) Scan(src any) error {
	var t text
	if err := t.Scan(src); err != nil || t == "" {
		*a = address{}
		return err
	}
	parsed, err := netip.ParseAddr(string(t))
	*a = address(parsed)
	return err
}

// jsonList is stored as a JSON array, NULL for none.
type jsonList[T any] []T

// Value implements [driver.Valuer].
func (l jsonList[T]) Value() (driver.Value, error) {
	if len(l) == 0 {
		return nil, nil
	}
	return encode([]T(l))
}

// Scan implements [sql.Scanner].
func (l *jsonList[T]) Scan(src any) error {
	*l = nil
	return decode(src, (*[]T)(l))
}

// jsonPointer is a pointer that is stored as JSON, NULL for nil.
type jsonPointer[T any] struct{ p **T }

// Value implements [driver.Valuer].
func (j jsonPointer[T]) Value() (driver.Value, error) {
	if *j.p == nil {
		return nil, nil
	}
	return encode(*j.p)
}

// Scan implements [sql.Scanner].
func (j *jsonPointer[T]) Scan(src any) error {
	*j.p = nil
	return decode(src, j.p)
}

// rawJSON is JSON that is stored as text, NULL for none.
type rawJSON json.RawMessage

// Value implements [driver.Valuer].
func (r rawJSON) Value() (driver.Value, error) { return text(r).Value() }

// Scan implements [sql.Scanner].
func (r *rawJSON) Scan(src any) error {
	var t text
	err := t.Scan(src)
	*r = nil
	if t != "" {
		*r = rawJSON(t)
	}
	return err
}
