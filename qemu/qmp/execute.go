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

// call is a command that waits for its answer.
type call struct {
	reply chan reply // buffered: the reader never waits for the caller

	// files tells that the command carries file descriptors. QEMU keeps those
	// of the last message only, until a command takes them; if two such
	// commands are under way, the first can get the files of the second. So
	// only one is let go at a time, and it counts as under way until its
	// answer is here, even if its caller has long given up.
	files bool
}

// reply is the answer to a command: refused is nil if it was carried out.
type reply struct {
	value   json.RawMessage
	refused *Error
}

// Execute runs a command and stores what it returns in out, which json.Unmarshal
// must accept; out may be nil. args is encoded as the command's arguments, an
// object; nil stands for none. The files are passed along (getfd, add-fd) and
// stay the caller's, who must not close them before Execute returns.
//
// Execute blocks until the answer is here or ctx is done; without a deadline in
// ctx, for [DefaultTimeout]. It fails with an [*Error] if QEMU refused the command,
// with [ErrNotSent] if the command did not leave, and with [ErrUnknownOutcome]
// if it did and no answer came. A late answer is dropped.
func (c *Conn) Execute(ctx context.Context, command string, args, out any, files ...*os.File) error {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	value, err := c.do(ctx, &request{Execute: command, Arguments: args}, files)
	return decode(command, value, out, err)
}

// ExecuteOOB runs a command out of band: QEMU does it at once, also while it is
// busy with another one. Few commands allow that (migrate-pause,
// migrate-recover, yank). Otherwise it is [Conn.Execute]; it fails with
// [ErrNotSent] if QEMU did not offer the capability.
func (c *Conn) ExecuteOOB(ctx context.Context, command string, args, out any) error {
	if !c.oob {
		return notSent(command, errors.New("QEMU does not offer out-of-band execution"))
	}
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	value, err := c.do(ctx, &request{ExecOOB: command, Arguments: args}, nil)
	return decode(command, value, out, err)
}

// decode stores the value a command returned in out, unless the command failed.
func decode(command string, value json.RawMessage, out any, err error) error {
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(value, out); err != nil {
		return fmt.Errorf("qmp %s: decode answer: %w", command, err)
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

// lineBuffers holds *bytes.Buffer for lines to be written.
var lineBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// do sends a command and waits for its answer.
func (c *Conn) do(ctx context.Context, r *request, files []*os.File) (json.RawMessage, error) {
	k, err := c.begin(ctx, r, files)
	if err != nil {
		return nil, err
	}
	return c.await(ctx, r, k)
}

// begin sends a command, whose answer is to be awaited.
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

// await waits for the answer to a command that was sent.
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
	case got := <-k.reply: // it came in the same moment: better than not knowing
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

// register enters a call among those that wait and returns its id.
func (c *Conn) register(k *call) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	c.pending[c.lastID] = k
	return c.lastID
}

// withdraw removes a call from those that wait, if it is still among them.
func (c *Conn) withdraw(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.take(id)
}

// take removes and returns the call with this id, or returns nil. c.mu is held.
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

// answer gives m to the call that waits for it. c.mu is held.
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

// acquire takes one of the connection's two locks.
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

// send writes a line. It reports whether QEMU can have got a whole command; if
// not, err says why. A line of which only the beginning was written cannot be
// taken back, so the connection then ends.
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
	// With nothing written the stream is intact. If the reason is that QEMU
	// has gone, the reader will find out, after what QEMU said before.
	return n == len(line)-1, err // all but the newline is a whole command
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

// unixRights encodes the descriptors of files as a control message. It does
// not use Fd, which would make the files' own I/O blocking.
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
