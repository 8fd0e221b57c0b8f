package qemu

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"vmand/vm"
)

// Console implements [vm.Driver]. ctx is for joining alone: what is returned
// lasts until it is closed.
func (d *Driver) Console(_ context.Context, id string, o vm.ConsoleOptions) (vm.Console, error) {
	s, err := d.session(id)
	if err != nil {
		return nil, fault(vm.CodeOperationFailed, err, "look for the QEMU process of vm %s", id)
	}
	if s == nil {
		return nil, noConsole(id)
	}
	return s.console.join(o)
}

// ConsoleLog implements [vm.Driver]. Offsets count what the guest has printed
// since the VM was made, over all its runs. The log has the last 16 to 32 MiB of
// that; an offset before is taken for its beginning, and one after its end for
// that. The first byte of log is at end less how many there are.
func (d *Driver) ConsoleLog(_ context.Context, id string, offset int64) (io.ReadCloser, int64, error) {
	s, err := d.session(id)
	if err != nil {
		return nil, 0, fault(vm.CodeOperationFailed, err, "look for the QEMU process of vm %s", id)
	}
	if s == nil {
		return openConsoleLog(d.state, id, nil, offset)
	}
	return openConsoleLog(d.state, id, s.console, offset)
}

func noConsole(id string) error {
	f := fault(vm.CodeState, nil, "vm %s does not run and has no console", id)
	f.Hint = "start it first"
	return f
}

// logReader reads a part of a serial log.
type logReader struct {
	file    *os.File
	hub     *serialHub // nil for a VM that does not run: nobody cuts its log
	at, end int64
}

// openConsoleLog opens the log of a VM from offset on to its end.
func openConsoleLog(state *os.Root, id string, hub *serialHub, offset int64) (io.ReadCloser, int64, error) {
	if !vm.ValidName(id) {
		return nil, 0, vm.NotFound("VM", id)
	}
	f, err := state.Open(vmSerialLog(id))
	if errors.Is(err, fs.ErrNotExist) { // it has never run
		return io.NopCloser(io.LimitReader(nil, 0)), 0, nil
	}
	if err != nil {
		return nil, 0, fileFault(err, "open the console log of vm %s", id)
	}
	r := &logReader{file: f, hub: hub}
	var begin int64
	if hub != nil {
		hub.look()
		begin, r.end = hub.bounds()
	} else {
		begin = firstData(f)
		if r.end, err = fileSize(f); err != nil {
			f.Close()
			return nil, 0, fileFault(err, "open the console log of vm %s", id)
		}
	}
	if offset < 0 {
		offset += r.end
	}
	r.at = min(max(offset, begin), r.end)
	return r, r.end, nil
}

func (r *logReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.at >= r.end {
		return 0, io.EOF
	}
	n, err := r.file.ReadAt(p[:min(int64(len(p)), r.end-r.at)], r.at)
	if r.hub != nil {
		if begin, end := r.hub.bounds(); r.at < begin || r.at > end {
			return 0, r.hub.tooSlow()
		}
	}
	r.at += int64(n)
	switch {
	case n > 0:
		return n, nil
	case err == io.EOF: // somebody has emptied it
		return 0, io.ErrUnexpectedEOF
	default:
		return 0, fileFault(err, "read the console log")
	}
}

func (r *logReader) Close() error { return r.file.Close() }

// console is one of the connections to a hub: it implements [vm.Console].
type console struct {
	hub    *serialHub
	reads  sync.Mutex
	log    logReader // its end is the hub's
	once   sync.Once
	closed chan struct{}
}

// join connects somebody. What was printed before that moment, as far as it is
// asked for, and what is printed after it are one stream.
func (h *serialHub) join(o vm.ConsoleOptions) (*console, error) {
	f, err := h.state.Open(vmSerialLog(h.id))
	if err != nil {
		return nil, fileFault(err, "open the console log of vm %s", h.id)
	}
	c := &console{hub: h, log: logReader{file: f, hub: h}, closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	err = nil
	if o.Write && h.typist != nil && !o.TakeOver {
		err = &vm.Fault{Code: vm.CodeBusy, Detail: "somebody else types on the console of vm " + h.id,
			Hint: "take over, or only read"}
	}
	if h.over != nil {
		err = noConsole(h.id)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if o.Write {
		h.typist = c
		h.interrupt()
	}
	h.follow()
	h.lookHere()
	c.log.at = max(h.begin, h.end-max(0, o.Scrollback))
	return c, nil
}

// interrupt ends a write that is under way. h.mu is held, and who was writing is
// the typist no more.
func (h *serialHub) interrupt() {
	if h.line != nil {
		h.line.SetWriteDeadline(time.Unix(1, 0))
	}
}

func (h *serialHub) tooSlow() error {
	return fault(vm.CodeUnavailable, nil, "the console of vm %s was read too slowly: its log does not have the next byte any more", h.id)
}

// Read implements [vm.Console].
func (c *console) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.reads.Lock()
	defer c.reads.Unlock()
	h := c.hub
	for {
		h.mu.Lock()
		begin, end, over, changed := h.begin, h.end, h.over, h.wait()
		h.mu.Unlock()
		switch {
		case c.log.at < begin || c.log.at > end:
			return 0, h.tooSlow()
		case c.log.at < end:
			c.log.end = end
			return c.log.Read(p)
		case over != nil:
			return 0, over
		}
		select {
		case <-changed:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
}

// maxKeys is how many bytes are typed at once. The guest may take its time for
// each.
const maxKeys = 4 << 10

// Write implements [vm.Console].
func (c *console) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, err := c.hub.typeIn(c, p[written:min(len(p), written+maxKeys)])
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (h *serialHub) typeIn(c *console, p []byte) (int, error) {
	h.typing.Lock()
	defer h.typing.Unlock()
	line, err := h.pickUp(c)
	if err != nil {
		return 0, err
	}
	n, err := line.Write(p)
	return n, h.typeFault(c, err)
}

// pickUp returns the line to the guest for somebody to write to, once.
func (h *serialHub) pickUp(c *console) (line, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.mayType(c); err != nil {
		return nil, err
	}
	if h.line == nil {
		line, err := h.dial()
		if err != nil {
			return nil, fault(vm.CodeUnavailable, err, "the console of vm %s cannot be typed on", h.id)
		}
		h.line = line
	}
	h.line.SetWriteDeadline(time.Now().Add(h.limits.patience)) // an interrupt comes after it
	return h.line, nil
}

// mayType says why somebody cannot type. h.mu is held.
func (h *serialHub) mayType(c *console) error {
	switch {
	case h.over != nil:
		return noConsole(h.id)
	case h.typist == c:
		return nil
	}
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
		return fault(vm.CodeState, nil, "somebody else types on the console of vm %s, or nobody: this connection only reads", h.id)
	}
}

// typeFault says why something was not typed.
func (h *serialHub) typeFault(c *console, err error) error {
	if err == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if reason := h.mayType(c); reason != nil {
		return reason
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fault(vm.CodeUnavailable, nil, "the guest of vm %s does not take in what is typed", h.id)
	}
	h.hangUp()
	return fault(vm.CodeUnavailable, err, "type on the console of vm %s", h.id)
}

// Close implements [vm.Console].
func (c *console) Close() error {
	c.once.Do(func() {
		close(c.closed)
		h := c.hub
		h.mu.Lock()
		if h.typist == c {
			h.typist = nil
			h.interrupt()
		}
		h.unfollow()
		h.mu.Unlock()
		c.reads.Lock() // whoever reads has seen it
		defer c.reads.Unlock()
		c.log.Close()
	})
	return nil
}
