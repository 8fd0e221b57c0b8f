package image

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

const (
	gzipMagic = "\x1f\x8b\x08"
	zstdMagic = "\x28\xb5\x2f\xfd"
	xzMagic   = "\xfd7zXZ\x00"
	bzipMagic = "BZh"

	// maxZstdWindow is the largest window that the zstd program accepts by default.
	maxZstdWindow = 128 << 20
	// maxXZDict is the dictionary size of xz -9.
	maxXZDict = 64 << 20

	// maxRatio is how many bytes that are not zero one transferred byte may expand to,
	// after the first bombAllowance bytes. Blocks of zeros take no room on the disk, and an
	// empty disk is an honest image: xz makes 1/6,800 of it and zstd up to 1/32,768. But
	// zeros take CPU time, about 1 ns each, to be expanded and hashed, and bzip2 makes
	// 1/900,000 of them. So maxZeroRatio, for all bytes, is that of zstd: 1 MB cannot take
	// more than half a minute of one processor. [turns] bounds how many.
	maxRatio      = 256
	maxZeroRatio  = 32 << 10
	bombAllowance = 64 << 20
)

// A compression is a format that an image can be compressed with. The zero value
// is no compression.
type compression struct {
	name  string
	magic string
	open  func(*bufio.Reader) (r io.Reader, closeReader func(), err error)
}

var compressions = []compression{
	{"gzip", gzipMagic, openGzip},
	{"xz", xzMagic, openXZ},
	{"zstd", zstdMagic, openZstd},
	{"bzip2", bzipMagic, openBzip2},
}

func openGzip(in *bufio.Reader) (io.Reader, func(), error) {
	r, err := gzip.NewReader(in)
	return r, func() {}, err
}

func openXZ(in *bufio.Reader) (io.Reader, func(), error) {
	r, err := xz.NewReader(in, maxXZDict)
	return r, func() {}, err
}

// openBzip2 returns a reader that needs at most 6 MiB.
func openBzip2(in *bufio.Reader) (io.Reader, func(), error) {
	return bzip2.NewReader(in), func() {}, nil
}

func openZstd(in *bufio.Reader) (io.Reader, func(), error) {
	r, err := zstd.NewReader(in,
		zstd.WithDecoderConcurrency(1), // decodes in the caller, one block at a time
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxZstdWindow),
		zstd.WithDecoderMaxMemory(1<<62),
	)
	if err != nil {
		return nil, func() {}, err
	}
	return r, r.Close, nil
}

// detectCompression returns the compression of a stream by its first bytes, which it
// leaves in the buffer. Only one layer is expanded: the expanded stream is inspected
// as an image, and a compressed image is refused.
func detectCompression(in *bufio.Reader) (compression, error) {
	head, err := in.Peek(len(xzMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return compression{}, err
	}
	for _, c := range compressions {
		if strings.HasPrefix(string(head), c.magic) {
			return c, nil
		}
	}
	return compression{}, nil
}

// used reports whether the stream is compressed.
func (c compression) used() bool { return c.open != nil }

// expand returns a reader of the expanded stream, and a function that closes it.
func (c compression) expand(in *bufio.Reader) (io.Reader, func(), error) {
	if !c.used() {
		return in, func() {}, nil
	}
	r, closeReader, err := c.open(in)
	if err != nil {
		return nil, nil, c.wrap(err)
	}
	return &expander{c, r}, closeReader, nil
}

// wrap adds the name of the format to an error of the decoder. An [inputError] is
// returned unchanged.
func (c compression) wrap(err error) error {
	var input *inputError
	switch {
	case errors.As(err, &input):
		return input
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return unsupportedf("the zstd stream needs a window of more than %d MiB", maxZstdWindow/mib)
	case errors.Is(err, xz.ErrMemlimit):
		return unsupportedf("the xz stream needs a dictionary of more than %d MiB", maxXZDict/mib)
	case errors.Is(err, xz.ErrOptions), errors.Is(err, xz.ErrUnsupportedCheck):
		return unsupportedf("the xz stream has a filter or a checksum that is not supported: " +
			"compress the image again with \"xz\" and no other options")
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return damagedf("the %s stream is broken: %v", c.name, err)
}

// expander reads an expanded stream and wraps the errors of the decoder.
type expander struct {
	compression
	r io.Reader
}

// Read implements [io.Reader].
func (e *expander) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && err != io.EOF {
		err = e.wrap(err)
	}
	return n, err
}

// inputError marks an error of the reader that an image is imported from, so that it
// is still recognized after it passed through a decoder.
type inputError struct{ err error }

func (e *inputError) Error() string { return e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

// unwrapInput returns the error of the reader that an image is imported from, or err
// if it is of another origin.
func unwrapInput(err error) error {
	var input *inputError
	if errors.As(err, &input) {
		return input.err
	}
	return err
}
