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
	holeBytes       = 64 << 10 // the smallest hole that is left
	writebackBytes  = 8 << 20
)

// copier writes a stream to a file and hashes it at the same time, on another
// processor where there is one. Blocks of zeros become holes.
type copier struct {
	f      *os.File
	at     int64     // where in the file it begins; what is there and beyond are holes
	sum    hash.Hash // nil for none
	max    int64     // where in the file it must have ended
	every  int64     // how many bytes to write between two calls of sync
	sync   func(at int64) error
	ratio  func() int64 // how many bytes have been transferred for it; nil for no limit
	filled int64        // bytes that are not in holes
	pushed int64        // up to where the kernel was told to write
}

// run copies r to its end and returns where in the file that is, also with an
// error: up to there the file is as it should be, but nothing of it is durable.
func (c *copier) run(r io.Reader) (int64, error) {
	free, full, done := make(chan []byte, copyBuffers), make(chan []byte, copyBuffers), make(chan struct{})
	for range copyBuffers {
		free <- make([]byte, copyBufferBytes)
	}
	go func() {
		defer close(done)
		for b := range full {
			if c.sum != nil {
				c.sum.Write(b)
			}
			free <- b[:copyBufferBytes] // c has written it before it takes it
		}
	}()
	defer func() { close(full); <-done }()
	c.pushed = c.at
	for synced := c.at; ; {
		b := <-free
		n, err := io.ReadFull(r, b)
		if b = b[:n]; n > 0 {
			// What cannot be written is not hashed: the sum is that of the file.
			if err := c.write(b); err != nil {
				return c.at, err
			}
			c.at += int64(n)
			full <- b
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			if isArrival(err) {
				return c.at, err
			}
			return c.at, c.f.Truncate(c.at)
		case err != nil:
			return c.at, err
		case c.sync != nil && c.at-synced >= c.every:
			if err := c.sync(c.at); err != nil {
				return c.at, err
			}
			synced = c.at
		}
	}
}

// isArrival tells an end that was brought from one that is io.ReadFull's.
func isArrival(err error) bool {
	var a *arrivalError
	return errors.As(err, &a)
}

func (c *copier) write(b []byte) error {
	if int64(len(b)) > c.max-c.at {
		return &TooLarge{Max: c.max}
	}
	for from := 0; from < len(b); {
		to := from
		for to < len(b) && !zero(b[to:min(to+holeBytes, len(b))]) {
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
	if c.ratio != nil && c.filled > bombAllowance && (c.filled-bombAllowance)/maxRatio > c.ratio() {
		return unsafef("%d transferred bytes expand to more than %d", c.ratio(), c.filled)
	}
	if end := c.at + int64(len(b)); end-c.pushed >= writebackBytes {
		// So that the disk is busy before the end. Whether it works does not matter.
		_ = unix.SyncFileRange(int(c.f.Fd()), c.pushed, end-c.pushed, unix.SYNC_FILE_RANGE_WRITE)
		c.pushed = end
	}
	return nil
}

// zero reports whether all bytes are.
func zero(b []byte) bool {
	for ; len(b) >= 32; b = b[32:] {
		if binary.NativeEndian.Uint64(b)|binary.NativeEndian.Uint64(b[8:])|binary.NativeEndian.Uint64(b[16:])|binary.NativeEndian.Uint64(b[24:]) != 0 {
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

// arrival is what is transferred: counted, bounded, and cancelled by its context.
type arrival struct {
	ctx      context.Context
	r        io.Reader
	n, max   int64
	progress func(done int64)
}

// Read implements [io.Reader]. Every error but the end is an [arrivalError].
func (a *arrival) Read(p []byte) (int, error) {
	if err := a.ctx.Err(); err != nil {
		return 0, &arrivalError{context.Cause(a.ctx)}
	}
	n, err := a.r.Read(p)
	a.n += int64(n)
	if a.n > a.max {
		return 0, &arrivalError{&TooLarge{Max: a.max}}
	}
	if n > 0 && a.progress != nil {
		a.progress(a.n)
	}
	if err != nil && err != io.EOF {
		err = &arrivalError{err}
	}
	return n, err
}
