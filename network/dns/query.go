package dns

import (
	"context"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// screen returns an empty reply to q. It is final, with an error code, if the server must
// not answer q.
func screen(q *dns.Msg, client netip.Addr, z zone) (r *dns.Msg, final bool) {
	r = new(dns.Msg).SetReply(q)
	r.RecursionAvailable = true
	r.CheckingDisabled = q.CheckingDisabled
	switch o := q.IsEdns0(); {
	case !z.allows(client):
		r.Rcode = dns.RcodeRefused
	case q.Opcode != dns.OpcodeQuery:
		r.Opcode, r.Rcode = q.Opcode, dns.RcodeNotImplemented
	case len(q.Question) != 1 || len(q.Answer) > 0 || len(q.Ns) > 0 || q.Truncated:
		r.Rcode = dns.RcodeFormatError
	case o != nil && o.Version() != 0:
		r.Rcode = dns.RcodeBadVers
	case q.Question[0].Qclass != dns.ClassINET:
		r.Rcode = dns.RcodeRefused
	case q.Question[0].Qtype == dns.TypeOPT || q.Question[0].Qtype >= 128 && q.Question[0].Qtype <= 255:
		r.Rcode = dns.RcodeRefused // transfers, ANY and other query-only types (RFC 6895, section 3.1)
	default:
		return r, false
	}
	return r, true
}

// answerLocally fills in r, the reply to q, from the zone or the cache. It is not done if the
// query must be forwarded.
func (s *Server) answerLocally(ctx context.Context, z zone, q, r *dns.Msg) (done bool) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	ours, err := z.answer(ctx, s.directory, r)
	switch {
	case err != nil:
		if s.ctx.Err() == nil {
			s.log.Warn("cannot look up a name", "err", err)
		}
		r.Answer, r.Ns, r.Rcode = nil, nil, dns.RcodeServerFailure
		return true
	case ours:
		return true
	case !q.RecursionDesired:
		r.Rcode = dns.RcodeRefused
		return true
	}
	if m := s.cache.get(keyOf(q), time.Now()); m != nil {
		copyAnswer(r, m)
		return true
	}
	return false
}

// answerRemotely fills in r, the reply to q, from an upstream server.
func (s *Server) answerRemotely(ctx context.Context, z zone, q, r *dns.Msg) {
	servers, changed := s.upstreams.list(time.Now(), z.record.Gateway, z.record.GatewayIPv6())
	if changed {
		s.cache.clear()
	}
	m, err := s.upstreams.query(ctx, q, servers)
	if err != nil {
		if s.ctx.Err() == nil {
			s.log.Warn("the resolvers of the host do not answer", "err", err)
		}
		r.Rcode = dns.RcodeServerFailure
		return
	}
	m.Extra = withoutOPT(m.Extra)
	s.cache.put(keyOf(q), m, time.Now())
	copyAnswer(r, m)
}

// copyAnswer copies result and records of m into r.
func copyAnswer(r, m *dns.Msg) {
	r.Rcode = m.Rcode
	r.AuthenticatedData = m.AuthenticatedData
	r.Answer, r.Ns, r.Extra = m.Answer, m.Ns, m.Extra
}

func withoutOPT(records []dns.RR) []dns.RR {
	var rest []dns.RR
	for _, rr := range records {
		if rr.Header().Rrtype != dns.TypeOPT {
			rest = append(rest, rr)
		}
	}
	return rest
}

// pack packs r, the reply to q: with EDNS if q has it, and truncated to the size that the
// client accepts.
func pack(r, q *dns.Msg, stream bool) ([]byte, error) {
	size := dns.MinMsgSize
	if o := q.IsEdns0(); o != nil {
		size = min(max(size, int(o.UDPSize())), udpSize)
		r.SetEdns0(udpSize, o.Do())
	} else if r.Rcode > 0xf { // such a code needs EDNS
		r.Rcode = dns.RcodeServerFailure
	}
	if stream {
		size = dns.MaxMsgSize
	}
	r.Compress = true
	r.Truncate(size)
	return r.Pack()
}

// formatError returns the reply to a message of which only the header can be parsed. It
// returns nil if the message must not be answered.
func formatError(b []byte) []byte {
	const header, response = 12, 0x80
	if len(b) < header || b[2]&response != 0 {
		return nil
	}
	r := make([]byte, header)
	copy(r, b[:2])
	r[2] = response | b[2]&0x79 // opcode and RD as received
	r[3] = dns.RcodeFormatError
	return r
}
