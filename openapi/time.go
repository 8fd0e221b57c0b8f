package openapi

import (
	"errors"
	"time"
)

// TimeLayout is the layout of a time in UTC: RFC 3339 with exactly three digits
// of milliseconds. Finer digits are cut off, not rounded.
const TimeLayout = "2006-01-02T15:04:05.000Z"

// AppendTime appends t by [TimeLayout] to b. The year must be in 0 to 9999.
func AppendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	b = t.AppendFormat(b, time.RFC3339) // three times as fast as a layout with milliseconds
	ms := t.Nanosecond() / int(time.Millisecond)
	return append(b[:len(b)-len("Z")], '.', '0'+byte(ms/100), '0'+byte(ms/10%10), '0'+byte(ms%10), 'Z')
}

// Time is a time that is encoded by [TimeLayout].
type Time struct{ time.Time }

// MarshalJSON returns the time in quotes. It returns an error for a year outside
// of 0 to 9999, which RFC 3339 cannot express.
func (t Time) MarshalJSON() ([]byte, error) {
	b, err := t.AppendText(append(make([]byte, 0, len(TimeLayout)+len(`""`)), '"'))
	if err != nil {
		return nil, err
	}
	return append(b, '"'), nil
}

// MarshalText is [Time.MarshalJSON] without quotes.
func (t Time) MarshalText() ([]byte, error) {
	return t.AppendText(make([]byte, 0, len(TimeLayout)))
}

// AppendText appends the time to b. It fails like [Time.MarshalJSON].
func (t Time) AppendText(b []byte) ([]byte, error) {
	if y := t.UTC().Year(); y < 0 || y > 9999 {
		return nil, errors.New("time: the year is outside of 0 to 9999")
	}
	return AppendTime(b, t.Time), nil
}

// String returns the time by [TimeLayout].
func (t Time) String() string { return t.UTC().Format(TimeLayout) }
