package image

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
)

const (
	gzipMagic = "\x1f\x8b\x08"
	zstdMagic = "\x28\xb5\x2f\xfd"

	// maxZstdWindow is what the zstd program accepts without being asked to take more.
	maxZstdWindow = 128 << 20

	// maxRatio is how many bytes that are not zero one transferred byte may become,
	// beyond the first bombAllowance of them. Blocks of zeros take no room and are
	// bounded by Options.MaxBytes alone: an empty disk is honest.
	maxRatio      = 256
	bombAllowance = 64 << 20
)

// expansion is what an image is transferred in.
type expansion struct {
	name  string // "" for an image as it is
	magic string
	open  func(*bufio.Reader) (io.Reader, func(), error)
}

var expansions = []expansion{
	{"gzip", gzipMagic, func(in *bufio.Reader) (io.Reader, func(), error) {
		r, err := gzip.NewReader(in)
		return r, func() {}, err
	}},
	{"xz", xzMagic, func(in *bufio.Reader) (io.Reader, func(), error) { return newXZReader(in), func() {}, nil }},
	{"zstd", zstdMagic, func(in *bufio.Reader) (io.Reader, func(), error) {
		// Concurrency 1 decodes in the caller, one block at a time.
		r, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderMaxMemory(1<<62))
		if err != nil {
			return nil, func() {}, err
		}
		return r, r.Close, nil
	}},
}

// expansionOf returns what a stream that begins so is compressed by, without
// taking anything from it. There is one layer: what it expands to is looked at as an
// image, and a compressed one is refused.
func expansionOf(in *bufio.Reader) (expansion, error) {
	head, err := in.Peek(len(xzMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return expansion{}, err
	}
	for _, e := range expansions {
		if strings.HasPrefix(string(head), e.magic) {
			return e, nil
		}
	}
	return expansion{}, nil
}

// expand returns what in expands to, and what to call in the end.
func (e expansion) expand(in *bufio.Reader) (io.Reader, func(), error) {
	if e.open == nil {
		return in, func() {}, nil
	}
	r, end, err := e.open(in)
	if err != nil {
		return nil, nil, e.fault(err)
	}
	return &expander{e, r}, end, nil
}

// fault says of a decoder's error which format could not be read.
func (e expansion) fault(err error) error {
	var arrival *arrivalError
	switch {
	case errors.As(err, &arrival):
		return arrival
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return unsafef("the zstd stream needs a window of more than %d MiB", maxZstdWindow/mib)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return unsafef("the %s stream is broken: %v", e.name, err)
}

// expander names the format in the errors of a decoder.
type expander struct {
	expansion
	r io.Reader
}

// Read implements [io.Reader].
func (e *expander) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && err != io.EOF {
		err = e.fault(err)
	}
	return n, err
}

// arrivalError is an error of what brings an image, as it passes a decoder.
type arrivalError struct{ err error }

func (e *arrivalError) Error() string { return e.err.Error() }
func (e *arrivalError) Unwrap() error { return e.err }
