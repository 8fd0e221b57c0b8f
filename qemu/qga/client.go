// Package qga speaks the protocol of the QEMU guest agent: commands and replies
// that are lines of JSON, over a port into the guest.
//
// Nothing a guest says is trusted. A reply has a limit in bytes, depth and number
// of elements; nothing is read but while a command waits for its reply, so a guest
// that floods fills its own buffers and no more; every command ends with its
// context and with a time limit of its own; what is returned is valid, bounded
// text without control characters, or parsed.
//
// Replies carry no id. A connection is therefore begun with a number that the
// agent has to repeat (guest-sync-delimited), and one on which anything was not as
// it should be, such as a reply that came too late, is closed.
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

// Limits of what one reply may cost.
const (
	maxLine = 1 << 20  // bytes of a usual reply
	maxLong = 46 << 20 // bytes of one with a program's output: twice 16 MiB in base64, and a little
	maxSkip = 2 << 20  // bytes passed over on a new connection: what was on its way
)

// longReplies is how many replies of more than maxLine bytes are read at a time,
// of all guests: a hundred guests that lie must not cost a hundred times maxLong.
var longReplies = make(chan struct{}, 2)

// The errors that are not the agent's own ([Error]).
var (
	ErrClosed  = errors.New("the client is closed")
	ErrSilent  = errors.New("the guest agent does not answer")
	ErrBusy    = errors.New("the guest agent is busy with what it was asked before")
	ErrGarbage = errors.New("what answers is not a guest agent, or a broken one")
)

// An Error is what an agent says when it does not do what it was asked.
type Error struct {
	Command string
	Class   string
	Desc    string
}

func (e *Error) Error() string { return e.Command + ": " + e.Desc }

// Dial makes a connection to an agent's port.
type Dial func(context.Context) (net.Conn, error)

// A Client talks to one agent, one command at a time: who calls while another's
// command is under way waits for it, within its context. It keeps a connection
// from the first call on and makes it again when it broke. Its methods may be
// called at any time by any goroutine.
//
// They fail with an [*Error] if the agent refuses, with the error of ctx if that
// is done, and else with [ErrBusy], [ErrSilent], [ErrGarbage] or [ErrClosed]. After
// any but the first and [ErrBusy] it is not known whether the agent has done, or will still do, what it
// was asked.
type Client struct {
	dial  Dial
	heard func()
	turn  chan struct{} // held by whose command is under way; guards conn.in

	mu     sync.Mutex // guards what follows; never held while blocking
	conn   *conn      // nil for none
	closed bool
}

// NewClient returns a client. It does not connect. It calls heard after every
// reply, also one that refuses; that must return at once.
func NewClient(dial Dial, heard func()) *Client {
	return &Client{dial: dial, heard: heard, turn: make(chan struct{}, 1)}
}

// Drop closes the connection; a command under way fails. The next makes a new one.
func (c *Client) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// Close ends the client for good: commands under way fail, and all later ones.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.Drop()
}

// A conn is a connection to an agent, which answers on it in step.
type conn struct {
	net.Conn
	in *lines
}

// call runs one command that takes at most limit, and decodes its reply, of at
// most max bytes, into out unless that is nil.
func (c *Client) call(ctx context.Context, limit time.Duration, max int, command string, args, out any) error {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	if ctx.Err() != nil {
		return cause(ctx, command, ctx.Err()) // and keep the connection
	}
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return cause(whole, command, ErrBusy)
	}
	defer func() { <-c.turn }()
	conn, err := c.connected(ctx)
	if err != nil {
		return cause(whole, command, err)
	}
	defer conn.in.unlock()
	line, err := conn.exchange(ctx, append(request, '\n'), max)
	if err == nil {
		err = decode(command, line, out)
	}
	var refused *Error
	if err == nil || errors.As(err, &refused) {
		c.heard()
		return err
	}
	c.forget(conn)
	return cause(whole, command, err)
}

// cause says why a command failed: because of the caller, or of the guest.
func cause(ctx context.Context, command string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", command, ctx.Err())
	case errors.Is(err, ErrGarbage), errors.Is(err, ErrBusy), errors.Is(err, ErrClosed):
		return fmt.Errorf("%s: %w", command, err)
	}
	return fmt.Errorf("%s: %w: %w", command, ErrSilent, err)
}

