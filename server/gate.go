package server

import (
	queue "container/list"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of the connections of one listener. A stranger is a TCP connection that has
// not sent a request with valid credentials yet.
const (
	maxConnections      = 1024
	maxPeerConnections  = 256 // of one address
	maxStrangers        = 256
	maxPeerStrangers    = 64 // of one address
	strangerIdleTimeout = 5 * time.Second
	// descriptorShare is the part of the process's descriptors that the connections of
	// one listener may use: a quarter. With a unix socket and a TCP address, half is
	// left for the driver, the database and the observer.
	descriptorShare = 4
	// refusalInterval is the minimum time between two log lines about refused
	// connections.
	refusalInterval = time.Minute
)

// connectionLimits are the limits of a gate.
type connectionLimits struct {
	all, peer, strangers, peerStrangers int
	strangerIdle                        time.Duration
}

// defaultLimits returns the limits, which are lower if the process may open few files.
func defaultLimits() connectionLimits {
	l := connectionLimits{maxConnections, maxPeerConnections, maxStrangers, maxPeerStrangers, strangerIdleTimeout}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Cur/descriptorShare < uint64(l.all) {
		l.all = max(int(files.Cur)/descriptorShare, 16)
	}
	l.peer = min(l.peer, l.all)
	l.strangers = min(l.strangers, l.all/2)
	l.peerStrangers = min(l.peerStrangers, l.strangers)
	return l
}

// A gate is a listener that bounds the number of connections: in all, of each address,
// and of strangers. A new stranger above a limit replaces the oldest one, so idle
// strangers cannot keep a client with credentials out.
type gate struct {
	net.Listener
	limits connectionLimits
	guest  func(peer, local netip.AddrPort) bool // reports whether a connection is a guest's; may be nil
	log    *slog.Logger
	// replace returns what to send instead of an answer of net/http itself; may be nil.
	replace func(answer []byte) []byte

	mu        sync.Mutex
	peers     map[netip.Addr]int
	all       int
	strangers *queue.List // of *gated, the oldest first
	refused   int         // since the last log line
	logged    time.Time
}

func newGate(l net.Listener, limits connectionLimits, guest func(peer, local netip.AddrPort) bool, log *slog.Logger) *gate {
	return &gate{
		Listener: l, limits: limits, guest: guest, log: log,
		peers: map[netip.Addr]int{}, strangers: queue.New(),
	}
}

// Accept implements [net.Listener]. It closes connections that are refused.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if admitted := g.admit(c); admitted != nil {
			return admitted, nil
		}
		_ = c.Close()
	}
}

// admit returns the connection for the server, nil if it is refused.
func (g *gate) admit(c net.Conn) *gated {
	peer, isTCP := addressOf(c.RemoteAddr())
	if local, _ := addressOf(c.LocalAddr()); isTCP && g.guest != nil && g.guest(peer, local) {
		g.refuse("a guest may not use the API of its host", peer)
		return nil
	}
	admitted := &gated{Conn: c, gate: g, peer: peer.Addr()}
	evicted, reason := g.enter(admitted, isTCP)
	if evicted != nil {
		_ = evicted.Close()
	}
	if reason != "" {
		g.refuse(reason, peer)
		return nil
	}
	return admitted
}

// enter counts a connection. It returns the stranger to close, if any, and the reason
// for which c is refused, or "".
func (g *gate) enter(c *gated, isTCP bool) (evicted *gated, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if isTCP {
		evicted = g.surplus(c.peer)
	}
	all, ofPeer := g.all, g.peers[c.peer]
	if evicted != nil {
		all--
		if evicted.peer == c.peer {
			ofPeer--
		}
	}
	switch {
	case all >= g.limits.all:
		return evicted, "the listener has its maximum number of connections"
	case isTCP && ofPeer >= g.limits.peer:
		return evicted, "the address has its maximum number of connections"
	}
	g.all++
	if isTCP {
		g.peers[c.peer]++
		c.stranger = g.strangers.PushBack(c)
		c.unknown.Store(true)
	}
	return evicted, ""
}

// surplus returns the stranger that a new one from peer replaces: the oldest one from
// the same address if that has too many, else the oldest one if there are too many in
// all, else nil. It must be called with mu held.
func (g *gate) surplus(peer netip.Addr) *gated {
	var oldest *gated
	n := 0
	for e := g.strangers.Front(); e != nil; e = e.Next() {
		if s := e.Value.(*gated); s.peer == peer {
			if oldest == nil {
				oldest = s
			}
			n++
		}
	}
	switch {
	case n >= g.limits.peerStrangers:
		return oldest
	case g.strangers.Len() >= g.limits.strangers:
		return g.strangers.Front().Value.(*gated)
	}
	return nil
}

// refuse logs a refused connection, at most one in refusalInterval.
func (g *gate) refuse(reason string, peer netip.AddrPort) {
	g.mu.Lock()
	g.refused++
	count := g.refused
	due := time.Since(g.logged) >= refusalInterval
	if due {
		g.refused, g.logged = 0, time.Now()
	}
	g.mu.Unlock()
	if due {
		g.log.Warn("connections are refused", "reason", reason, "ip", peer.Addr(), "count", count)
	}
}

// leave uncounts a connection.
func (g *gate) leave(c *gated) {
	g.know(c)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if !c.peer.IsValid() {
		return
	}
	if g.peers[c.peer]--; g.peers[c.peer] == 0 {
		delete(g.peers, c.peer)
	}
}

// know records that a connection is no stranger. It is idempotent.
func (g *gate) know(c *gated) {
	if !c.unknown.CompareAndSwap(true, false) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.strangers.Remove(c.stranger)
}

// addressOf returns the address of an endpoint. It reports false for a unix socket.
func addressOf(a net.Addr) (netip.AddrPort, bool) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	at := t.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port()), true
}

// A gated is a connection that a gate has counted.
type gated struct {
	net.Conn
	gate     *gate
	peer     netip.Addr     // invalid for a unix socket
	stranger *queue.Element // in gate.strangers
	unknown  atomic.Bool    // it is a stranger
	closed   atomic.Bool
	handling atomic.Bool // a handler has a request of it, or its answer is being sent
	replaced atomic.Bool // an answer of net/http was replaced; the connection ends
}

// Close implements [net.Conn].
func (c *gated) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.gate.leave(c)
	}
	return c.Conn.Close()
}

// SetReadDeadline implements [net.Conn]. net/http sets a deadline for the time between
// two requests; that of a stranger is shorter.
func (c *gated) SetReadDeadline(t time.Time) error {
	if latest := time.Now().Add(c.gate.limits.strangerIdle); c.unknown.Load() && t.After(latest) {
		t = latest
	}
	return c.Conn.SetReadDeadline(t)
}

// ReadFrom implements [io.ReaderFrom], so that files are sent with sendfile(2).
func (c *gated) ReadFrom(r io.Reader) (int64, error) {
	if to, ok := c.Conn.(io.ReaderFrom); ok {
		return to.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// CloseWrite shuts down the sending half. net/http calls it before it closes a
// connection whose request it has not read completely.
func (c *gated) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
