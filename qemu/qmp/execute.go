package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// call is a command that waits for its reply.
type call struct {
	reply chan reply // buffered, so that the reader never waits for the caller

	// files reports whether the command carries file descriptors. QEMU keeps only the
	// descriptors of the last message, until a command takes them: with two such
	// commands in flight, the first can get the files of the second. So only one is
	// sent at a time. It counts as in flight until its reply comes, even if its caller
	// has given up.
	files bool
}

// reply is the reply to a command: refused is nil if the command was executed.
type reply struct {
	value   json.RawMessage
	refused *Error
}

// Execute runs a command and decodes its return value into out with json.Unmarshal,
// unless out is nil. args is encoded as the arguments of the command, an object; nil
// stands for none. The files are passed with the command (getfd, add-fd). They belong to
// the caller, which must not close them before Execute returns.
//
// Execute blocks until the reply comes or ctx is done, or for [DefaultTimeout] if ctx
// has no deadline. It fails with an [*Error] if QEMU refuses the command, with
// [ErrNotSent] if the command was not sent, and with [ErrUnknownOutcome] if it was sent
// and no reply came. A late reply is dropped.
func (c *Conn) Execute(ctx context.Context, command string, args, out any, files ...*os.File) error {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	value, err := c.do(ctx, &request{Execute: command, Arguments: args}, files)
	return decode(command, value, out, err)
}

// ExecuteOOB runs a command out of band, like [Conn.Execute] otherwise: QEMU executes it
// at once, even while it is busy with another command. Few commands allow that
// (migrate-pause, migrate-recover, yank). ExecuteOOB fails with [ErrNotSent] if QEMU did
// not offer the capability.
func (c *Conn) ExecuteOOB(ctx context.Context, command string, args, out any) error {
	if !c.oob {
		return notSent(command, errors.New("QEMU does not offer out-of-band execution"))
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	value, err := c.do(ctx, &request{ExecOOB: command, Arguments: args}, nil)
	return decode(command, value, out, err)
}

// decode decodes the return value of a command into out, unless the command failed with
// err or out is nil.
func decode(command string, value json.RawMessage, out any, err error) error {
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(value, out); err != nil {
		return fmt.Errorf("qmp %s: decode reply: %w", command, err)
	}
	return nil
}

// request is a command on the wire.
type request struct {
	Execute   string `json:"execute,omitempty"`
	ExecOOB   string `json:"exec-oob,omitempty"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

func (r *request) command() string { return r.Execute + r.ExecOOB }

// lineBuffers holds *bytes.Buffer for commands that are encoded.
var lineBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// do sends a command and waits for its reply.
func (c *Conn) do(ctx context.Context, r *request, files []*os.File) (json.RawMessage, error) {
	k, err := c.begin(ctx, r, files)
	if err != nil {
		return nil, err
	}
	return c.await(ctx, r, k)
}

// begin sends a command. The caller must then call await.
func (c *Conn) begin(ctx context.Context, r *request, files []*os.File) (*call, error) {
	rights, err := unixRights(files)
	if err != nil {
		return nil, notSent(r.command(), err)
	}
	if rights != nil {
		if err := c.acquire(ctx, c.passing); err != nil {
			return nil, notSent(r.command(), err)
		}
	}
	k := &call{reply: make(chan reply, 1), files: rights != nil}
	r.ID = c.register(k)
	line := lineBuffers.Get().(*bytes.Buffer)
	line.Reset()
	if err := json.NewEncoder(line).Encode(r); err != nil { // adds the newline
		c.withdraw(r.ID)
		return nil, notSent(r.command(), err)
	}
	sent, err := c.send(ctx, r.ID, line.Bytes(), rights)
	lineBuffers.Put(line)
	runtime.KeepAlive(files)
	if !sent {
		c.withdraw(r.ID)
		return nil, notSent(r.command(), err)
	}
	return k, nil
}

// await waits for the reply to a command that begin sent.
func (c *Conn) await(ctx context.Context, r *request, k *call) (json.RawMessage, error) {
	var cause error
	select {
	case got := <-k.reply:
		return got.result(r.command())
	case <-ctx.Done():
		cause = ctx.Err()
	case <-c.done:
		cause = c.Err()
	}
	if !k.files {
		c.withdraw(r.ID)
	}
	select {
	case got := <-k.reply: // the reply came at the same time
		return got.result(r.command())
	default:
		return nil, unknownOutcome(r.command(), cause)
	}
}

func (r reply) result(command string) (json.RawMessage, error) {
	if r.refused != nil {
		r.refused.Command = command
		return nil, r.refused
	}
	return r.value, nil
}

// register adds a call to c.pending and returns its id.
func (c *Conn) register(k *call) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	c.pending[c.lastID] = k
	return c.lastID
}

// withdraw removes a call from c.pending, if it is still there.
func (c *Conn) withdraw(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.take(id)
}

// take removes and returns the call with an id, or returns nil. It must be called with
// c.mu held.
func (c *Conn) take(id uint64) *call {
	k := c.pending[id]
	if k == nil {
		return nil
	}
	delete(c.pending, id)
	if k.files {
		<-c.passing
	}
	return k
}

// answer gives a reply to the call that waits for it. It must be called with c.mu held.
func (c *Conn) answer(id uint64, m *message) {
	if m.Return == nil && m.Error == nil {
		c.strays.Add(1)
		return
	}
	k := c.take(id)
	switch {
	case k == nil:
		c.strays.Add(1)
	case m.Error != nil:
		k.reply <- reply{refused: &Error{Class: m.Error.Class, Desc: m.Error.Desc}}
	default:
		k.reply <- reply{value: m.Return}
	}
}

// acquire takes a lock: c.writing or c.passing.
func (c *Conn) acquire(ctx context.Context, lock chan struct{}) error {
	if err := c.Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return c.Err()
	}
}

// send writes a line. It reports whether QEMU may have received a complete command; if
// not, err is the reason. After a line that was written only in part, the connection
// cannot be used, so send ends it.
func (c *Conn) send(ctx context.Context, id uint64, line, rights []byte) (sent bool, err error) {
	if err := c.acquire(ctx, c.writing); err != nil {
		return false, err
	}
	defer func() { <-c.writing }()
	c.traced(Request, id, line[:len(line)-1])
	stop := interruptOn(ctx, c.sock.SetWriteDeadline)
	n, err := c.write(line, rights)
	interrupted := stop()
	if n == len(line) {
		return true, nil
	}
	switch {
	case c.Err() != nil:
		err = c.Err()
	case interrupted:
		err = ctx.Err()
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	if n > 0 {
		err = fmt.Errorf("half-written command: %w", err)
		c.end(fmt.Errorf("%w: %w", ErrClosed, err))
	}
	// If nothing was written, the stream is intact. If QEMU has closed the connection,
	// the reader ends it, after the messages that QEMU sent before.
	return n == len(line)-1, err // without its newline, the command is complete
}

// write writes line, with rights (SCM_RIGHTS) attached to its first byte.
func (c *Conn) write(line, rights []byte) (int, error) {
	if rights == nil {
		return c.sock.Write(line)
	}
	n, _, err := c.sock.WriteMsgUnix(line, rights, nil)
	if err != nil || n == len(line) {
		return n, err
	}
	rest, err := c.sock.Write(line[n:])
	return n + rest, err
}

// unixRights encodes the descriptors of files as a control message. It does not use Fd,
// which would make the I/O of the files blocking.
func unixRights(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return nil, fmt.Errorf("file %s: %w", f.Name(), err)
		}
	}
	return unix.UnixRights(fds...), nil
}
