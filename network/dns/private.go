package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// privateRanges are the addresses whose reverse names only a local server knows (RFC 6303,
// section 4; RFC 7793). A public resolver must not see them.
var privateRanges = parsePrefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.2.0/24", "192.168.0.0/16", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32",
	"::/128", "::1/128", "fd00::/8", "fe80::/10", "2001:db8::/32",
)

func parsePrefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

// answerPrivate fills in r, the reply to q, for a name that must not be sent to the resolvers
// of the host: one that has a meaning on this network only. It reports whether name is such
// a name.
func answerPrivate(z zone, r *dns.Msg, q dns.Question, name string) bool {
	if name == "localhost." || dns.IsSubDomain("localhost.", name) {
		answerLoopback(z, r, q)
		return true
	}
	if dns.CountLabel(name) == 1 && !ofTopLevel(q.Qtype) {
		r.Authoritative = true
		if z.domain != "" && dns.IsSubDomain(name, z.domain) { // there are names below it
			r.Ns = append(r.Ns, z.soa(name))
		} else {
			noSuchName(r, z.soa("."))
		}
		return true
	}
	prefix, ok := reversePrefix(name)
	if !ok {
		return false
	}
	for _, p := range privateRanges {
		if prefix.Bits() < p.Bits() || !p.Overlaps(prefix) {
			continue
		}
		r.Authoritative = true
		soa := z.soa(reverseName(wholeLabels(p, prefix.Addr())))
		switch {
		case name != soa.Hdr.Name && !z.isBelow(name):
			noSuchName(r, soa)
		case name == soa.Hdr.Name && q.Qtype == dns.TypeSOA:
			r.Answer = append(r.Answer, soa)
		default:
			r.Ns = append(r.Ns, soa)
		}
		return true
	}
	return false
}

// isBelow reports whether a reverse name of the network is below name.
func (z zone) isBelow(name string) bool {
	_, prefix, ok := parseReverse(name)
	return ok && (prefix.Contains(z.record.Subnet.Addr()) || prefix.Contains(z.record.IPv6.Addr()))
}

// wholeLabels returns the part of a prefix around an address that has a name in the reverse
// tree.
func wholeLabels(p netip.Prefix, a netip.Addr) netip.Prefix {
	bits := 8
	if a.Is6() {
		bits = 4
	}
	return netip.PrefixFrom(a, (p.Bits()+bits-1)/bits*bits).Masked()
}

// ofTopLevel reports whether a query of a type for a single label is about a top-level domain.
// Resolvers in guests that validate DNSSEC send such queries.
func ofTopLevel(qtype uint16) bool {
	switch qtype {
	case dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeDNSKEY, dns.TypeNSEC, dns.TypeRRSIG:
		return true
	}
	return false
}

// answerLoopback answers for localhost (RFC 6761, section 6.3).
func answerLoopback(z zone, r *dns.Msg, q dns.Question) {
	r.Authoritative = true
	switch q.Qtype {
	case dns.TypeA:
		a := &dns.A{Hdr: header(q.Name, dns.TypeA, positiveTTL), A: []byte{127, 0, 0, 1}}
		r.Answer = append(r.Answer, a)
	case dns.TypeAAAA:
		a := &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA, positiveTTL), AAAA: netip.IPv6Loopback().AsSlice()}
		r.Answer = append(r.Answer, a)
	default:
		r.Ns = append(r.Ns, z.soa("localhost."))
	}
}

// reversePrefix returns the prefix that a name in a reverse tree stands for. It ignores labels
// that are no part of an address, as in names of service discovery. It is not ok for any other
// name.
func reversePrefix(name string) (netip.Prefix, bool) {
	if !strings.HasSuffix(name, ".arpa.") {
		return netip.Prefix{}, false
	}
	for name != "" {
		if _, p, ok := parseReverse(name); ok {
			return p, true
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return netip.Prefix{}, false
}
