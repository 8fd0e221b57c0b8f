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

// Limits of the shape of a reply. They bound the cost of decoding it to a small multiple
// of its length.
const (
	maxDepth    = 16
	maxElements = 1 << 14 // values in all arrays and objects
)

// Limits of text from a guest, in bytes.
const (
	maxText = 255 // of a name
	maxDesc = 512 // of the description of an error
	maxPath = 4096
)

// decode decodes a reply into out, unless out is nil. It returns an [*Error] if the
// reply is a refusal.
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
		return fmt.Errorf("%w: %s", ErrGarbage, clean(err.Error(), maxDesc))
	}
	switch {
	case reply.Error != nil:
		return &Error{
			Command: command,
			Class:   clean(reply.Error.Class, maxText),
			Desc:    clean(reply.Error.Desc, maxDesc),
		}
	case reply.Return == nil || out == nil && ignored == nil: // null or missing
		return fmt.Errorf("%w: an empty reply to %s", ErrGarbage, command)
	}
	return nil
}

// checkShape returns an error if a line is not a JSON object, or costs much to decode. It
// does not check that the JSON is valid.
func checkShape(line []byte) error {
	depth, elements := 0, 0
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '"':
			end := stringEnd(line[i+1:])
			if end < 0 {
				return fmt.Errorf("%w: an unterminated string", ErrGarbage)
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
			return fmt.Errorf("%w: more than %d levels or %d values", ErrGarbage, maxDepth, maxElements)
		}
	}
	if len(line) == 0 || line[0] != '{' || bytes.IndexByte(line, delimiter) >= 0 {
		begin := string(line[:min(len(line), 80)])
		return fmt.Errorf("%w: not a JSON object: %s", ErrGarbage, clean(begin, maxText))
	}
	return nil
}

// stringEnd returns the index of the quote that ends a string, or -1. b begins after the
// opening quote.
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

// clean returns text of a guest in a form that can be displayed: valid UTF-8 of at most
// maxBytes, with only printable characters and spaces.
func clean(text string, maxBytes int) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\t' || r == '\n':
			r = ' '
		case r == utf8.RuneError, !unicode.IsPrint(r):
			continue
		}
		if b.Len()+utf8.RuneLen(r) > maxBytes {
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// size is a number of bytes. It decodes to 0 if the value is not a valid number.
type size int64

// UnmarshalJSON implements [json.Unmarshaler]. It accepts any value.
func (s *size) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if *s = size(n); err != nil || n > math.MaxInt64 {
		*s = 0
	}
	return nil
}
