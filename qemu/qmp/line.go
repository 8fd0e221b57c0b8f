package qmp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxLine is the length in bytes of the longest message taken. The longest
// that QEMU is known to send, query-qmp-schema's answer, has some 200 KiB.
const maxLine = 10 << 20

// lineBuffer is the size in bytes of a connection's read buffer. Most messages
// fit; there is one such buffer per running VM.
const lineBuffer = 8 << 10

// lineReader cuts a stream into lines.
type lineReader struct {
	buf *bufio.Reader
	max int // bytes, with the newline
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{buf: bufio.NewReaderSize(r, lineBuffer), max: maxLine}
}

// next returns the next line that is not blank, without the white space round
// it. The bytes are valid until the next call. A stream that ends within a
// line ends in [io.ErrUnexpectedEOF].
func (l *lineReader) next() ([]byte, error) {
	for {
		line, err := l.line()
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}

func (l *lineReader) line() ([]byte, error) {
	line, err := l.buf.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line, err = l.long(line)
	}
	switch {
	case len(line) > l.max:
		return nil, fmt.Errorf("message longer than %d bytes", l.max)
	case errors.Is(err, io.EOF) && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return line, nil
}

// long reads on a line that fills the buffer, into memory of its own.
func (l *lineReader) long(start []byte) ([]byte, error) {
	line := append(make([]byte, 0, 4*len(start)), start...)
	for len(line) <= l.max {
		part, err := l.buf.ReadSlice('\n')
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
	return line, nil
}
