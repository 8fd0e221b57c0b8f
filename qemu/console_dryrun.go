package qemu

import (
	"context"
	"io"
	"log/slog"
	"time"

	"vmand/vm"
)

// pretendedGreeting is the first output of a guest of a dry run.
const pretendedGreeting = "\r\ndry run: no guest runs here; the input is echoed\r\n"

// Console implements [vm.Consoles]. The guest prints a greeting and echoes its input.
func (d *DryRun) Console(_ context.Context, id string, o vm.ConsoleOptions) (vm.Console, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.marker(id) == nil {
		return nil, noConsole(id)
	}
	h := d.consoles[id]
	if h == nil {
		h = newSerialHub(&serialHub{state: d.state, id: id, log: slog.New(slog.DiscardHandler)})
		h.dial = func() (line, error) { return echo{h}, nil }
		h.print([]byte(pretendedGreeting))
		if d.consoles == nil {
			d.consoles = make(map[string]*serialHub)
		}
		d.consoles[id] = h
	}
	return h.join(o)
}

// echo is the line to a guest that prints its input.
type echo struct{ hub *serialHub }

// Write implements [io.Writer].
func (e echo) Write(p []byte) (int, error) {
	e.hub.print(p)
	return len(p), nil
}

func (e echo) SetWriteDeadline(time.Time) error { return nil }
func (e echo) Close() error                     { return nil }

// ConsoleLog implements [vm.Consoles].
func (d *DryRun) ConsoleLog(_ context.Context, id string, offset int64) (io.ReadCloser, int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return openConsoleLog(d.state, id, d.consoles[id], offset)
}

// endConsole ends the console of a VM. d.mu must be held.
func (d *DryRun) endConsole(id string, why error) {
	if h := d.consoles[id]; h != nil {
		h.close(why)
		delete(d.consoles, id)
	}
}

// endConsoles ends all consoles, when vmand stops.
func (d *DryRun) endConsoles() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.consoles {
		d.endConsole(id, errEnding)
	}
}
