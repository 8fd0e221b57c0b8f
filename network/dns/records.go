package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"vmand/vm"
)

// maxText is the maximum length in bytes of one string of a TXT record.
const maxText = 255

// records are the explicit records of a network. They never change.
type records struct {
	sets  map[string][]dns.RR // by owner, in lower case and with a final dot
	below map[string][]dns.RR // the sets of wildcards, by the name below which they stand for all names
	nodes map[string]bool     // the domain, the owners without wildcards, and the names above all owners
}

func newRecords(nw vm.Network) records {
	t := records{
		sets:  map[string][]dns.RR{},
		below: map[string][]dns.RR{},
		nodes: map[string]bool{dns.CanonicalName(nw.Domain): true},
	}
	for _, r := range nw.DNSRecords {
		rr := recordOf(nw, r)
		if rr == nil {
			continue // the check of the record does not admit it
		}
		owner := rr.Header().Name
		t.sets[owner] = append(t.sets[owner], rr)
		name, isWildcard := strings.CutPrefix(owner, "*.")
		if isWildcard {
			t.below[name] = t.sets[owner]
		}
		for name != "" {
			t.nodes[name] = true
			_, name, _ = strings.Cut(name, ".")
		}
	}
	return t
}

// recordOf returns the DNS form of a record, or nil if the record is not valid.
func recordOf(nw vm.Network, r vm.DNSRecord) dns.RR {
	h := header(dns.CanonicalName(nw.AbsoluteName(r.Name)), dns.StringToType[string(r.Type)], uint32(r.TTL))
	switch r.Type {
	case vm.RecordA, vm.RecordAAAA:
		a, err := netip.ParseAddr(r.Value)
		if err != nil || a.Is4() != (r.Type == vm.RecordA) {
			return nil
		}
		if a.Is4() {
			return &dns.A{Hdr: h, A: a.AsSlice()}
		}
		return &dns.AAAA{Hdr: h, AAAA: a.AsSlice()}
	case vm.RecordCNAME:
		return &dns.CNAME{Hdr: h, Target: nw.AbsoluteName(r.Value)}
	case vm.RecordPTR:
		return &dns.PTR{Hdr: h, Ptr: nw.AbsoluteName(r.Value)}
	case vm.RecordTXT:
		t := &dns.TXT{Hdr: h}
		for chunk := range slices.Chunk([]byte(r.Value), maxText) {
			t.Txt = append(t.Txt, strings.ReplaceAll(string(chunk), `\`, `\\`)) // as in a zone file
		}
		return t
	case vm.RecordSRV:
		if s, ok := vm.ParseSRV(r.Value); ok {
			target := s.Target
			if target != "." {
				target = nw.AbsoluteName(target)
			}
			return &dns.SRV{Hdr: h, Priority: s.Priority, Weight: s.Weight, Port: s.Port, Target: target}
		}
	}
	return nil
}

// wildcard returns the records of the wildcard that stands for a name, which does not exist
// itself (RFC 4592, section 3.3.1): that of the closest name above which exists. It is nil if
// there is none.
func (t records) wildcard(name string) []dns.RR {
	for name != "" && len(t.below) > 0 {
		_, name, _ = strings.Cut(name, ".")
		if set := t.below[name]; set != nil {
			return set
		}
		if t.nodes[name] {
			return nil
		}
	}
	return nil
}

// answerRecords adds the records of a set that answer q to r. If the set is an alias, it
// returns the name that the alias leads to.
func answerRecords(r *dns.Msg, q dns.Question, set []dns.RR, soa *dns.SOA) (target string) {
	r.Authoritative = true
	found := false
	for _, rr := range set {
		alias, isAlias := rr.(*dns.CNAME)
		if rr.Header().Rrtype != q.Qtype && !isAlias {
			continue
		}
		found = true
		answer := dns.Copy(rr)
		answer.Header().Name = q.Name
		r.Answer = append(r.Answer, answer)
		if isAlias && q.Qtype != dns.TypeCNAME {
			target = alias.Target
		}
	}
	if !found {
		r.Ns = append(r.Ns, soa)
	}
	return target
}

// A forwarder sends the queries for a domain to its servers.
type forwarder struct {
	domain  string // in lower case, with a final dot
	servers *upstreams
}

// newForwarders returns the forwarders of a network, those of the longest domains first.
func newForwarders(nw vm.Network) []forwarder {
	var all []forwarder
	for _, f := range nw.DNSForwarders {
		all = append(all, forwarder{dns.CanonicalName(f.Domain), &upstreams{fixed: f.Servers}})
	}
	slices.SortStableFunc(all, func(a, b forwarder) int { return len(b.domain) - len(a.domain) })
	return all
}

// forwarder returns the forwarder for a name, or nil if its queries go to the resolvers of the
// host.
func (z zone) forwarder(name string) *forwarder {
	for i := range z.forwarders {
		if dns.IsSubDomain(z.forwarders[i].domain, name) {
			return &z.forwarders[i]
		}
	}
	return nil
}

// isWithin reports whether the domain of f is in the reverse tree of a subnet of the network and
// smaller than it.
func (f *forwarder) isWithin(subnet netip.Prefix) bool {
	_, prefix, ok := parseReverse(f.domain)
	return ok && prefix.Bits() > subnet.Bits()
}
