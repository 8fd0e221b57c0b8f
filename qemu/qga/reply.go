package qga

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of the shape of a reply, so that decoding it costs no more than some
// times its length.
const (
	maxDepth    = 16
	maxElements = 1 << 14 // values in all its arrays and objects
)

// Limits in bytes of texts from a guest.
const (
	maxText  = 255 // a name
	maxWords = 512 // of an error
	maxPath  = 4096
)

// decode decodes a reply into out, unless that is nil.
func decode(command string, line []byte, out any) error {
	if err := checkShape(line); err != nil {
		return err
	}
	var reply struct {
		Return any `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	var ignored json.RawMessage
	reply.Return = &ignored
	if out != nil {
		reply.Return = out
	}
	if err := json.Unmarshal(line, &reply); err != nil {
		return fmt.Errorf("%w: %s", ErrGarbage, clean(err.Error(), maxWords))
	}
	switch {
	case reply.Error != nil:
		return &Error{Command: command, Class: clean(reply.Error.Class, maxText), Desc: clean(reply.Error.Desc, maxWords)}
	case reply.Return == nil || out == nil && ignored == nil: // null, or not there
		return fmt.Errorf("%w: it answers %s with nothing", ErrGarbage, command)
	}
	return nil
}

// checkShape reports whether a line is one JSON object that can be decoded at
// little cost. It looks no closer than that.
func checkShape(line []byte) error {
	depth, elements := 0, 0
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '"':
			end := stringEnd(line[i+1:])
			if end < 0 {
				return fmt.Errorf("%w: a string without an end", ErrGarbage)
			}
			i += end + 1
		case '{', '[':
			depth++
			elements++
		case '}', ']':
			depth--
		case ',':
			elements++
		}
		if depth > maxDepth || elements > maxElements {
			return fmt.Errorf("%w: a reply of more than %d levels or %d values", ErrGarbage, maxDepth, maxElements)
		}
	}
	if len(line) == 0 || line[0] != '{' || bytes.IndexByte(line, delimiter) >= 0 {
		return fmt.Errorf("%w: not a reply: %s", ErrGarbage, clean(string(line[:min(len(line), 80)]), maxText))
	}
	return nil
}

// stringEnd returns where a string ends whose beginning was read, or -1.
func stringEnd(b []byte) int {
	for i := 0; i < len(b); i++ {
		j := bytes.IndexByte(b[i:], '"')
		if j < 0 {
			return -1
		}
		escapes := 0
		for k := i + j - 1; k >= i && b[k] == '\\'; k-- {
			escapes++
		}
		if i += j; escapes%2 == 0 {
			return i
		}
	}
	return -1
}

// clean returns a text of a guest's as it can be shown: valid UTF-8 of at most
// that many bytes, nothing in it but what is visible and spaces.
func clean(text string, most int) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\t' || r == '\n':
			r = ' '
		case r == utf8.RuneError, !unicode.IsPrint(r):
			continue
		}
		if b.Len()+utf8.RuneLen(r) > most {
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// size is a number of bytes, 0 for what is none.
type size int64

// UnmarshalJSON takes any value.
func (s *size) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if *s = size(n); err != nil || n > math.MaxInt64 {
		*s = 0
	}
	return nil
}
