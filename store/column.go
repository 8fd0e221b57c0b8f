package store

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"time"
)

// text is a string that is NULL when it is empty: a NULL is read in half the time.
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

// instant is a time as it is kept: unix milliseconds, 0 for never. SQLite's
// driver would write a [time.Time] as its String.
type instant time.Time

// Value implements [driver.Valuer].
func (i instant) Value() (driver.Value, error) {
	if time.Time(i).IsZero() {
		return int64(0), nil
	}
	return time.Time(i).UnixMilli(), nil
}

// Scan implements [sql.Scanner].
func (i *instant) Scan(src any) error {
	ms, ok := src.(int64)
	if !ok {
		return fmt.Errorf("%T in a column of milliseconds", src)
	}
	*i = instant{}
	if ms != 0 {
		*i = instant(time.UnixMilli(ms).UTC())
	}
	return nil
}

// integer and integer64 are read without the reflection that database/sql needs
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
	*l = nil // not the map there is: the VM before has it
	return decode(src, (*map[string]string)(l))
}

func encode(v any) (driver.Value, error) {
	b, err := json.Marshal(v)
	return string(b), err // a []byte would be a BLOB
}

// decode decodes a column of JSON, unless it is NULL.
func decode(src, into any) error {
	switch v := src.(type) {
	case nil:
		return nil
	case string:
		return json.Unmarshal([]byte(v), into)
	}
	return fmt.Errorf("%T in a column of JSON", src)
}
