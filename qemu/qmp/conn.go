// Package qmp speaks the QEMU Machine Protocol over a unix socket: commands
// matched to their answers by id, a deadline on each of them, file descriptors
// passed along, and events handed to whoever subscribed or waits for one.
//
// It knows the protocol and nothing about virtual machines. [Conn] implements
// the Monitor interface of github.com/digitalocean/go-qemu/qmp, so everything
// built on that interface (go-qemu's qemu.NewDomain) works on top of it.
//
// The two rules that everything here serves: nothing ever waits for ever, and
// a command whose fate is not known ([ErrUnknownOutcome]) is never reported as
// failed or as done.
package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// The types of go-qemu that appear in this package's API.
type (
	// Command is a command as [Conn.Run] takes it, encoded as JSON.
	Command = goqemu.Command
	// Event is something QEMU reports unasked. Its Data is shared by all who
	// receive the event and must not be changed; numbers in it are float64.
	Event = goqemu.Event
	// Version is the version QEMU names in its greeting.
	Version = goqemu.Version
)

// DefaultTimeout is how long a command, or a handshake, may take if its
// context has no deadline of its own.
const DefaultTimeout = 30 * time.Second

// maxPath is the length in bytes of the longest path that fits into a
// sockaddr_un beside its terminating NUL (unix(7)).
const maxPath = 107

// Conn is one QMP connection. Its methods may be called by any number of
// goroutines at once; none of them can block the others, or the reading of the
// socket, for longer than its own context allows.
type Conn struct {
	sock     *net.UnixConn
	version  Version
	offered  []string // capabilities in the greeting
	oob      bool
	trace    Trace    // nil if nobody listens
	first    *request // see First
	firstOut any

	writing chan struct{} // held while a command is written
	passing chan struct{} // held from sending files to the answer, see call.files
	done    chan struct{} // closed when the connection has ended
	strays  atomic.Uint64

	mu      sync.Mutex // guards what follows; never held while blocking
	cause   error      // why the connection ended; nil while it lives
	lastID  uint64
	pending map[uint64]*call
	hub     hub
}

var _ goqemu.Monitor = (*Conn)(nil)

// Dial connects to the QMP socket at path and does the handshake. See [New].
func Dial(ctx context.Context, path string, options ...Option) (*Conn, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("qmp: socket path has %d bytes, at most %d fit: %s", len(path), maxPath, path)
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	var d net.Dialer
	s, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("qmp: %w", err)
	}
	return New(ctx, s.(*net.UnixConn), options...)
}

// New does the QMP handshake on sock and returns a connection ready for
// commands, with out-of-band execution enabled if QEMU offers it. It owns sock
// from here on, also when it fails.
//
// QEMU serves one client per socket: a second one connects without trouble and
// then hears nothing until the first is gone, as does a client of a stopped
// QEMU. New then returns an error that wraps ctx's (at the latest after
// [DefaultTimeout]).
func New(ctx context.Context, sock *net.UnixConn, options ...Option) (*Conn, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	c := &Conn{
		sock:    sock,
		writing: make(chan struct{}, 1),
		passing: make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: make(map[uint64]*call),
	}
	for _, o := range options {
		o(c)
	}
	lines := newLineReader(sock)
	if err := c.greet(ctx, lines); err != nil {
		sock.Close()
		return nil, fmt.Errorf("qmp: read greeting: %w", err)
	}
	go c.read(lines)

	type capabilities struct {
		Enable []string `json:"enable,omitempty"`
	}
	var enable capabilities
	if slices.Contains(c.offered, "oob") {
		enable.Enable = []string{"oob"}
	}
	if err := c.negotiate(ctx, &request{Execute: "qmp_capabilities", Arguments: enable}); err != nil {
		c.Close()
		return nil, err
	}
	c.oob = enable.Enable != nil
	return c, nil
}

// First has a command sent together with the handshake, whose answer is stored
// in out as [Conn.Execute] does: a QEMU that is busy is waited for once.
// Without an answer there is no connection.
func First(command string, out any) Option {
	return func(c *Conn) { c.first, c.firstOut = &request{Execute: command}, out }
}