// connected returns the connection, and makes it if there is none. The turn is
// the caller's.
func (c *Client) connected(ctx context.Context) (*conn, error) {
	c.mu.Lock()
	conn, closed := c.conn, c.closed
	c.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case conn != nil && !conn.in.rest():
		return conn, nil
	case conn != nil:
		c.forget(conn) // somebody spoke who was not asked
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

// forget closes a connection, which is used no more.
func (c *Client) forget(conn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn.Close()
	if c.conn == conn {
		c.conn = nil
	}
}

func newConn(sock net.Conn) *conn { return &conn{sock, &lines{from: sock}} }

// delimiter is in no JSON. An agent that reads it forgets what it has read of a
// command, and sends it before its answer to guest-sync-delimited.
const delimiter = 0xff

// sync brings the two ends in step: whatever is read before the agent repeats a
// number of this moment is an answer to somebody else.
func (c *conn) sync(ctx context.Context) error {
	var random [8]byte
	rand.Read(random[:])
	id := int64(binary.LittleEndian.Uint64(random[:]) >> 16) // fits a double too
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
		if i := bytes.LastIndexByte(line, delimiter); i >= 0 && bytes.Equal(want, bytes.ReplaceAll(line[i+1:], []byte(" "), nil)) {
			return nil
		}
	}
	return fmt.Errorf("%w: it does not repeat a number", ErrGarbage)
}

// exchange sends a request and returns the next line, of at most max bytes.
func (c *conn) exchange(ctx context.Context, request []byte, max int) ([]byte, error) {
	stop := c.interruptOn(ctx)
	defer stop()
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	return c.in.next(ctx, max)
}

// interruptOn ends reads and writes when ctx is done.
func (c *conn) interruptOn(ctx context.Context) (stop func()) {
	set := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		c.SetDeadline(time.Unix(1, 0))
		close(set)
	})
	return func() {
		if !cancel() {
			<-set // else a late deadline would hit whoever has the next turn
			c.SetDeadline(time.Time{})
		}
	}
}

// A guest may send its reply byte by byte. A read that brings fewer bytes than
// crumb is followed by a pause, so that reading a line costs little for its time.
const (
	crumb      = 1 << 10
	crumbPause = time.Millisecond
	readSize   = 64 << 10
)

// lines cuts a stream into lines. It reads only when asked.
type lines struct {
	from   io.Reader
	buf    []byte // read and not returned yet
	seen   int    // bytes of buf that are known to hold no line break
	locked bool   // buf has grown beyond maxLine, in one of longReplies
}

// rest reports whether there is something that was not returned.
func (l *lines) rest() bool { return len(l.buf) > 0 }

// next returns the next line without its end, if it has at most max bytes. It is
// the caller's, who calls unlock when it is done with it.
func (l *lines) next(ctx context.Context, max int) ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf[l.seen:], '\n'); i >= 0 {
			line := l.buf[: l.seen+i : l.seen+i]
			l.buf, l.seen = l.buf[l.seen+i+1:], 0
			if len(l.buf) == 0 {
				l.buf = nil // the line may be large, and nobody needs it for long
			}
			if len(line) > max {
				break
			}
			return bytes.TrimSuffix(line, []byte{'\r'}), nil
		}
		l.seen = len(l.buf)
		if l.seen > max {
			break
		}
		if err := l.more(ctx); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: it answers with more than %d bytes", ErrGarbage, max)
}

// more reads once.
func (l *lines) more(ctx context.Context) error {
	if len(l.buf) > maxLine && !l.locked {
		select {
		case longReplies <- struct{}{}:
			l.locked = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if cap(l.buf)-len(l.buf) < crumb {
		l.buf = append(make([]byte, 0, max(4<<10, min(2*len(l.buf), len(l.buf)+8<<20))), l.buf...)
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
	case n < crumb && room[n-1] != '\n':
		pause := time.NewTimer(crumbPause)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (l *lines) unlock() {
	if l.locked {
		l.locked = false
		<-longReplies
	}
}
