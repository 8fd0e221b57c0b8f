package dns

import (
	"context"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// screen returns the reply to begin with, and whether it is the final one: to
// what is not to be answered.
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
		r.Rcode = dns.RcodeRefused // transfers, ANY and other types of queries alone (RFC 6895, section 3.1)
	default:
		return r, false
	}
	return r, true
}

// local fills in r, the reply to q, from what is known without asking others;
// not done if others must be asked.
func (s *Server) local(ctx context.Context, z zone, q, r *dns.Msg) (done bool) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	ours, err := z.answer(ctx, s.directory, r)
	switch {
	case err != nil:
		if s.ctx.Err() == nil {
			s.log.Warn("a name cannot be looked up", "err", err)
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
		adopt(r, m)
		return true
	}
	return false
}

// remote fills in r, the reply to q, from what others say.
func (s *Server) remote(ctx context.Context, z zone, q, r *dns.Msg) {
	servers, changed := s.upstreams.list(time.Now(), z.network.Gateway, z.network.GatewayIPv6())
	if changed {
		s.cache.clear()
	}
	m, err := s.upstreams.ask(ctx, q, servers)
	if err != nil {
		if s.ctx.Err() == nil {
			s.log.Warn("no resolver of the host answers", "err", err)
		}
		r.Rcode = dns.RcodeServerFailure
		return
	}
	m.Extra = withoutOPT(m.Extra)
	s.cache.put(keyOf(q), m, time.Now())
	adopt(r, m)
}

// adopt makes r say what m says.
func adopt(r, m *dns.Msg) {
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

// pack returns r as it goes to whoever sent q: with EDNS if q has it, and no
// longer than a client can take.
func pack(r, q *dns.Msg, stream bool) ([]byte, error) {
	size := dns.MinMsgSize
	if o := q.IsEdns0(); o != nil {
		size = min(max(size, int(o.UDPSize())), udpSize)
		r.SetEdns0(udpSize, o.Do())
	} else if r.Rcode > 0xf { // has no room without EDNS
		r.Rcode = dns.RcodeServerFailure
	}
	if stream {
		size = dns.MaxMsgSize
	}
	r.Compress = true
	r.Truncate(size)
	return r.Pack()
}

// unreadable returns the answer to a message that is no DNS message but for its
// header, or nil if there is nothing to answer.
func unreadable(b []byte) []byte {
	const header, response = 12, 0x80
	if len(b) < header || b[2]&response != 0 {
		return nil
	}
	r := make([]byte, header)
	copy(r, b[:2])
	r[2] = response | b[2]&0x79 // opcode and RD as they came
	r[3] = dns.RcodeFormatError
	return r
}
