package qmp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestAContextWithoutDeadlineGetsTheDefault(t *testing.T) {
	t.Parallel()
	ctx, cancel := withDefaultTimeout(context.Background())
	defer cancel()
	end, ok := ctx.Deadline()
	if left := time.Until(end); !ok || left > DefaultTimeout || left < DefaultTimeout/2 {
		t.Errorf("deadline %v, %v; want one in %v", end, ok, DefaultTimeout)
	}
	long, cancelLong := context.WithTimeout(context.Background(), time.Hour)
	defer cancelLong()
	if got, _ := withDefaultTimeout(long); got != long {
		t.Error("a context with a deadline was changed")
	}
}

func TestLineReader(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3*lineBuffer)
	longest := strings.Repeat("y", 5*lineBuffer-1)
	tests := map[string]struct {
		in   string
		want []string
		err  error
	}{
		"an empty stream":          {"", nil, io.EOF},
		"both line breaks":         {"a\r\nb\n", []string{"a", "b"}, io.EOF},
		"blank lines":              {"\n\r\n  \na\n\n", []string{"a"}, io.EOF},
		"an unterminated line":     {"a\nb", []string{"a"}, io.ErrUnexpectedEOF},
		"a long line between":      {"a\n" + long + "\nb\n", []string{"a", long, "b"}, io.EOF},
		"an unterminated long one": {long, nil, io.ErrUnexpectedEOF},
		"a line of maximum length": {longest + "\na\n", []string{longest, "a"}, io.EOF},
	}
	for name, tt := range tests {
		for kind, r := range map[string]io.Reader{
			"at once":        strings.NewReader(tt.in),
			"byte by byte":   iotest.OneByteReader(strings.NewReader(tt.in)),
			"with its error": iotest.DataErrReader(strings.NewReader(tt.in)),
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				l := newLineReader(r)
				l.max = 5 * lineBuffer
				var got []string
				line, err := l.next()
				for ; err == nil; line, err = l.next() {
					got = append(got, string(line))
				}
				if strings.Join(got, "\n") != strings.Join(tt.want, "\n") || !errors.Is(err, tt.err) {
					t.Errorf("got %d lines and %v, want %d and %v", len(got), err, len(tt.want), tt.err)
				}
			})
		}
	}
}

func TestLineReaderRefusesEndlessLines(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		strings.Repeat("y", 5*lineBuffer) + "\n",
		strings.Repeat("y", 100*lineBuffer),
	} {
		l := newLineReader(strings.NewReader(in))
		l.max = 5 * lineBuffer
		if line, err := l.next(); err == nil || !strings.Contains(err.Error(), "longer than") {
			t.Errorf("got %d bytes and error %v, want one about the length", len(line), err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("{}\r\n{}\n"), 1)
	f.Add([]byte("\n\n x \n"), 4)
	f.Add(bytes.Repeat([]byte("ab\n"), 9), 40)
	f.Add(append(bytes.Repeat([]byte("z"), 60), '\n'), 7)
	f.Add(append(bytes.Repeat([]byte("z"), 99), '\n'), 16)
	f.Fuzz(func(t *testing.T, in []byte, chunk int) {
		// With small sizes, short inputs reach the limits.
		l := &lineReader{buf: bufio.NewReaderSize(&chunks{in, chunk}, 16), max: 64}
		rest := in
		for {
			got, err := l.next()
			// The reader must return the next line that is not blank.
			var want []byte
			whole := true
			for len(want) == 0 && whole && len(rest) > 0 {
				var line []byte
				line, rest, whole = bytes.Cut(rest, []byte("\n"))
				if len(line) >= l.max {
					if err == nil || errors.Is(err, io.EOF) {
						t.Fatalf("a line of %d bytes: error %v", len(line), err)
					}
					return
				}
				want = bytes.TrimSpace(line)
				if !whole {
					if !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Fatalf("the stream ends in a line: error %v", err)
					}
					return
				}
			}
			if !bytes.Equal(got, want) || (err == nil) != (len(want) > 0) {
				t.Fatalf("got %q, %v; want %q", got, err, want)
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Fatalf("at the end: error %v", err)
				}
				return
			}
		}
	})
}

// chunks is a reader that returns at most size bytes at a time.
type chunks struct {
	left []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), max(1, c.size))], c.left)
	c.left = c.left[n:]
	return n, nil
}
