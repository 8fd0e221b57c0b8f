// Package qmptest is a QMP server for tests. It listens on a real unix socket
// and, like QEMU, serves one client at a time while others wait.
//
// What it says is up to the test: either a script, which has every byte in its
// hands (late, doubled, broken and missing answers), or a handler, which is
// asked for the answer to each command. Package qmptest knows nothing of the
// client it tests.
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
	served   chan struct{} // closed when the accepting goroutine has ended

	mu      sync.Mutex
	scripts []func(*Peer)
	handler Handler
	peer    *Peer    // the client that is served
	names   []string // of the commands received
	closed  bool
}

// Handler answers a command: with a value to be returned, encoded by
// json.Marshal (nil stands for {}), or with an error. [Refuse] makes an error of
// a certain class, any other is a GenericError; [ErrSilent] and [ErrHangUp] do
// what they say. Like QEMU's monitor, the server is deaf while a handler runs.
type Handler func(command string, args Args) (any, error)

var (
	// ErrSilent, returned by a [Handler], leaves a command without an answer.
	ErrSilent = errors.New("no answer")
	// ErrHangUp, returned by a [Handler], closes the connection.
	ErrHangUp = errors.New("hang up")
)

// NewServer starts a server whose socket and goroutines vanish with the test.
// Say with Script or Handle what it does before a client connects.
func NewServer(t testing.TB) *Server {
	t.Helper()
	// t.TempDir contains the test's name, too long for a socket's path.
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

// Script makes the next client that has no script yet be served by script.
// When script returns, the server stays silent until the client hangs up. A
// script that does not run to its end fails the test.
func (s *Server) Script(script func(*Peer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts = append(s.scripts, script)
}

// Handle makes all clients without a script be served by h, after a handshake
// that the server does by itself.
func (s *Server) Handle(h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = h
}

// Event sends an event to the client that is served now. It reports false if
// there is none that has done its handshake.
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

// HangUp closes the connection of the client that is served now.
func (s *Server) HangUp() {
	s.mu.Lock()
	p := s.peer
	s.mu.Unlock()
	if p != nil {
		p.Close()
	}
}

// Commands returns the names of all commands received, in their order, without
// qmp_capabilities.
func (s *Server) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.names)
}

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
		go func() { // of its own, because a script that fails ends it
			defer close(ended)
			serve(p)
			p.drain()
		}()
		<-ended
		p.release()
	}
}

// next makes p the client that is served and returns what serves it.
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
	s.t.Error("qmptest: a client connected, but the server was not told what to do with it")
	return nil
}

// heard notes the name of a command.
func (s *Server) heard(name string) {
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
		s.t.Errorf("qmptest: %d scripts were never used", left)
	}
}
