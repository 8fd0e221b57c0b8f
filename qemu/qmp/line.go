package qmp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxLine is the length limit of a message in bytes. The longest known message of QEMU,
// the reply to query-qmp-schema, has about 200 KiB.
const maxLine = 10 << 20

// lineBuffer is the size in bytes of a connection's read buffer. Most messages
// fit; there is one such buffer per running VM.
const lineBuffer = 8 << 10

// lineReader splits a stream into lines.
type lineReader struct {
	buf *bufio.Reader
	max int // bytes of a line, with the newline
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{buf: bufio.NewReaderSize(r, lineBuffer), max: maxLine}
}

// next returns the next line that is not blank, without surrounding white space. The
// bytes are valid until the next call. If the stream ends within a line, next returns
// [io.ErrUnexpectedEOF].
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

// line returns the next line with its newline.
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

// long reads the rest of a line that does not fit into the buffer, into memory of its
// own.
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
