package server

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"vmand/vm"
)

// The protocols that a console request can upgrade to.
const (
	protocolWebSocket = "websocket"
	protocolRaw       = "vman-console"
)

var protocols = []string{protocolWebSocket + ", " + protocolRaw}

// upgradeOf returns the protocol that r upgrades to, or a fault if r is not a valid
// upgrade.
func upgradeOf(r *http.Request) (string, error) {
	required := &vm.Fault{
		Code:   codeUpgradeRequired,
		Detail: "the console needs a WebSocket or an upgrade to " + protocolRaw,
		Hint:   "GET /vms/{id}/console/log reads the console without an upgrade",
	}
	if !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1 || !hasWord(r.Header["Connection"], "upgrade") {
		return "", required
	}
	switch {
	case hasWord(r.Header["Upgrade"], protocolRaw):
		return protocolRaw, nil
	case !hasWord(r.Header["Upgrade"], protocolWebSocket):
		return "", required
	}
	if v := r.Header["Sec-Websocket-Version"]; len(v) != 1 || strings.TrimSpace(v[0]) != "13" {
		required.Detail = "the console needs version 13 of the WebSocket protocol"
		return "", required
	}
	key := r.Header["Sec-Websocket-Key"]
	if len(key) == 1 {
		if b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(key[0])); err == nil && len(b) == 16 {
			return protocolWebSocket, nil
		}
	}
	return "", invalid(vm.FieldFault{Field: "Sec-WebSocket-Key", Detail: "must be 16 bytes in base64"})
}

// hasWord reports whether the list in a header contains word.
func hasWord(lines []string, word string) bool {
	for _, line := range lines {
		for w := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(w), word) {
				return true
			}
		}
	}
	return false
}

// A connection is the answer that upgrades a request to a console connection.
type connection struct {
	s        *Server
	ctx      context.Context // cancelled with a cause to end the connection
	seat     *seat
	console  vm.Console
	writes   bool
	protocol string
	request  *http.Request
}

// A client is the peer of a connection. Write fails if the peer does not read within
// eventTimeout. finish sends the reason of the end to the peer, within stopPatience,
// and closes the connection.
type client interface {
	io.ReadWriter
	finish(why error)
}

// Respond implements [openapi.Response]. It blocks until the connection has ended.
func (c *connection) Respond(w http.ResponseWriter) error {
	defer c.s.consoles.leave(c.seat)
	defer c.console.Close()
	defer c.seat.end(nil)
	if !canHijack(w) {
		return &vm.Fault{Code: codeUpgradeRequired, Detail: "this connection cannot be upgraded"}
	}
	var peer client
	var err error
	if c.protocol == protocolRaw {
		peer, err = c.raw(w)
	} else {
		peer, err = c.webSocket(w)
	}
	if err != nil {
		return err
	}
	defer context.AfterFunc(c.s.stopping, func() { c.seat.end(errStopping) })()
	c.relay(peer)
	return nil
}

// canHijack reports whether the connection of w can be hijacked.
func canHijack(w http.ResponseWriter) bool {
	for {
		switch u := w.(type) {
		case interface{ Unwrap() http.ResponseWriter }:
			w = u.Unwrap()
		case http.Hijacker:
			return true
		default:
			return false
		}
	}
}

// relay copies bytes in both directions until one side ends.
func (c *connection) relay(peer client) {
	var wg sync.WaitGroup
	wg.Go(func() { c.seat.end(c.show(peer)) })
	wg.Go(func() { c.seat.end(c.take(peer)) })
	if ws, ok := peer.(*webSocket); ok {
		wg.Go(func() { c.seat.end(ws.ping(c.ctx, c.s.heartbeat)) })
	}
	<-c.ctx.Done()
	why := context.Cause(c.ctx)
	_ = c.console.Close() // makes its Read return
	peer.finish(why)
	wg.Wait()
}

