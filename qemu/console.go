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

// Console implements [vm.Consoles]. ctx bounds only the joining; the console lasts
// until it is closed.
func (d *Driver) Console(_ context.Context, id string, o vm.ConsoleOptions) (vm.Console, error) {
	s, err := d.session(id)
	if err != nil {
		return nil, fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", id)
	}
	if s == nil {
		return nil, noConsole(id)
	}
	return s.console.join(o)
}

// ConsoleLog implements [vm.Consoles]. Offsets count the guest's output since the
// VM was created, over all its runs. The log holds the last 16 to 32 MiB of it. An
// offset before its beginning means its beginning, one after its end its end. So
// the first byte of log has the offset end minus the length of log.
func (d *Driver) ConsoleLog(_ context.Context, id string, offset int64) (io.ReadCloser, int64, error) {
	s, err := d.session(id)
	if err != nil {
		return nil, 0, fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", id)
	}
	if s == nil {
		return openConsoleLog(d.state, id, nil, offset)
	}
	return openConsoleLog(d.state, id, s.console, offset)
}

// noConsole returns the fault for the console of a VM that does not run.
func noConsole(id string) error {
	f := fault(vm.CodeState, nil, "VM %s does not run and has no console", id)
	f.Hint = "start it first"
	return f
}

// logReader reads a part of a serial log.
type logReader struct {
	file    *os.File
	hub     *serialHub // nil for a VM that does not run: its log does not rotate
	at, end int64
}

// openConsoleLog opens the log of a VM from offset to its present end. hub is nil
// if the VM does not run.
func openConsoleLog(state *os.Root, id string, hub *serialHub, offset int64) (io.ReadCloser, int64, error) {
	if !vm.ValidName(id) {
		return nil, 0, vm.NotFound("VM", id)
	}
	f, err := state.Open(vmSerialLog(id))
	if errors.Is(err, fs.ErrNotExist) { // the VM has never run
		return io.NopCloser(io.LimitReader(nil, 0)), 0, nil
	}
	if err != nil {
		return nil, 0, fileFault(err, "open the console log of VM %s", id)
	}
	r := &logReader{file: f, hub: hub}
	var begin int64
	if hub != nil {
		hub.update()
		begin, r.end = hub.bounds()
	} else {
		begin = firstData(f)
		if r.end, err = fileSize(f); err != nil {
			f.Close()
			return nil, 0, fileFault(err, "open the console log of VM %s", id)
		}
	}
	if offset < 0 {
		offset += r.end
	}
	r.at = min(max(offset, begin), r.end)
	return r, r.end, nil
}

// Read implements [io.Reader].
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
	case err == io.EOF: // the file was truncated
		return 0, io.ErrUnexpectedEOF
	default:
		return 0, fileFault(err, "read the console log")
	}
}

// Close implements [io.Closer].
func (r *logReader) Close() error { return r.file.Close() }

// console is one connection to a hub. It implements [vm.Console].
type console struct {
	hub    *serialHub
	reads  sync.Mutex
	log    logReader // its end is the hub's
	once   sync.Once
	closed chan struct{}
}

// join connects a client. The scrollback that o asks for and the output after that
// moment are one stream without a gap.
func (h *serialHub) join(o vm.ConsoleOptions) (*console, error) {
	f, err := h.state.Open(vmSerialLog(h.id))
	if err != nil {
		return nil, fileFault(err, "open the console log of VM %s", h.id)
	}
	c := &console{hub: h, log: logReader{file: f, hub: h}, closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	err = nil
	if o.Write && h.typist != nil && !o.TakeOver {
		err = &vm.Fault{
			Code:   vm.CodeBusy,
			Detail: "another connection types on the console of VM " + h.id,
			Hint:   "take over, or only read",
		}
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

// interrupt ends a write that is in progress. h.mu must be held, and the writer must
// not be the typist any more.
func (h *serialHub) interrupt() {
	if h.line != nil {
		h.line.SetWriteDeadline(time.Unix(1, 0))
	}
}

// tooSlow returns the fault of a reader after its next byte was cut from the log.
func (h *serialHub) tooSlow() error {
	return fault(vm.CodeUnavailable, nil,
		"the console of VM %s was read too slowly: its log has dropped the next byte", h.id)
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

// maxKeys is how many bytes are written to the guest at once, each within the
// patience of the hub.
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

// typeIn writes p to the guest. It serializes the writes of all connections.
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

// pickUp returns the line to the guest, for one write of c.
func (h *serialHub) pickUp(c *console) (line, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.mayType(c); err != nil {
		return nil, err
	}
	if h.line == nil {
		line, err := h.dial()
		if err != nil {
			return nil, fault(vm.CodeUnavailable, err, "the console of VM %s accepts no input", h.id)
		}
		h.line = line
	}
	h.line.SetWriteDeadline(time.Now().Add(h.limits.patience)) // before any interrupt
	return h.line, nil
}

// mayType returns the reason why c cannot type, nil if it can. h.mu must be held.
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
		return fault(vm.CodeState, nil,
			"this connection may not write to the console of VM %s: another one, or none, does", h.id)
	}
}

// typeFault gives the error of a write its class.
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
		return fault(vm.CodeUnavailable, nil, "the guest of VM %s does not read its console", h.id)
	}
	h.hangUp()
	return fault(vm.CodeUnavailable, err, "type on the console of VM %s", h.id)
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
		c.reads.Lock() // a Read that was waiting has returned
		defer c.reads.Unlock()
		c.log.Close()
	})
	return nil
}
