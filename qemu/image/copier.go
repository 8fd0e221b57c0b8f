package image

import (
	"context"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	copyBuffers     = 4
	copyBufferBytes = 256 << 10
	holeBytes       = 64 << 10 // smallest hole that is left
	writebackBytes  = 8 << 20
)

// copier writes a stream to a file and hashes it in a second goroutine. Blocks of
// zeros become holes.
type copier struct {
	f          *os.File
	at         int64     // offset of the next byte; the file has only holes from the first one on
	sum        hash.Hash // nil for none
	max        int64     // highest offset that the copy may reach
	syncEvery  int64     // bytes between two calls of sync
	sync       func(at int64) error
	inputBytes func() int64 // transferred bytes, to limit the ratio; nil for no limit
	turn       *turn        // to expand and write; nil for a stream that is not compressed
	filled     int64        // bytes written that are not in holes
	pushed     int64        // offset up to which writeback has been started
}

// run copies r until its end and returns the offset it reached, also with an error.
// Up to that offset the file has the content of r, but it is not durable.
func (c *copier) run(r io.Reader) (int64, error) {
	free := make(chan []byte, copyBuffers)
	full := make(chan []byte, copyBuffers)
	done := make(chan struct{})
	for range copyBuffers {
		free <- make([]byte, copyBufferBytes)
	}
	go func() {
		defer close(done)
		for b := range full {
			if c.sum != nil {
				c.sum.Write(b)
			}
			free <- b[:copyBufferBytes]
		}
	}()
	defer func() {
		close(full)
		<-done
	}()
	defer c.turn.leave()
	c.pushed = c.at
	for synced := c.at; ; {
		b := <-free
		if err := c.turn.take(); err != nil {
			return c.at, err
		}
		n, err := io.ReadFull(r, b)
		if b = b[:n]; n > 0 {
			// Write before hashing: the sum must not include bytes that the file lacks.
			if err := c.write(b); err != nil {
				return c.at, err
			}
			c.at += int64(n)
			c.turn.leave()
			full <- b
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			if isInputError(err) { // not the EOF of io.ReadFull
				return c.at, err
			}
			return c.at, c.f.Truncate(c.at)
		case err != nil:
			return c.at, err
		case c.sync != nil && c.at-synced >= c.syncEvery:
			if err := c.sync(c.at); err != nil {
				return c.at, err
			}
			synced = c.at
		}
	}
}

func isInputError(err error) bool { return errors.As(err, new(*inputError)) }

// write writes b at c.at, leaving out blocks of zeros.
func (c *copier) write(b []byte) error {
	if int64(len(b)) > c.max-c.at {
		return &TooLarge{Max: c.max}
	}
	for from := 0; from < len(b); {
		to := from
		for to < len(b) && !isZero(b[to:min(to+holeBytes, len(b))]) {
			to = min(to+holeBytes, len(b))
		}
		if to == from {
			from = min(from+holeBytes, len(b))
			continue
		}
		if _, err := c.f.WriteAt(b[from:to], c.at+int64(from)); err != nil {
			return err
		}
		c.filled += int64(to - from)
		from = to
	}
	end := c.at + int64(len(b))
	if err := c.checkRatio(end); err != nil {
		return err
	}
	if end-c.pushed >= writebackBytes {
		// Best effort: start writing now, so that the final fsync has less to do.
		_ = unix.SyncFileRange(int(c.f.Fd()), c.pushed, end-c.pushed, unix.SYNC_FILE_RANGE_WRITE)
		c.pushed = end
	}
	return nil
}

// checkRatio refuses a compression bomb.
func (c *copier) checkRatio(end int64) error {
	if c.inputBytes == nil || end <= bombAllowance {
		return nil
	}
	if in := c.inputBytes(); (c.filled-bombAllowance)/maxRatio > in {
		return hostilef("%d transferred bytes expand to more than %d", in, c.filled)
	}
	return c.checkZeroRatio(end)
}

// checkZeroRatio refuses n expanded bytes, written or not, that so few bytes were transferred for
// that nearly all must be zeros.
func (c *copier) checkZeroRatio(n int64) error {
	if c.inputBytes == nil || n <= bombAllowance {
		return nil
	}
	if in := c.inputBytes(); (n-bombAllowance)/maxZeroRatio > in {
		return hostilef("%d transferred bytes expand to more than %d, nearly all of them zeros: "+
			"compress the image with zstd, xz or gzip, or convert it to qcow2", in, n)
	}
	return nil
}

// isZero reports whether all bytes of b are zero.
func isZero(b []byte) bool {
	ne := binary.NativeEndian
	for ; len(b) >= 32; b = b[32:] {
		if ne.Uint64(b)|ne.Uint64(b[8:])|ne.Uint64(b[16:])|ne.Uint64(b[24:]) != 0 {
			return false
		}
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// input reads an image as it is transferred. It counts the bytes, limits them, and
// fails when its context is done.
type input struct {
	ctx      context.Context
	r        io.Reader
	n, max   int64
	progress func(done int64)
	turn     *turn // given back while it waits for r; may be nil
}

// Read implements [io.Reader]. Every error except io.EOF is an [inputError].
func (in *input) Read(p []byte) (int, error) {
	if err := in.ctx.Err(); err != nil {
		return 0, &inputError{context.Cause(in.ctx)}
	}
	held := in.turn.leave()
	n, err := in.r.Read(p)
	if held {
		if err := in.turn.take(); err != nil {
			return 0, err
		}
	}
	in.n += int64(n)
	if in.n > in.max {
		return 0, &inputError{&TooLarge{Max: in.max}}
	}
	if n > 0 && in.progress != nil {
		in.progress(in.n)
	}
	if err != nil && err != io.EOF {
		err = &inputError{err}
	}
	return n, err
}
