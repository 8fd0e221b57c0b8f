package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Limits of TCP connections (RFC 7766, section 6.2).
const (
	maxStreams       = 64  // at once
	maxStreamsClient = 8   // at once, of one client
	maxStreamQueries = 128 // of one connection
	streamIdle       = 10 * time.Second
	streamWrite      = 5 * time.Second
)

// accept serves TCP connections. It blocks until the context of l is done, and then returns
// nil, or until the socket fails.
func (s *Server) accept(l *listener) error {
	for {
		conn, err := l.tcp.Accept()
		switch {
		case l.ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case isShortage(err):
			timer := time.NewTimer(time.Second)
			select {
			case <-timer.C:
			case <-l.ctx.Done():
				timer.Stop()
			}
			continue
		case errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return fmt.Errorf("accept DNS connections: %w", err)
		}
		remote, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		client := remote.Addr().Unmap().WithZone("")
		if !s.currentZone().allows(client) || !s.streams.take(limitKey(client)) {
			conn.Close()
			continue
		}
		s.work.Go(func() {
			defer s.log.Recover()
			defer s.streams.release(limitKey(client))
			defer conn.Close()
			defer context.AfterFunc(l.ctx, func() { conn.Close() })()
			s.serveStream(conn, client)
		})
	}
}

// isShortage reports whether err is a temporary lack of files or memory.
func isShortage(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) ||
		errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// serveStream answers the queries of one connection, one after the other.
func (s *Server) serveStream(conn net.Conn, client netip.Addr) {
	for range maxStreamQueries {
		conn.SetDeadline(time.Now().Add(streamIdle))
		b, err := readMessage(conn)
		if err != nil {
			return
		}
		if !s.clients.Allow(limitKey(client)) {
			s.noteLimited(client)
			return
		}
		answer := s.resolve(b, client)
		if answer == nil {
			return
		}
		conn.SetDeadline(time.Now().Add(streamWrite))
		length := binary.BigEndian.AppendUint16(nil, uint16(len(answer)))
		if _, err := conn.Write(append(length, answer...)); err != nil {
			return
		}
	}
}

// readMessage reads the length of a message and the message (RFC 1035, section 4.2.2).
func readMessage(conn net.Conn) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(length[:])
	if n > maxQuery {
		return nil, errors.New("the query is too long")
	}
	b := make([]byte, n)
	_, err := io.ReadFull(conn, b)
	return b, err
}

// resolve returns the reply to a message of a stream. It returns nil if the connection must
// be closed without a reply.
func (s *Server) resolve(b []byte, client netip.Addr) []byte {
	q := new(dns.Msg)
	if err := q.Unpack(b); err != nil {
		return formatError(b)
	}
	if q.Response {
		return nil
	}
	z := s.currentZone()
	r, final := screen(q, client, z)
	var forward *dns.Msg
	if !final {
		forward = s.answerLocally(s.ctx, z, q, r)
	}
	if forward != nil {
		if ticket, ok := s.forwards.join(limitKey(client)); ok {
			s.forward(ticket, z, forward, r, client)
		} else {
			s.noteLimited(client)
			fail(r)
		}
	}
	answer, err := pack(r, q, true)
	if err != nil {
		s.log.Warn("cannot pack a DNS reply", "err", err)
		return nil
	}
	return answer
}

// A quota limits the number of things in use at once, in total and per client. It is safe
// for concurrent use.
type quota struct {
	inTotal, perClient int

	mu    sync.Mutex
	total int
	taken map[netip.Addr]int // at most inTotal entries
}

func newQuota(inTotal, perClient int) *quota {
	return &quota{inTotal: inTotal, perClient: perClient, taken: map[netip.Addr]int{}}
}

// take reports whether a client may use one more. The caller must then call release.
func (q *quota) take(client netip.Addr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.total >= q.inTotal || q.taken[client] >= q.perClient {
		return false
	}
	q.total++
	q.taken[client]++
	return true
}

func (q *quota) release(client netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if q.taken[client]--; q.taken[client] == 0 {
		delete(q.taken, client)
	}
}
