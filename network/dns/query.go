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

// maxAliases is the maximum number of aliases that lead from a name to its records.
const maxAliases = 8

// answerLocally fills in r, the reply to q, from the zone or the cache. If that is not enough, it
// returns the query that must be forwarded: q, or a query for the name that the aliases of q
// lead to. It returns nil if r is complete.
func (s *Server) answerLocally(ctx context.Context, z zone, q, r *dns.Msg) (forward *dns.Msg) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	question := q.Question[0]
	for range maxAliases + 1 {
		ours, target, err := z.answer(ctx, s.directory, r, question)
		switch {
		case err != nil:
			if s.ctx.Err() == nil {
				s.log.Warn("cannot look up a name", "err", err)
			}
			fail(r)
			return nil
		case ours && target == "":
			return nil
		case ours:
			question.Name = target
			continue
		case !q.RecursionDesired:
			if len(r.Answer) == 0 {
				r.Rcode = dns.RcodeRefused
			}
			return nil
		}
		forward := queryOf(q, question)
		if m := s.cache.get(keyOf(forward, z.view), time.Now()); m != nil {
			addAnswer(r, m)
			return nil
		}
		return forward
	}
	fail(r) // the aliases form a loop
	return nil
}

// fail makes r a reply to a query that the server could not answer.
func fail(r *dns.Msg) {
	r.Answer, r.Ns, r.Rcode = nil, nil, dns.RcodeServerFailure
}

// queryOf returns q with another question.
func queryOf(q *dns.Msg, question dns.Question) *dns.Msg {
	if q.Question[0] == question {
		return q
	}
	other := *q
	other.Question = []dns.Question{question}
	return &other
}

// answerRemotely adds the answer to q to r, from a server of the forwarder for its name or from
// a resolver of the host.
func (s *Server) answerRemotely(ctx context.Context, z zone, q, r *dns.Msg) {
	var servers []netip.AddrPort
	upstreams, silence := s.upstreams, "the resolvers of the host do not answer"
	if f := z.forwarder(dns.CanonicalName(q.Question[0].Name)); f != nil {
		upstreams, silence = f.servers, "the DNS servers of a forwarder do not answer"
	}
	servers, changed := upstreams.list(time.Now(), z.record.Gateway, z.record.GatewayIPv6())
	if changed {
		s.cache.clear()
	}
	m, err := upstreams.query(ctx, q, servers)
	if err != nil {
		if s.ctx.Err() == nil {
			s.log.Warn(silence, "err", err)
		}
		fail(r)
		return
	}
	m.Extra = withoutOPT(m.Extra)
	s.cache.put(keyOf(q, z.view), m, time.Now())
	addAnswer(r, m)
}

// addAnswer adds the records of m to r, which may have aliases that lead to the question of m,
// and gives r the result of m.
func addAnswer(r, m *dns.Msg) {
	r.Rcode = m.Rcode
	r.AuthenticatedData = m.AuthenticatedData && len(r.Answer) == 0
	r.Answer = append(r.Answer, m.Answer...)
	r.Ns, r.Extra = m.Ns, m.Extra
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
