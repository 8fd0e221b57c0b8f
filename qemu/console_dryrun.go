package qemu

import (
	"context"
	"io"
	"log/slog"
	"net"

	"vmand/vm"
)

// pretendedGreeting is what a pretended guest prints when somebody looks.
const pretendedGreeting = "\r\ndry run: no guest runs here; what you type comes back\r\n"

// Console implements [vm.Driver]. A pretended guest says so, once, and echoes.
func (d *DryRun) Console(_ context.Context, id string, o vm.ConsoleOptions) (vm.Console, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.marker(id) == nil {
		return nil, noConsole(id)
	}
	h := d.consoles[id]
	if h == nil {
		h = newSerialHub(d.state, id, slog.New(slog.DiscardHandler), true)
		h.print([]byte(pretendedGreeting))
		ours, guest := net.Pipe()
		h.connect(ours)
		go h.drain(ours, nil)
		go func() { // ends with h
			defer guest.Close()
			io.Copy(guest, guest)
		}()
		if d.consoles == nil {
			d.consoles = make(map[string]*serialHub)
		}
		d.consoles[id] = h
	}
	return h.join(o)
}

// ConsoleLog implements [vm.Driver].
func (d *DryRun) ConsoleLog(_ context.Context, id string, offset int64) (io.ReadCloser, int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return openConsoleLog(d.state, id, d.consoles[id], offset)
}

// endConsole ends the console of a VM that does not pretend to run any more, or
// that vmand lets go of. d.mu is held.
func (d *DryRun) endConsole(id string, why error) {
	if h := d.consoles[id]; h != nil {
		h.close(why)
		delete(d.consoles, id)
	}
}

// endConsoles ends all of them, as vmand does.
func (d *DryRun) endConsoles() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.consoles {
		d.endConsole(id, errEnding)
	}
}
