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

// What guests may do with TCP (RFC 7766, section 6.2).
const (
	maxStreams       = 64 // connections at once
	maxStreamsClient = 8  // of one client
	maxStreamQueries = 128
	streamIdle       = 10 * time.Second
	streamWrite      = 5 * time.Second
)

// accept serves TCP connections until ctx of l is done, or until the socket
// fails: then it returns why.
func (s *Server) accept(l *listener) error {
	for {
		conn, err := l.tcp.Accept()
		switch {
		case l.ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM):
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
		if !s.config().allows(client) || !s.streams.take(bucket(client)) {
			conn.Close()
			continue
		}
		s.work.Go(func() {
			defer s.log.Recover()
			defer s.streams.give(bucket(client))
			defer conn.Close()
			defer context.AfterFunc(l.ctx, func() { conn.Close() })()
			s.converse(conn, client)
		})
	}
}

// converse answers the queries of one connection, one after the other.
func (s *Server) converse(conn net.Conn, client netip.Addr) {
	for range maxStreamQueries {
		conn.SetDeadline(time.Now().Add(streamIdle))
		b, err := readMessage(conn)
		if err != nil || !s.clients.Allow(bucket(client)) {
			return
		}
		answer := s.resolve(b, client)
		if answer == nil {
			return
		}
		conn.SetDeadline(time.Now().Add(streamWrite))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// readMessage reads a message after its length (RFC 1035, section 4.2.2).
func readMessage(conn net.Conn) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(length[:])
	if n > maxQuery {
		return nil, errors.New("a query too long")
	}
	b := make([]byte, n)
	_, err := io.ReadFull(conn, b)
	return b, err
}

// resolve returns the answer to a message of a stream; nil if the connection is
// to be closed without one.
func (s *Server) resolve(b []byte, client netip.Addr) []byte {
	q := new(dns.Msg)
	if err := q.Unpack(b); err != nil {
		return unreadable(b)
	}
	if q.Response {
		return nil
	}
	z := s.config()
	r, final := screen(q, client, z)
	if !final && !s.local(s.ctx, z, q, r) {
		s.forward(z, q, r, client)
	}
	answer, err := pack(r, q, true)
	if err != nil {
		s.log.Warn("an answer cannot be put together", "err", err)
		return nil
	}
	return answer
}

// forward fills in r, the reply to q, from what others say, if the client may
// have them asked now.
func (s *Server) forward(z zone, q, r *dns.Msg, client netip.Addr) {
	if !s.forwards.take(bucket(client)) {
		r.Rcode = dns.RcodeServerFailure
		return
	}
	defer s.forwards.give(bucket(client))
	s.remote(s.ctx, z, q, r)
}

// A quota is how many of something there may be at once, in all and of one client.
type quota struct {
	most, each int

	mu    sync.Mutex
	total int
	taken map[netip.Addr]int // as many entries as most at the most
}

func newQuota(most, each int) *quota {
	return &quota{most: most, each: each, taken: map[netip.Addr]int{}}
}

// take reports whether a client may have one more, which it has to give back.
func (q *quota) take(client netip.Addr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.total >= q.most || q.taken[client] >= q.each {
		return false
	}
	q.total++
	q.taken[client]++
	return true
}

func (q *quota) give(client netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total--
	if q.taken[client]--; q.taken[client] == 0 {
		delete(q.taken, client)
	}
}
