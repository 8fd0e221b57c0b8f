package qga

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// chunk is how many bytes of a file are read or written at a time. Its base64
// fits in a usual reply.
const chunk = 256 << 10

// closeTimeout is how long a file in a guest is tried to be closed.
const closeTimeout = 2 * time.Second

// ErrTooLarge means that a file has more bytes than were wanted.
var ErrTooLarge = errors.New("the file is too large")

// ReadFile copies a guest's file to w. After limit bytes a larger one ends in
// [ErrTooLarge]. Errors of w are returned as they are.
func (c *Client) ReadFile(ctx context.Context, path string, w io.Writer, limit int64) (err error) {
	handle, err := c.open(ctx, path, "r")
	if err != nil {
		return err
	}
	defer func() {
		if !lost(err) {
			c.closeFile(ctx, handle)
		}
	}()
	for left := limit; ; {
		b, eof, err := c.read(ctx, handle, min(chunk, left+1))
		if err != nil {
			return err
		}
		if len(b) == 0 && !eof {
			return fmt.Errorf("%w: it reads nothing of a file that has not ended", ErrGarbage)
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

// WriteFile makes a guest's file of what r has, in place of what it had; a
// failure leaves a part of it. After limit bytes, more end in [ErrTooLarge].
// Errors of r are returned as they are.
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
	// Closing writes what the agent has buffered.
	if lost(err) {
		return err
	}
	if closing := c.closeFile(ctx, handle); err == nil {
		err = closing
	}
	return err
}

// lost reports whether an error means that nobody is there to close a file.
func lost(err error) bool {
	return errors.Is(err, ErrSilent) || errors.Is(err, ErrGarbage) || errors.Is(err, ErrClosed)
}

func (c *Client) open(ctx context.Context, path, mode string) (handle int64, err error) {
	err = c.call(ctx, askTimeout, maxLine, "guest-file-open", map[string]string{"path": path, "mode": mode}, &handle)
	return handle, err
}

// closeFile closes a file, also when ctx is done: the agent would keep it open
// for as long as it runs.
func (c *Client) closeFile(ctx context.Context, handle int64) error {
	return c.call(context.WithoutCancel(ctx), closeTimeout, maxLine, "guest-file-close", map[string]int64{"handle": handle}, nil)
}

func (c *Client) read(ctx context.Context, handle, most int64) (b []byte, eof bool, err error) {
	var r struct {
		Bytes []byte `json:"buf-b64"`
		EOF   bool   `json:"eof"`
	}
	args := map[string]int64{"handle": handle, "count": most}
	if err := c.call(ctx, askTimeout, maxLine, "guest-file-read", args, &r); err != nil {
		return nil, false, err
	}
	if int64(len(r.Bytes)) > most {
		return nil, false, fmt.Errorf("%w: it reads %d bytes where %d were wanted", ErrGarbage, len(r.Bytes), most)
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
		if err := c.call(ctx, askTimeout, maxLine, "guest-file-write", args, &r); err != nil {
			return err
		}
		if r.Count <= 0 || r.Count > len(b) {
			return fmt.Errorf("%w: it writes %d of %d bytes", ErrGarbage, r.Count, len(b))
		}
		b = b[r.Count:]
	}
	return nil
}