// negotiate ends the handshake. QEMU takes commands in their order, and the one
// that follows does not have to wait until this one is answered.
func (c *Conn) negotiate(ctx context.Context, capabilities *request) error {
	k, err := c.begin(ctx, capabilities, nil)
	if err != nil {
		return err
	}
	var next *call
	if c.first != nil {
		if next, err = c.begin(ctx, c.first, nil); err != nil {
			return err
		}
	}
	if _, err = c.await(ctx, capabilities, k); err != nil || next == nil {
		return err
	}
	value, err := c.await(ctx, c.first, next)
	return decode(c.first.command(), value, c.firstOut, err)
}

// greet reads QEMU's greeting, which is the first thing it says.
func (c *Conn) greet(ctx context.Context, lines *lineReader) error {
	stop := interruptOn(ctx, c.sock.SetReadDeadline)
	line, err := lines.next()
	if interrupted := stop(); interrupted {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	var g struct {
		QMP *struct {
			Version      Version  `json:"version"`
			Capabilities []string `json:"capabilities"`
		} `json:"QMP"`
	}
	if err := json.Unmarshal(line, &g); err != nil || g.QMP == nil {
		return fmt.Errorf("not a QMP server: it said %s", excerpt(line))
	}
	c.version, c.offered = g.QMP.Version, g.QMP.Capabilities
	return nil
}

// Version returns the version of QEMU.
func (c *Conn) Version() Version { return c.version }

// Capabilities returns the protocol capabilities that QEMU offered.
func (c *Conn) Capabilities() []string { return slices.Clone(c.offered) }

// Done returns a channel that is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns nil while the connection lives, and afterwards why it ended: an
// error that matches [ErrClosed] and wraps the cause, if that was not [Conn.Close].
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// Strays returns how many messages were ignored because they answered no
// waiting command: late answers, duplicates, answers without a known id.
func (c *Conn) Strays() uint64 { return c.strays.Load() }

// Close ends the connection. Commands that are waiting for an answer get
// [ErrUnknownOutcome], subscriptions are closed. Closing twice does nothing.
func (c *Conn) Close() error {
	c.end(ErrClosed)
	return nil
}

// end closes the connection because of cause, unless it has ended already.
func (c *Conn) end(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	c.cause = cause
	c.sock.Close()
	c.hub.close()
	close(c.done)
}

// message is anything QEMU says after its greeting.
type message struct {
	Event
	ID     json.RawMessage `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// read hands out what QEMU says until the connection ends. Nothing in here
// waits for a receiver.
func (c *Conn) read(lines *lineReader) {
	for {
		line, err := lines.next()
		if err != nil {
			c.end(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
		// The line is overwritten by the next one. Decoding copies: strings by
		// themselves, json.RawMessage in its UnmarshalJSON.
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			c.traced(Reply, 0, line)
			c.end(fmt.Errorf("%w: not a QMP message: %s: %w", ErrClosed, excerpt(line), err))
			return
		}
		if m.Event.Event != "" {
			c.traced(Report, 0, line)
			c.mu.Lock()
			c.hub.publish(m.Event)
		} else {
			id, _ := strconv.ParseUint(string(m.ID), 10, 64) // no call has the id 0
			c.traced(Reply, id, line)
			c.mu.Lock()
			c.answer(id, &m)
		}
		c.mu.Unlock()
	}
}

// withDefaultTimeout gives a context without a deadline the default one.
func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

// interruptOn makes blocked I/O return as soon as ctx is done, through
// setDeadline, which is the socket's for reading or for writing. The returned
// function ends that, leaves the socket without a deadline, and reports
// whether the I/O was interrupted.
func interruptOn(ctx context.Context, setDeadline func(time.Time) error) (stop func() bool) {
	set := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		setDeadline(time.Unix(1, 0))
		close(set)
	})
	return func() bool {
		if cancel() {
			return false
		}
		<-set // else a late deadline would hit whoever uses the socket next
		setDeadline(time.Time{})
		return true
	}
}
