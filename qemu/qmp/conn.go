// Package qmp speaks the QEMU Machine Protocol over a unix socket. It matches replies
// to commands by id, gives each command a deadline, passes file descriptors, and
// delivers events to subscribers.
//
// It knows the protocol and nothing about virtual machines. [Conn] implements the
// Monitor interface of github.com/digitalocean/go-qemu/qmp, so packages built on that
// interface (go-qemu's qemu.NewDomain) can use it.
//
// Two rules hold everywhere: nothing blocks without a deadline, and a command with an
// unknown outcome ([ErrUnknownOutcome]) is never reported as failed or as done.
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
	// Event is an event of QEMU. All its receivers share Data, which must not be
	// changed; numbers in it are float64.
	Event = goqemu.Event
	// Version is the version in the greeting of QEMU.
	Version = goqemu.Version
)

// DefaultTimeout limits a command or a handshake if its context has no deadline.
const DefaultTimeout = 30 * time.Second

// maxPath is the length in bytes of the longest path that fits into a
// sockaddr_un beside its terminating NUL (unix(7)).
const maxPath = 107

// Conn is a QMP connection. It is safe for concurrent use. A method cannot block other
// methods, or the reading of the socket, for longer than its own context allows.
type Conn struct {
	sock     *net.UnixConn
	version  Version
	offered  []string // capabilities in the greeting
	oob      bool
	trace    Trace    // nil for none
	first    *request // see First
	firstOut any

	writing chan struct{} // lock, held while a command is written
	passing chan struct{} // lock, held from sending files to the reply, see call.files
	done    chan struct{} // closed when the connection has ended
	strays  atomic.Uint64

	mu      sync.Mutex // guards the fields below; never held while blocking
	cause   error      // the error that ended the connection, or nil
	lastID  uint64
	pending map[uint64]*call
	hub     hub
}

var _ goqemu.Monitor = (*Conn)(nil)

// Dial connects to the QMP socket at path and does the handshake. See [New].
func Dial(ctx context.Context, path string, options ...Option) (*Conn, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("qmp: socket path has %d bytes, at most %d are possible: %s",
			len(path), maxPath, path)
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

// New does the QMP handshake on sock and returns a connection that is ready for
// commands, with out-of-band execution enabled if QEMU offers it. New takes ownership
// of sock, and closes it if it fails.
//
// QEMU serves one client per socket. A second client can connect, but receives nothing
// until the first has disconnected; the same holds for a client of a stopped QEMU. New
// then returns an error that wraps that of ctx, at the latest after [DefaultTimeout].
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

// First returns an option that sends a command together with the handshake and stores
// its reply in out, as [Conn.Execute] does. It saves one round trip to a busy QEMU. If
// the command fails, so does the handshake.
func First(command string, out any) Option {
	return func(c *Conn) { c.first, c.firstOut = &request{Execute: command}, out }
}

// negotiate ends the handshake. QEMU executes commands in order, so the first command
// is sent before the reply to qmp_capabilities.
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

// greet reads the greeting of QEMU, its first message.
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
		return fmt.Errorf("not a QMP server: it sent %s", excerpt(line))
	}
	c.version, c.offered = g.QMP.Version, g.QMP.Capabilities
	return nil
}

// Version returns the version of QEMU.
func (c *Conn) Version() Version { return c.version }

// Capabilities returns the protocol capabilities that QEMU offers.
func (c *Conn) Capabilities() []string { return slices.Clone(c.offered) }

// Done returns a channel that is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns nil while the connection is open. After it has ended, Err returns an error
// that matches [ErrClosed] and wraps the cause, if that was not [Conn.Close].
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// Strays returns how many messages were ignored because no command was waiting for
// them: late replies, duplicates, and replies without a known id.
func (c *Conn) Strays() uint64 { return c.strays.Load() }

// Close ends the connection. Commands that wait for a reply fail with
// [ErrUnknownOutcome], and subscriptions are closed. Close is idempotent.
func (c *Conn) Close() error {
	c.end(ErrClosed)
	return nil
}

// end closes the connection with the error cause, unless it has ended already.
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

// message is a message of QEMU after its greeting.
type message struct {
	Event
	ID     json.RawMessage `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// read delivers the messages of QEMU until the connection ends. It never waits for a
// receiver.
func (c *Conn) read(lines *lineReader) {
	for {
		line, err := lines.next()
		if err != nil {
			c.end(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
		// The next line overwrites this one. Decoding copies strings, and
		// json.RawMessage copies in its UnmarshalJSON.
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			c.traced(Reply, 0, line)
			c.end(fmt.Errorf("%w: not a QMP message: %s: %w", ErrClosed, excerpt(line), err))
			return
		}
		c.deliver(&m, line)
	}
}

// deliver publishes an event, or gives a reply to its call.
func (c *Conn) deliver(m *message, line []byte) {
	if m.Event.Event != "" {
		c.traced(Report, 0, line)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.hub.publish(m.Event)
		return
	}
	id, _ := strconv.ParseUint(string(m.ID), 10, 64) // no call has the id 0
	c.traced(Reply, id, line)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer(id, m)
}

// withDefaultTimeout gives a context without a deadline that of DefaultTimeout.
func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

// interruptOn makes blocked I/O fail as soon as ctx is done. It uses setDeadline, which
// sets the read or the write deadline of the socket. The returned function ends that,
// removes the deadline, and reports whether the I/O was interrupted.
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
		<-set // otherwise a late deadline could hit the next use of the socket
		setDeadline(time.Time{})
		return true
	}
}
