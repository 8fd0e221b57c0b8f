// Package qmptest is a QMP server for tests. It listens on a real unix socket and, like
// QEMU, serves one client at a time while others wait.
//
// A test gives it either a script, which controls every byte (late, duplicate, broken and
// missing replies), or a handler, which returns the reply to each command. Package
// qmptest does not depend on the client under test.
package qmptest

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// Server is a scripted QMP server.
type Server struct {
	t        testing.TB
	path     string
	listener *net.UnixListener
	served   chan struct{} // closed when accept has returned

	mu      sync.Mutex
	scripts []func(*Peer)
	handler Handler
	peer    *Peer    // the client that is being served
	names   []string // of the commands received
	closed  bool
}

// Handler answers a command with a return value, which is encoded by json.Marshal (nil
// stands for {}), or with an error. An error from [Refuse] has a class, [ErrSilent] and
// [ErrHangUp] send no reply, and every other error is sent as a GenericError. Like QEMU's
// monitor, the server does not read while a handler runs.
type Handler func(command string, args Args) (any, error)

var (
	// ErrSilent, returned by a [Handler], leaves a command without a reply.
	ErrSilent = errors.New("no reply")
	// ErrHangUp, returned by a [Handler], closes the connection.
	ErrHangUp = errors.New("hang up")
)

// NewServer starts a server that is closed, with its socket and goroutines, when the test
// ends. Call Script or Handle before a client connects.
func NewServer(t testing.TB) *Server {
	t.Helper()
	// The path of t.TempDir contains the name of the test: too long for a socket.
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "qmp")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, path: path, listener: l, served: make(chan struct{})}
	go s.accept()
	t.Cleanup(s.close)
	return s
}

// Path returns the path of the server's socket.
func (s *Server) Path() string { return s.path }

// Script makes the server serve the next client that has no script yet with script. When
// script returns, the server sends nothing more and waits until the client hangs up. A
// script that does not run to its end fails the test.
func (s *Server) Script(script func(*Peer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts = append(s.scripts, script)
}

// Handle makes the server serve all clients without a script with h. The server does the
// handshake itself.
func (s *Server) Handle(h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = h
}

// Event sends an event to the client that is being served. It returns false if there is
// none, or it has not completed its handshake.
func (s *Server) Event(name string, data any) bool {
	s.mu.Lock()
	p := s.peer
	s.mu.Unlock()
	if p == nil || !p.negotiated.Load() {
		return false
	}
	p.Event(name, data)
	return true
}

// HangUp closes the connection of the client that is being served, if any.
func (s *Server) HangUp() {
	s.mu.Lock()
	p := s.peer
	s.mu.Unlock()
	if p != nil {
		p.Close()
	}
}

// Commands returns the names of all received commands in order, without
// qmp_capabilities.
func (s *Server) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.names)
}

// accept serves clients one after another until the listener is closed.
func (s *Server) accept() {
	defer close(s.served)
	for {
		sock, err := s.listener.AcceptUnix()
		if err != nil {
			return // closed
		}
		p := &Peer{server: s, sock: sock}
		serve := s.next(p)
		if serve == nil {
			p.Close()
			continue
		}
		ended := make(chan struct{})
		go func() { // a goroutine of its own, because a failing script ends it
			defer close(ended)
			serve(p)
			p.drain()
		}()
		<-ended
		p.release()
	}
}

// next makes p the client that is being served and returns the function that serves it,
// or nil.
func (s *Server) next(p *Peer) func(*Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.peer = p
	if len(s.scripts) > 0 {
		script := s.scripts[0]
		s.scripts = s.scripts[1:]
		return script
	}
	if h := s.handler; h != nil {
		return func(p *Peer) { p.handle(h) }
	}
	s.t.Error("qmptest: a client connected, but the server has no script or handler for it")
	return nil
}

// record appends a name to s.names.
func (s *Server) record(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = append(s.names, name)
}

func (s *Server) close() {
	s.mu.Lock()
	s.closed = true
	p, left := s.peer, len(s.scripts)
	s.mu.Unlock()
	s.listener.Close()
	if p != nil {
		p.Close()
	}
	<-s.served
	if left > 0 {
		s.t.Errorf("qmptest: %d scripts were not used", left)
	}
}
