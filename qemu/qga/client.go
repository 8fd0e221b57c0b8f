// Package qga speaks the protocol of the QEMU guest agent: commands and replies are
// lines of JSON, sent over a port of the guest.
//
// Nothing from a guest is trusted. A reply is limited in bytes, depth and number of
// elements. The client reads only while a command waits for its reply, so a guest that
// floods fills only its own buffers. Every command ends with its context and with a
// time limit of its own. Returned text is valid UTF-8, bounded, and has no control
// characters; everything else is parsed.
//
// Replies have no id. So each connection begins with a number that the agent must
// repeat (guest-sync-delimited), and a connection is closed after any irregularity,
// such as a late reply.
package qga

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Limits on the size of a reply, in bytes.
const (
	maxLine = 1 << 20  // of most replies
	maxLong = 46 << 20 // of one with a program's output: 2 × 16 MiB in base64, and the rest
	maxSkip = 2 << 20  // skipped on a new connection: replies to an earlier connection
)

// longReplies limits how many replies of more than maxLine bytes are read at a time,
// over all guests: a hundred malicious guests must not cost a hundred times maxLong.
var longReplies = make(chan struct{}, 2)

// The errors that do not come from the agent. Those that do are of type [*Error].
var (
	ErrClosed  = errors.New("the client is closed")
	ErrSilent  = errors.New("the guest agent does not answer")
	ErrBusy    = errors.New("the guest agent is busy with an earlier command")
	ErrGarbage = errors.New("the guest agent sends invalid replies")
)

// An Error is an agent's refusal of a command.
type Error struct {
	Command string
	Class   string
	Desc    string
}

func (e *Error) Error() string { return e.Command + ": " + e.Desc }

// Dial connects to an agent's port.
type Dial func(context.Context) (net.Conn, error)

// A Client talks to one agent, one command at a time: a call blocks until the commands
// before it have ended, or its context is done. The first call connects, and later
// calls reuse the connection or replace a broken one. A Client is safe for concurrent
// use.
//
// The methods fail with an [*Error] if the agent refuses the command, with the error of
// ctx if it is done, and otherwise with [ErrBusy], [ErrSilent], [ErrGarbage] or
// [ErrClosed]. Except after an [*Error] and [ErrBusy], it is not known whether the agent
// has executed the command, or will.
type Client struct {
	dial    Dial
	onReply func()
	turn    chan struct{} // held by the call with a running command; guards conn.in

	mu     sync.Mutex // guards the fields below; never held while blocking
	conn   *conn      // nil for none
	closed bool
}

// NewClient returns a client without connecting it. The client calls onReply after
// every reply, including refusals; onReply must not block.
func NewClient(dial Dial, onReply func()) *Client {
	return &Client{dial: dial, onReply: onReply, turn: make(chan struct{}, 1)}
}

// Drop closes the connection; a running command fails. The next command reconnects.
func (c *Client) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// Close closes the client: a running command fails, and so do all later ones.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.Drop()
}

// A conn is a connection to an agent. After sync, replies on it match the commands.
type conn struct {
	net.Conn
	in *lines
}

// A timeLimit bounds a command.
type timeLimit struct {
	begin time.Duration // until the reply begins
	whole time.Duration // until the reply is complete
}

// call runs one command, for at most limit, and decodes its reply, of at most maxBytes,
// into out unless out is nil.
func (c *Client) call(
	ctx context.Context, limit time.Duration, maxBytes int, command string, args, out any,
) error {
	return c.callWithin(ctx, timeLimit{begin: limit, whole: limit}, maxBytes, command, args, out)
}

// callWithin is call with a time limit for the begin of the reply.
func (c *Client) callWithin(
	ctx context.Context, limit timeLimit, maxBytes int, command string, args, out any,
) error {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	if ctx.Err() != nil {
		return wrap(ctx, command, ctx.Err()) // the connection stays usable
	}
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, limit.whole)
	defer cancel()
	begin, cancelBegin := context.WithTimeout(ctx, min(limit.begin, limit.whole))
	defer cancelBegin()
	select {
	case c.turn <- struct{}{}:
	case <-begin.Done():
		return wrap(caller, command, ErrBusy)
	}
	defer func() { <-c.turn }()
	conn, err := c.connected(begin)
	if err != nil {
		return wrap(caller, command, err)
	}
	defer conn.in.unlock()
	line, err := conn.exchange(begin, ctx, append(request, '\n'), maxBytes)
	if err == nil {
		err = decode(command, line, out)
	}
	var refused *Error
	if err == nil || errors.As(err, &refused) {
		c.onReply()
		return err
	}
	c.forget(conn)
	return wrap(caller, command, err)
}

// wrap adds the command to err. An error that is not of the caller's context and not of
// another class becomes ErrSilent.
func wrap(ctx context.Context, command string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", command, ctx.Err())
	case errors.Is(err, ErrGarbage), errors.Is(err, ErrBusy), errors.Is(err, ErrClosed):
		return fmt.Errorf("%s: %w", command, err)
	}
	return fmt.Errorf("%s: %w: %w", command, ErrSilent, err)
}

// connected returns the connection, after connecting if there is none. The caller must
// hold c.turn.
func (c *Client) connected(ctx context.Context) (*conn, error) {
	c.mu.Lock()
	conn, closed := c.conn, c.closed
	c.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case conn != nil && !conn.in.buffered():
		return conn, nil
	case conn != nil:
		c.forget(conn) // the guest sent something that no command asked for
	}
	sock, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn = newConn(sock)
	c.mu.Lock()
	c.conn, closed = conn, c.closed
	c.mu.Unlock()
	if closed {
		err = ErrClosed
	} else {
		err = conn.sync(ctx)
	}
	if err != nil {
		c.forget(conn)
		return nil, err
	}
	return conn, nil
}

