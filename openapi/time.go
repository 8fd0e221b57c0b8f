package openapi

import (
	"errors"
	"time"
)

// Time is a moment as the API spells it: RFC 3339, in UTC, with exactly three
// digits of milliseconds. What is finer is cut off.
type Time struct{ time.Time }

const (
	timeLayout = "2006-01-02T15:04:05.000Z"
	// AppendFormat writes nine digits of the second before it cuts some off.
	timeRoom = len(timeLayout) + len(`""`) + 6
)

// MarshalJSON returns the quoted spelling. A year that RFC 3339 has no four
// digits for is an error.
func (t Time) MarshalJSON() ([]byte, error) {
	b, err := t.AppendText(append(make([]byte, 0, timeRoom), '"'))
	if err != nil {
		return nil, err
	}
	return append(b, '"'), nil
}

// MarshalText is as [Time.MarshalJSON], without quotes.
func (t Time) MarshalText() ([]byte, error) {
	return t.AppendText(make([]byte, 0, timeRoom))
}

// AppendText appends the spelling to b.
func (t Time) AppendText(b []byte) ([]byte, error) {
	u := t.UTC()
	if y := u.Year(); y < 0 || y > 9999 {
		return nil, errors.New("time: the year is outside of 0 to 9999")
	}
	return u.AppendFormat(b, timeLayout), nil
}

// String returns the spelling.
func (t Time) String() string { return t.UTC().Format(timeLayout) }
