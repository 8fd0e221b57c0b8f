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
	lookEvery    = 2 * time.Second // at the file
	attemptTime  = 2 * time.Second
	forwardTime  = 5 * time.Second // for all attempts: what clients wait for (resolv.conf(5))
	maxUpstreams = 4
	udpSize      = 1232 // bytes that reach anybody in one piece over IPv6 (RFC 9715)
)

var errNoUpstream = errors.New("the host has no resolver to ask")

// upstreams are the servers that are asked for what is not ours.
type upstreams struct {
	fixed []netip.AddrPort // nil: those of file
	file  string

	mu      sync.Mutex
	looked  time.Time
	changed time.Time // of the file
	size    int64
	found   []netip.AddrPort
	good    netip.AddrPort // who answered last
}

// list returns whom to ask, the one that answered last first, without ourselves;
// changed says that others were returned the last time.
func (u *upstreams) list(now time.Time, ourselves ...netip.Addr) (servers []netip.AddrPort, changed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := u.fixed
	if all == nil {
		changed = u.look(now)
		all = u.found
	}
	for _, a := range all {
		if !slices.Contains(ourselves, a.Addr().WithZone("")) && len(servers) < maxUpstreams {
			servers = append(servers, a)
		}
	}
	if i := slices.Index(servers, u.good); i > 0 {
		servers = slices.Insert(slices.Delete(servers, i, i+1), 0, u.good)
	}
	return servers, changed
}

// look reads the file again if it has changed; u.mu is held. A file that cannot
// be read names nobody.
func (u *upstreams) look(now time.Time) bool {
	if now.Sub(u.looked) < lookEvery {
		return false
	}
	u.looked = now
	var at time.Time
	var size int64
	if info, err := os.Stat(u.file); err == nil {
		at, size = info.ModTime(), info.Size()
	}
	if at.Equal(u.changed) && size == u.size {
		return false
	}
	u.changed, u.size = at, size
	was := u.found
	u.found = readResolvConf(u.file)
	return was != nil && !slices.Equal(was, u.found)
}

func (u *upstreams) answered(a netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.good = a
}

// readResolvConf returns the name servers of a file as resolv.conf(5) describes it.
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

// ask returns what the first of some servers that has an answer says to the
// question of q.
func (u *upstreams) ask(ctx context.Context, q *dns.Msg, servers []netip.AddrPort) (*dns.Msg, error) {
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	var unwilling *dns.Msg
	var failed error
	for _, server := range servers {
		m, err := attempt(ctx, q, server)
		switch {
		case err != nil:
			failed = fmt.Errorf("ask %v: %w", server, err)
		case m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused || m.Rcode == dns.RcodeNotImplemented:
			unwilling = m
		default:
			u.answered(server)
			return m, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if unwilling != nil {
		return unwilling, nil
	}
	return nil, failed
}

// attempt asks one server: by UDP, and by TCP if the answer is too long; with
// EDNS, and without if the server does not know it (RFC 6891, section 7).
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

// queryFor returns our own query for the question of q. Whoever would forge an
// answer has to guess its random id and the port that the kernel picks.
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

// exchange sends a query and waits for the answer to it. What else arrives is
// passed over.
func exchange(ctx context.Context, network string, query *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, server.String())
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
	stream := network == "tcp"
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
			return nil, errors.New("the answer is to another question")
		}
	}
}

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

// answers reports whether m is an answer to a query.
func answers(m, query *dns.Msg) bool {
	if !m.Response || m.Id != query.Id || m.Opcode != query.Opcode || len(m.Question) != 1 {
		// Servers that cannot read a query may leave the question out.
		return m.Response && m.Id == query.Id && m.Rcode == dns.RcodeFormatError && len(m.Question) == 0
	}
	a, q := m.Question[0], query.Question[0]
	return a.Qtype == q.Qtype && a.Qclass == q.Qclass && strings.EqualFold(a.Name, q.Name)
}
