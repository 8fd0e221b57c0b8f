package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	resolvConf   = "/etc/resolv.conf"
	checkEvery   = 2 * time.Second // checks of the file for changes
	attemptTime  = 2 * time.Second
	forwardTime  = 5 * time.Second // for all attempts: the timeout of clients (resolv.conf(5))
	maxUpstreams = 4
	udpSize      = 1232 // bytes of a reply that IPv6 does not fragment (RFC 9715)
)

var errNoUpstream = errors.New("the host has no resolver")

// upstreams holds the servers that receive forwarded queries. It is safe for concurrent use.
type upstreams struct {
	fixed []netip.AddrPort // nil: those of file
	file  string           // in the format of resolv.conf(5)

	mu        sync.Mutex // guards the fields below
	checked   time.Time  // the last check of the file
	modified  time.Time  // of the file
	size      int64      // of the file
	found     []netip.AddrPort
	preferred netip.AddrPort // answered last
}

// list returns the upstream servers, the one that answered last first, without the addresses
// of this server. changed reports whether the file has changed.
func (u *upstreams) list(now time.Time, own ...netip.Addr) (servers []netip.AddrPort, changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := u.fixed
	if all == nil {
		changed = u.checkFile(now)
		all = u.found
	}
	for _, a := range all {
		if !slices.Contains(own, a.Addr().WithZone("")) && len(servers) < maxUpstreams {
			servers = append(servers, a)
		}
	}
	if i := slices.Index(servers, u.preferred); i > 0 {
		servers = slices.Insert(slices.Delete(servers, i, i+1), 0, u.preferred)
	}
	return servers, changed
}

// checkFile rereads the file if it has changed, at most once in checkEvery, and reports
// whether its servers have. A file that cannot be read has none. It must be called with mu
// held.
func (u *upstreams) checkFile(now time.Time) bool {
	if now.Sub(u.checked) < checkEvery {
		return false
	}
	u.checked = now
	var at time.Time
	var size int64
	if info, err := os.Stat(u.file); err == nil {
		at, size = info.ModTime(), info.Size()
	}
	if at.Equal(u.modified) && size == u.size {
		return false
	}
	u.modified, u.size = at, size
	previous := u.found
	u.found = readResolvConf(u.file)
	return previous != nil && !slices.Equal(previous, u.found)
}

// answered makes a server the first of the next list.
func (u *upstreams) answered(a netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.preferred = a
}

// readResolvConf returns the name servers of a file in the format of resolv.conf(5).
func readResolvConf(file string) []netip.AddrPort {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	servers := []netip.AddrPort{}
	for line := range bytes.Lines(content) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	return servers
}

// query sends the question of q to the servers in order until one has an answer. If none has,
// it returns the reply of one that refused or failed.
func (u *upstreams) query(ctx context.Context, q *dns.Msg, servers []netip.AddrPort) (*dns.Msg, error) {
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	var refusal *dns.Msg
	var failed error
	for _, server := range servers {
		m, err := attempt(ctx, q, server)
		switch {
		case err != nil:
			failed = fmt.Errorf("query %v: %w", server, err)
		case m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused || m.Rcode == dns.RcodeNotImplemented:
			refusal = m
		default:
			u.answered(server)
			return m, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if refusal != nil {
		return refusal, nil
	}
	return nil, failed
}

// attempt queries one server by UDP, and by TCP if the answer was truncated. It uses EDNS
// unless the server does not support it (RFC 6891, section 7).
func attempt(ctx context.Context, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	query := queryFor(q)
	m, err := exchange(ctx, "udp", query, server)
	if err == nil && m.Rcode == dns.RcodeFormatError && m.IsEdns0() == nil {
		query.Extra = nil
		m, err = exchange(ctx, "udp", query, server)
	}
	if err == nil && m.Truncated {
		return exchange(ctx, "tcp", query, server)
	}
	return m, err
}

// queryFor returns a new query for the question of q. To forge the answer, an attacker has to
// guess its random id and the port that the kernel picks.
func queryFor(q *dns.Msg) *dns.Msg {
	query := new(dns.Msg)
	query.Id = dns.Id()
	query.RecursionDesired = true
	query.CheckingDisabled = q.CheckingDisabled
	query.Question = q.Question
	o := q.IsEdns0()
	query.SetEdns0(udpSize, o != nil && o.Do())
	return query
}

// exchange sends a query and waits for its answer. transport is "udp" or "tcp". By UDP, it
// ignores all other messages.
func exchange(ctx context.Context, transport string, query *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, transport, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	packed, err := query.Pack()
	if err != nil {
		return nil, err
	}
	stream := transport == "tcp"
	if stream {
		packed = append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
	}
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	buffer := make([]byte, 4096)
	for {
		answer, err := receive(conn, buffer, stream)
		if err != nil {
			return nil, err
		}
		m := new(dns.Msg)
		if m.Unpack(answer) == nil && answers(m, query) {
			return m, nil
		}
		if stream {
			return nil, errors.New("the answer is for another question")
		}
	}
}

// receive reads one message.
func receive(conn net.Conn, buffer []byte, stream bool) ([]byte, error) {
	if !stream {
		n, err := conn.Read(buffer)
		return buffer[:n], err
	}
	if _, err := io.ReadFull(conn, buffer[:2]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(buffer))
	_, err := io.ReadFull(conn, answer)
	return answer, err
}

// answers reports whether m is the answer to a query.
func answers(m, query *dns.Msg) bool {
	if !m.Response || m.Id != query.Id || m.Opcode != query.Opcode || len(m.Question) != 1 {
		// A server that cannot parse a query may leave out the question.
		return m.Response && m.Id == query.Id && m.Rcode == dns.RcodeFormatError && len(m.Question) == 0
	}
	a, q := m.Question[0], query.Question[0]
	return a.Qtype == q.Qtype && a.Qclass == q.Qclass && strings.EqualFold(a.Name, q.Name)
}
