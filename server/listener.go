package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// How long a [Listener] waits between two attempts to open its address, and how often
// it compares its socket file.
const (
	minReopen     = 500 * time.Millisecond
	maxReopen     = 15 * time.Second
	checkInterval = time.Second
)

// A Listener keeps an address of the API open. If the address cannot be opened, or its
// socket file is removed or replaced, the listener opens it again with back-off.
type Listener struct {
	name string // of the setting
	addr net.Addr
	open func() (net.Listener, error)
	log  *slog.Logger

	closing context.Context
	close   context.CancelFunc

	mu      sync.Mutex
	current net.Listener // nil while the address is not open
	file    os.FileInfo  // of the socket file; nil for TCP
	err     error        // why the address is not open
}

// KeepTCP opens a TCP address such as 127.0.0.1:8000. If that fails in a way that may
// heal by itself, such as a port in use or an address that the host does not have yet,
// the returned listener tries again, and [Listener.Problem] returns the error. Another
// failure is an error: a port that the process may not use.
func KeepTCP(address string, log *slog.Logger) (*Listener, error) {
	l := newListener("listen", tcpName(address), log, func() (net.Listener, error) { return ListenTCP(address) })
	if err := l.reopen(); errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	return l, nil
}

// KeepUnix opens a unix socket, as [ListenUnix] does. It fails if that fails now; later
// the listener makes the socket again if it is removed or replaced.
func KeepUnix(path, group string, log *slog.Logger) (*Listener, error) {
	l := newListener("socket", &net.UnixAddr{Name: path, Net: "unix"}, log,
		func() (net.Listener, error) { return ListenUnix(path, group) })
	if err := l.reopen(); err != nil {
		return nil, err
	}
	go l.watch(path)
	return l, nil
}

// Passed returns a listener for an address that another process, such as systemd, has opened
// and owns. It is never opened again, and Close leaves its socket file. name is that of the
// setting that it replaces.
func Passed(name string, current net.Listener, log *slog.Logger) *Listener {
	l := newListener(name, current.Addr(), log, nil)
	l.current = current
	return l
}

func newListener(name string, addr net.Addr, log *slog.Logger, open func() (net.Listener, error)) *Listener {
	l := &Listener{name: name, addr: addr, open: open, log: log}
	l.closing, l.close = context.WithCancel(context.Background())
	return l
}

// A tcpName is a TCP address that may not be open.
type tcpName string

// Network implements [net.Addr].
func (tcpName) Network() string { return "tcp" }

// String implements [net.Addr].
func (n tcpName) String() string { return string(n) }

// reopen opens the address, unless it is open.
func (l *Listener) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		return nil
	}
	if l.closing.Err() != nil {
		return net.ErrClosed
	}
	current, err := l.open()
	if err == nil {
		err = l.opened(current)
	}
	if err != nil && (l.err == nil || l.err.Error() != err.Error()) {
		l.log.Warn("an address of the API is not open; it is tried again", "listen", l.addr, "err", err)
	}
	l.err = err
	return err
}

// opened records a listener that was opened. It must be called with mu held.
func (l *Listener) opened(current net.Listener) error {
	if u, ok := current.(*net.UnixListener); ok {
		// The name may be another process's file when the listener closes.
		u.SetUnlinkOnClose(false)
		file, err := os.Lstat(l.addr.String())
		if err != nil {
			_ = current.Close()
			return err
		}
		l.file = file
	}
	l.current = current
	return nil
}

// Accept implements [net.Listener]. It blocks while the address is not open, and fails
// with [net.ErrClosed] after Close.
func (l *Listener) Accept() (net.Conn, error) {
	wait := minReopen
	for {
		if l.closing.Err() != nil {
			return nil, net.ErrClosed
		}
		if current := l.opening(); current != nil {
			c, err := current.Accept()
			if err == nil || !errors.Is(err, net.ErrClosed) {
				return c, err // such as too many open files: the server tries again
			}
			continue // closed by watch or Close
		}
		select {
		case <-time.After(wait):
		case <-l.closing.Done():
		}
		wait = min(2*wait, maxReopen)
	}
}

// opening returns the open listener. If the address is not open, it tries to open it,
// and returns nil if that fails.
func (l *Listener) opening() net.Listener {
	l.mu.Lock()
	current, failed := l.current, l.err != nil
	l.mu.Unlock()
	if current != nil {
		return current
	}
	if l.reopen() != nil {
		return nil
	}
	if failed {
		l.log.Info("an address of the API is open", "listen", l.addr)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

func (l *Listener) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// watch closes the listener of a unix socket if its file is removed or replaced, so
// that Accept opens it again.
func (l *Listener) watch(path string) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.closing.Done():
			return
		case <-tick.C:
		}
		if err := l.check(path); err != nil {
			l.log.Warn("the socket of the API is lost and is made again", "path", path, "err", err)
		}
	}
}

// check closes the current listener if path is not its socket, and returns the reason.
func (l *Listener) check(path string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil {
		return nil
	}
	now, err := os.Lstat(path)
	switch {
	case err == nil && os.SameFile(now, l.file):
		return nil
	case err == nil:
		err = fmt.Errorf("%s is another file", path)
	}
	_ = l.current.Close()
	l.current, l.err = nil, err
	return err
}

// Problem returns the reason for which the address is not open, or "".
func (l *Listener) Problem() string {
	if err := l.failure(); err != nil {
		return fmt.Sprintf("%s %s: %v; it is tried again", l.name, l.addr, err)
	}
	return ""
}

// Addr implements [net.Listener].
func (l *Listener) Addr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		return l.current.Addr()
	}
	return l.addr
}

// Close implements [net.Listener]. It removes the socket file.
func (l *Listener) Close() error {
	l.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil {
		return net.ErrClosed
	}
	if now, err := os.Lstat(l.addr.String()); err == nil && l.file != nil && os.SameFile(now, l.file) {
		_ = os.Remove(l.addr.String()) // best effort: the next start replaces it
	}
	err := l.current.Close()
	l.current = nil
	return err
}
