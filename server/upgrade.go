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

// What a request can ask its connection to become.
const (
	protocolWebSocket = "websocket"
	protocolRaw       = "vman-console"
)

var protocols = []string{protocolWebSocket + ", " + protocolRaw}

// upgradeOf returns what r asks its connection to become, and why that is not
// possible.
func upgradeOf(r *http.Request) (string, error) {
	required := &vm.Fault{Code: codeUpgradeRequired, Detail: "the console is a WebSocket, or a connection that is upgraded to " + protocolRaw,
		Hint: "GET /vms/{id}/console/log reads it by plain requests"}
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
		required.Detail = "the console speaks version 13 of the WebSocket protocol"
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

// hasWord reports whether a header that is a list has a word in it.
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

// A connection is a request that becomes a console.
type connection struct {
	s        *Server
	ctx      context.Context // ends with a cause when the connection is to end
	seat     *seat
	console  vm.Console
	writes   bool
	protocol string
	request  *http.Request
}

// A client is the other end of a connection. Read returns what it sends, Write
// sends to it, and fails after a deadline. Finish tells it why it is over, in a
// moment at most, and closes.
type client interface {
	io.ReadWriter
	finish(why error)
}

// Respond implements [openapi.Response]. It
// returns when the connection has ended.
func (c *connection) Respond(w http.ResponseWriter) error {
	defer c.s.consoles.leave(c.seat)
	defer c.console.Close()
	defer c.seat.end(nil)
	if !canHijack(w) {
		return &vm.Fault{Code: codeUpgradeRequired, Detail: "this connection cannot become a console"}
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

// canHijack reports whether a connection can be had from under an answer.
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

// relay passes bytes on in both directions until either end is over.
func (c *connection) relay(peer client) {
	var wg sync.WaitGroup
	wg.Go(func() { c.seat.end(c.show(peer)) })
	wg.Go(func() { c.seat.end(c.take(peer)) })
	if ws, ok := peer.(*webSocket); ok {
		wg.Go(func() { c.seat.end(ws.ping(c.ctx, c.s.heartbeat)) })
	}
	<-c.ctx.Done()
	why := context.Cause(c.ctx)
	_ = c.console.Close() // which ends its Read
	peer.finish(why)
	wg.Wait()
}

// show passes on what the guest writes.
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

// take passes on what is typed. Who only reads has nothing to send.
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

// hijack takes the connection from under an answer, whose head has been written.
type hijack struct {
	http.ResponseWriter
	conn net.Conn
}

func (h *hijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	h.conn = conn
	return conn, rw, err
}

// webSocket makes the connection a WebSocket. That it comes from a page of this
// origin was checked before.
func (c *connection) webSocket(w http.ResponseWriter) (client, error) {
	h := &hijack{ResponseWriter: w}
	ws, err := websocket.Accept(h, c.request, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	ws.SetReadLimit(maxBody)
	return &webSocket{ws: ws, conn: h.conn, ctx: c.ctx, timeout: c.s.eventTimeout}, nil
}

// A webSocket is a client that speaks the WebSocket protocol.
type webSocket struct {
	ws      *websocket.Conn
	conn    net.Conn        // under it
	ctx     context.Context // of the connection
	timeout time.Duration
	message io.Reader // that is being read; nil between two
	busy    atomic.Bool
}

// Read returns the content of messages, text or binary.
func (s *webSocket) Read(p []byte) (int, error) {
	s.busy.Store(false)
	defer s.busy.Store(true)
	for {
		if s.message == nil {
			// Not under the connection's context: when that ends, the peer is
			// still told why.
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

// ping asks from time to time whether the peer is there. While what it has typed
// is on its way to the guest nobody reads its answer.
func (s *webSocket) ping(ctx context.Context, every time.Duration) error {
	beat := time.NewTicker(every)
	defer beat.Stop()
	for {
		select {
		case <-beat.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		asked, stop := context.WithTimeout(ctx, s.timeout)
		err := s.ws.Ping(asked)
		stop()
		if err != nil && !s.busy.Load() {
			return err
		}
	}
}

func (s *webSocket) finish(why error) {
	_ = s.conn.SetDeadline(time.Now().Add(stopPatience))
	code, reason := closeCode(why)
	_ = s.ws.Close(code, reason) // the peer may be gone
	_ = s.conn.Close()
}

// maxReason is how many bytes the reason in a close frame may have (RFC 6455, 5.5).
const maxReason = 123

// closeCode returns how to tell a WebSocket's peer why it is over.
func closeCode(why error) (websocket.StatusCode, string) {
	var f *vm.Fault
	switch {
	case errors.Is(why, io.EOF):
		return websocket.StatusNormalClosure, "the VM's run is over"
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

// raw makes the connection one on which the bytes go both ways.
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
	if err := rw.Flush(); err != nil { // the head of the answer
		conn.Close()
		return nil, err
	}
	return p, nil
}

// A rawPeer is a client that speaks no protocol.
type rawPeer struct {
	net.Conn
	read    *bufio.Reader // has what came with the request
	ctx     context.Context
	timeout time.Duration
}

func (p *rawPeer) Read(b []byte) (int, error) { return p.read.Read(b) }

func (p *rawPeer) Write(b []byte) (int, error) {
	_ = p.SetWriteDeadline(time.Now().Add(p.timeout))
	if p.ctx.Err() != nil { // then another deadline was set in between
		return 0, context.Cause(p.ctx)
	}
	return p.Conn.Write(b)
}

func (p *rawPeer) finish(error) { _ = p.Close() }
