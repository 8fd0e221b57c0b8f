package openapi

import (
	"errors"
	"time"
)

// Time is a time in the format of the API: RFC 3339, in UTC, with exactly three digits of
// milliseconds. Smaller fractions are truncated.
type Time struct{ time.Time }

const (
	timeLayout = "2006-01-02T15:04:05.000Z"
	// AppendFormat writes nine digits of the fraction and then truncates them.
	timeRoom = len(timeLayout) + len(`""`) + 6
)

// MarshalJSON returns the formatted time in quotes. It fails if the year does not have
// four digits, as RFC 3339 requires.
func (t Time) MarshalJSON() ([]byte, error) {
	b, err := t.AppendText(append(make([]byte, 0, timeRoom), '"'))
	if err != nil {
		return nil, err
	}
	return append(b, '"'), nil
}

// MarshalText is like [Time.MarshalJSON], without quotes.
func (t Time) MarshalText() ([]byte, error) {
	return t.AppendText(make([]byte, 0, timeRoom))
}

// AppendText appends the formatted time to b.
func (t Time) AppendText(b []byte) ([]byte, error) {
	u := t.UTC()
	if y := u.Year(); y < 0 || y > 9999 {
		return nil, errors.New("time: the year is not in the range 0 to 9999")
	}
	return u.AppendFormat(b, timeLayout), nil
}

// String returns the formatted time.
func (t Time) String() string { return t.UTC().Format(timeLayout) }
