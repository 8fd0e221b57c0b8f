package qga

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// chunk is how many bytes of a file one command reads or writes. Its base64 fits into
// a reply of maxLine.
const chunk = 256 << 10

// closeTimeout limits the closing of a file in a guest.
const closeTimeout = 2 * time.Second

// ErrTooLarge is the error for a file that is larger than the limit of a copy.
var ErrTooLarge = errors.New("the file is too large")

// ReadFile copies a guest's file to w. If the file is larger than limit bytes, ReadFile
// copies limit bytes and fails with [ErrTooLarge]. It returns errors of w unchanged.
func (c *Client) ReadFile(ctx context.Context, path string, w io.Writer, limit int64) (err error) {
	handle, err := c.open(ctx, path, "r")
	if err != nil {
		return err
	}
	defer func() {
		if !connectionLost(err) {
			c.closeFile(ctx, handle)
		}
	}()
	for left := limit; ; {
		b, eof, err := c.read(ctx, handle, min(chunk, left+1))
		if err != nil {
			return err
		}
		if len(b) == 0 && !eof {
			return fmt.Errorf("%w: guest-file-read returns no bytes before the end of the file", ErrGarbage)
		}
		if _, err := w.Write(b[:min(int64(len(b)), left)]); err != nil {
			return err
		}
		if left -= int64(len(b)); left < 0 {
			return ErrTooLarge
		}
		if eof {
			return nil
		}
	}
}

// WriteFile replaces the content of a guest's file with that of r. If it fails, the file
// has a part of the new content. If r has more than limit bytes, WriteFile writes limit
// bytes and fails with [ErrTooLarge]. It returns errors of r unchanged.
func (c *Client) WriteFile(ctx context.Context, path string, r io.Reader, limit int64) error {
	handle, err := c.open(ctx, path, "w")
	if err != nil {
		return err
	}
	buf := make([]byte, min(chunk, limit+1))
	for left := limit; err == nil; {
		var n int
		n, err = io.ReadFull(r, buf)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			break
		}
		err = c.write(ctx, handle, buf[:min(int64(n), left)])
		if left -= int64(n); err == nil && left < 0 {
			err = ErrTooLarge
		}
		if end {
			break
		}
	}
	if connectionLost(err) {
		return err
	}
	// Closing may fail, because the agent then writes its buffer.
	if closing := c.closeFile(ctx, handle); err == nil {
		err = closing
	}
	return err
}

// connectionLost reports whether the file cannot be closed after err.
func connectionLost(err error) bool {
	return errors.Is(err, ErrSilent) || errors.Is(err, ErrGarbage) || errors.Is(err, ErrClosed)
}

func (c *Client) open(ctx context.Context, path, mode string) (handle int64, err error) {
	args := map[string]string{"path": path, "mode": mode}
	err = c.call(ctx, queryTimeout, maxLine, "guest-file-open", args, &handle)
	return handle, err
}

// closeFile closes a file, also when ctx is done: otherwise the agent would keep it open
// until its own end.
func (c *Client) closeFile(ctx context.Context, handle int64) error {
	args := map[string]int64{"handle": handle}
	return c.call(context.WithoutCancel(ctx), closeTimeout, maxLine, "guest-file-close", args, nil)
}

func (c *Client) read(ctx context.Context, handle, most int64) (b []byte, eof bool, err error) {
	var r struct {
		Bytes []byte `json:"buf-b64"`
		EOF   bool   `json:"eof"`
	}
	args := map[string]int64{"handle": handle, "count": most}
	if err := c.call(ctx, queryTimeout, maxLine, "guest-file-read", args, &r); err != nil {
		return nil, false, err
	}
	if int64(len(r.Bytes)) > most {
		return nil, false, fmt.Errorf("%w: guest-file-read returns %d bytes, more than the requested %d",
			ErrGarbage, len(r.Bytes), most)
	}
	return r.Bytes, r.EOF, nil
}

func (c *Client) write(ctx context.Context, handle int64, b []byte) error {
	for len(b) > 0 {
		var r struct {
			Count int `json:"count"`
		}
		args := struct {
			Handle int64  `json:"handle"`
			Bytes  []byte `json:"buf-b64"`
		}{handle, b}
		if err := c.call(ctx, queryTimeout, maxLine, "guest-file-write", args, &r); err != nil {
			return err
		}
		if r.Count <= 0 || r.Count > len(b) {
			return fmt.Errorf("%w: guest-file-write writes %d of %d bytes", ErrGarbage, r.Count, len(b))
		}
		b = b[r.Count:]
	}
	return nil
}