// show copies the output of the guest to the peer.
func (c *connection) show(peer client) error {
	b := make([]byte, consoleBuffer)
	for {
		n, err := c.console.Read(b)
		if n > 0 {
			if _, err := peer.Write(b[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// take copies the input of the peer to the guest. It fails at the first input of a
// peer that may not write.
func (c *connection) take(peer client) error {
	b := make([]byte, 4<<10)
	for {
		n, err := peer.Read(b)
		if n > 0 {
			if !c.writes {
				return errReader
			}
			if _, err := c.console.Write(b[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// hijack is a writer that remembers the connection that was hijacked from it.
type hijack struct {
	http.ResponseWriter
	conn net.Conn
}

func (h *hijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn = conn
	return conn, rw, err
}

// webSocket upgrades the connection to a WebSocket. The origin has been checked by
// checkConnection.
func (c *connection) webSocket(w http.ResponseWriter) (client, error) {
	h := &hijack{ResponseWriter: w}
	ws, err := websocket.Accept(h, c.request, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(maxBody)
	return &webSocket{ws: ws, conn: h.conn, ctx: c.ctx, timeout: c.s.eventTimeout}, nil
}

// A webSocket is a client over the WebSocket protocol.
type webSocket struct {
	ws      *websocket.Conn
	conn    net.Conn        // the underlying connection
	ctx     context.Context // of the connection
	timeout time.Duration
	message io.Reader   // the message being read; nil between messages
	busy    atomic.Bool // no Read is in progress
}

// Read returns the content of text and binary messages.
func (s *webSocket) Read(p []byte) (int, error) {
	s.busy.Store(false)
	defer s.busy.Store(true)
	for {
		if s.message == nil {
			// Not the context of the connection: finish must be able to send the
			// reason after it is done.
			_, m, err := s.ws.Reader(context.Background())
			if err != nil {
				return 0, err
			}
			s.message = m
		}
		n, err := s.message.Read(p)
		if errors.Is(err, io.EOF) {
			s.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (s *webSocket) Write(p []byte) (int, error) {
	ctx, stop := context.WithTimeout(context.Background(), s.timeout)
	defer stop()
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return len(p), s.ws.Write(ctx, websocket.MessageBinary, p)
}

// ping sends a ping at every interval, and fails if the peer does not answer. While
// no Read is in progress the answer cannot be received, so it is not required.
func (s *webSocket) ping(ctx context.Context, every time.Duration) error {
	beat := time.NewTicker(every)
	defer beat.Stop()
	for {
		select {
		case <-beat.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pingCtx, stop := context.WithTimeout(ctx, s.timeout)
		err := s.ws.Ping(pingCtx)
		stop()
		if err != nil && !s.busy.Load() {
			return err
		}
	}
}

func (s *webSocket) finish(why error) {
	_ = s.conn.SetDeadline(time.Now().Add(stopPatience))
	code, reason := closeCode(why)
	_ = s.ws.Close(code, reason) // best effort
	_ = s.conn.Close()
}

// maxReason is the maximum number of bytes of the reason in a close frame (RFC 6455,
// 5.5).
const maxReason = 123

// closeCode returns the status and the reason of the close frame for why.
func closeCode(why error) (websocket.StatusCode, string) {
	var f *vm.Fault
	switch {
	case errors.Is(why, io.EOF):
		return websocket.StatusNormalClosure, "the VM has ended"
	case why == errStopping:
		return websocket.StatusGoingAway, errStopping.Detail
	case !errors.As(why, &f):
		return websocket.StatusInternalError, ""
	}
	reason := f.Detail
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	if errors.Is(f, vm.ErrUnavailable) {
		return websocket.StatusTryAgainLater, reason
	}
	return websocket.StatusPolicyViolation, reason
}

// raw upgrades the connection to protocolRaw: bytes in both directions.
func (c *connection) raw(w http.ResponseWriter) (client, error) {
	h := w.Header()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", protocolRaw)
	w.WriteHeader(http.StatusSwitchingProtocols)
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	p := &rawPeer{Conn: conn, read: rw.Reader, ctx: c.ctx, timeout: c.s.eventTimeout}
	_ = conn.SetWriteDeadline(time.Now().Add(p.timeout))
	if err := rw.Flush(); err != nil { // the header of the answer
		conn.Close()
		return nil, err
	}
	return p, nil
}

// A rawPeer is a client over protocolRaw.
type rawPeer struct {
	net.Conn
	read    *bufio.Reader // contains bytes that were received with the request
	ctx     context.Context
	timeout time.Duration
}

func (p *rawPeer) Read(b []byte) (int, error) { return p.read.Read(b) }

func (p *rawPeer) Write(b []byte) (int, error) {
	_ = p.SetWriteDeadline(time.Now().Add(p.timeout))
	if p.ctx.Err() != nil { // finish may have set a shorter deadline
		return 0, context.Cause(p.ctx)
	}
	return p.Conn.Write(b)
}

func (p *rawPeer) finish(error) { _ = p.Close() }