// forget closes a connection and does not use it again.
func (c *Client) forget(conn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn.Close()
	if c.conn == conn {
		c.conn = nil
	}
}

func newConn(sock net.Conn) *conn { return &conn{sock, &lines{from: sock}} }

// delimiter is a byte that JSON never contains. When the agent reads it, it drops an
// incomplete command. It sends it before its reply to guest-sync-delimited.
const delimiter = 0xff

// sync sends the agent a random number and skips everything it reads until the agent
// repeats the number: replies to commands of an earlier connection.
func (c *conn) sync(ctx context.Context) error {
	var random [8]byte
	rand.Read(random[:])
	id := int64(binary.LittleEndian.Uint64(random[:]) >> 16) // 48 bits, which a double can hold too
	stop := c.interruptOn(ctx)
	defer stop()
	defer c.in.unlock()
	request := fmt.Appendf([]byte{delimiter}, `{"execute":"guest-sync-delimited","arguments":{"id":%d}}`+"\n", id)
	if _, err := c.Write(request); err != nil {
		return err
	}
	want := fmt.Appendf(nil, `{"return":%d}`, id)
	for left := maxSkip; left > 0; {
		line, err := c.in.next(ctx, left)
		if err != nil {
			return err
		}
		left -= len(line) + 1
		i := bytes.LastIndexByte(line, delimiter)
		if i >= 0 && bytes.Equal(want, bytes.ReplaceAll(line[i+1:], []byte(" "), nil)) {
			return nil
		}
	}
	return fmt.Errorf("%w: no reply to guest-sync-delimited", ErrGarbage)
}

// exchange sends a request and returns the next line, of at most maxBytes. The reply must
// begin before begin is done.
func (c *conn) exchange(begin, ctx context.Context, request []byte, maxBytes int) ([]byte, error) {
	if err := c.send(begin, request); err != nil {
		return nil, err
	}
	stop := c.interruptOn(ctx)
	defer stop()
	return c.in.next(ctx, maxBytes)
}

// send sends a request and waits for the first bytes of its reply.
func (c *conn) send(ctx context.Context, request []byte) error {
	stop := c.interruptOn(ctx)
	defer stop()
	if _, err := c.Write(request); err != nil {
		return err
	}
	return c.in.more(ctx)
}

// interruptOn makes reads and writes fail when ctx is done, until stop is called.
func (c *conn) interruptOn(ctx context.Context) (stop func()) {
	set := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		c.SetDeadline(time.Unix(1, 0))
		close(set)
	})
	return func() {
		if !cancel() {
			<-set // otherwise a late deadline could hit the next command
			c.SetDeadline(time.Time{})
		}
	}
}

// A guest may send its reply byte by byte. After a read of fewer than smallRead bytes
// there is a pause, so that the CPU time per second is bounded.
const (
	smallRead  = 1 << 10
	smallPause = time.Millisecond
	readSize   = 64 << 10
)

// lines splits a stream into lines. It reads from the stream only in next.
type lines struct {
	from   io.Reader
	buf    []byte // read and not yet returned
	seen   int    // leading bytes of buf that contain no line break
	locked bool   // holds a slot of longReplies, because buf has grown beyond maxLine
}

// buffered reports whether bytes were read that next has not returned.
func (l *lines) buffered() bool { return len(l.buf) > 0 }

// next returns the next line without its line break, if it has at most maxBytes. The
// caller must call unlock when it no longer uses the line.
func (l *lines) next(ctx context.Context, maxBytes int) ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf[l.seen:], '\n'); i >= 0 {
			line := l.buf[: l.seen+i : l.seen+i]
			l.buf, l.seen = l.buf[l.seen+i+1:], 0
			if len(l.buf) == 0 {
				l.buf = nil // the line may be large: do not keep its memory
			}
			if len(line) > maxBytes {
				break
			}
			return bytes.TrimSuffix(line, []byte{'\r'}), nil
		}
		l.seen = len(l.buf)
		if l.seen > maxBytes {
			break
		}
		if err := l.more(ctx); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: more than %d bytes", ErrGarbage, maxBytes)
}

// more reads once from the stream.
func (l *lines) more(ctx context.Context) error {
	if len(l.buf) > maxLine && !l.locked {
		select {
		case longReplies <- struct{}{}:
			l.locked = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if n := len(l.buf); cap(l.buf)-n < smallRead {
		grown := make([]byte, n, max(4<<10, min(2*n, n+8<<20)))
		copy(grown, l.buf)
		l.buf = grown
	}
	room := l.buf[len(l.buf):min(cap(l.buf), len(l.buf)+readSize)]
	n, err := l.from.Read(room)
	l.buf = l.buf[:len(l.buf)+n]
	switch {
	case n == 0 && errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case n == 0 && errors.Is(err, os.ErrDeadlineExceeded):
		return context.DeadlineExceeded
	case n == 0:
		return err
	case n < smallRead && room[n-1] != '\n':
		pause := time.NewTimer(smallPause)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// unlock returns the slot of longReplies, if l holds one.
func (l *lines) unlock() {
	if l.locked {
		l.locked = false
		<-longReplies
	}
}
