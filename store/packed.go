package store

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The columns nics, forwards, cdroms and facts of a VM are packed: records of
// fields, each field followed by a comma, the last one of a record by a
// semicolon. No field can have either in it, so nothing is escaped; the one of
// free text, the reason of a NIC, says its length in bytes first. Numbers are
// decimal, times unix milliseconds, and there is one way only to write a value.
//
// Strings are cut out of the column and not copied: the whole of a usual row is
// decoded with one allocation, in a tenth of the time that JSON takes.

// A cursor reads packed fields. After its first error it reads nothing more.
type cursor struct {
	rest string
	err  error
}

// unpack returns a cursor on a column.
func unpack(src any) (c cursor) {
	var packed text
	c.err = packed.Scan(src)
	c.rest = string(packed)
	return c
}

// more reports whether there is another record.
func (c *cursor) more() bool { return c.rest != "" && c.err == nil }

func (c *cursor) fail(what, field string) {
	if c.err == nil {
		c.err = fmt.Errorf("%q is not %s", field, what)
	}
}

// field returns what is before the next end.
func (c *cursor) field(end byte) string {
	if c.err != nil {
		return ""
	}
	i := strings.IndexByte(c.rest, end)
	if i < 0 {
		c.fail(fmt.Sprintf("followed by %q", end), c.rest)
		return ""
	}
	field := c.rest[:i]
	c.rest = c.rest[i+1:]
	return field
}

// word returns a field that is not empty.
func (c *cursor) word(end byte) string {
	field := c.field(end)
	if field == "" {
		c.fail("a word", field)
	}
	return field
}

// oneOf returns a field that is one of some words.
func oneOf[T ~string](c *cursor, end byte, words []T) T {
	field := T(c.field(end))
	if !slices.Contains(words, field) {
		c.fail(fmt.Sprintf("one of %q", words), string(field))
	}
	return field
}

// number returns a field that is a number from 0 to limit.
func (c *cursor) number(end byte, limit int64) int64 {
	field := c.field(end)
	n, good := int64(0), field == "0" || field != "" && field[0] != '0' && len(field) < 19
	for i := 0; i < len(field) && good; i++ {
		digit := field[i] - '0'
		n, good = n*10+int64(digit), digit < 10
	}
	if !good || n > limit {
		c.fail(fmt.Sprintf("a number up to %d", limit), field)
	}
	return n
}

// addr returns a field that is an IP address or empty.
func (c *cursor) addr(end byte) netip.Addr {
	field := c.field(end)
	if field == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(field)
	if err != nil {
		c.fail("an IP address", field)
	}
	return a
}

// time returns a field that is a time or 0 for none.
func (c *cursor) time(end byte) time.Time {
	if ms := c.number(end, maxMillis); ms != 0 {
		return time.UnixMilli(ms).UTC()
	}
	return time.Time{}
}

// freeText returns a field of any bytes.
func (c *cursor) freeText(end byte) string {
	n := c.number(':', int64(len(c.rest)))
	if c.err != nil {
		return ""
	}
	if int(n) >= len(c.rest) || c.rest[n] != end {
		c.fail(fmt.Sprintf("%d bytes and %q", n, end), c.rest)
		return ""
	}
	text := c.rest[:n]
	c.rest = c.rest[n+1:]
	return text
}

// Limits of packed numbers, so that no sum or product of them overflows.
const (
	maxMillis = 1 << 53
	maxNumber = 1 << 31
	maxPort   = 1<<16 - 1
)

func appendNumber(b []byte, n int64, end byte) []byte {
	return append(strconv.AppendInt(b, n, 10), end)
}

func appendWord[T ~string](b []byte, word T, end byte) []byte {
	return append(append(b, word...), end)
}

func appendAddr(b []byte, a netip.Addr, end byte) []byte {
	return append(a.AppendTo(b), end) // nothing for none
}

func appendTime(b []byte, t time.Time, end byte) []byte {
	if t.IsZero() {
		return append(b, '0', end)
	}
	return appendNumber(b, t.UnixMilli(), end)
}

func appendFreeText(b []byte, text string, end byte) []byte {
	return append(append(appendNumber(b, int64(len(text)), ':'), text...), end)
}
