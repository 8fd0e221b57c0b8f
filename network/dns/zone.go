package dns

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"vmand/vm"
)

const (
	// gatewayName is the name of the host in a network's domain. A VM cannot have it: the
	// names of VMs have no underscore.
	gatewayName = "_gateway"
	positiveTTL = 30 // seconds: an address may go to another VM
	negativeTTL = 5  // seconds: a VM of the name may be created at any time
)

// A zone answers for the names and addresses of a network.
type zone struct {
	record     vm.Network
	domain     string // in lower case, with a final dot; empty for none
	records    records
	forwarders []forwarder
	// view counts the changes of the forwarders. Answers of servers in the cache belong to one
	// view: other servers may answer differently.
	view int
}

// newZone returns the zone of a network. old is the zone before the change of the record: its
// forwarders, which know the servers that answer, stay if they are the same.
func newZone(nw vm.Network, old zone) zone {
	z := zone{record: nw, records: newRecords(nw), forwarders: old.forwarders, view: old.view}
	if nw.Domain != "" {
		z.domain = dns.CanonicalName(nw.Domain)
	}
	same := slices.EqualFunc(nw.DNSForwarders, old.record.DNSForwarders, func(a, b vm.DNSForwarder) bool {
		return a.Domain == b.Domain && slices.Equal(a.Servers, b.Servers)
	})
	if !same {
		z.forwarders, z.view = newForwarders(nw), old.view+1
	}
	return z
}

// allows reports whether a client may send queries: its address must be one of the network
// or link-local.
func (z zone) allows(client netip.Addr) bool {
	return z.record.Subnet.Contains(client) || z.record.IPv6.Contains(client) ||
		(client.Is6() && client.IsLinkLocalUnicast())
}

// answer adds the answer to q, a question of class IN, to r. It is not ours if the zone is not
// responsible for the name. If the name is an alias, answer returns the name that it leads to,
// for which the same question must be answered.
//
// The records of the network come first, then the longest of the domains that the network and
// its forwarders have, and then names with a meaning on this network only.
func (z zone) answer(ctx context.Context, d Directory, r *dns.Msg, q dns.Question) (ours bool, target string, err error) {
	name := dns.CanonicalName(q.Name)
	inDomain := z.domain != "" && dns.IsSubDomain(z.domain, name)
	if set := z.records.sets[name]; set != nil && (name != z.domain || !ofApex(q.Qtype)) {
		return true, answerRecords(r, q, set, z.soaFor(name)), nil
	}
	f := z.forwarder(name)
	if inDomain && (f == nil || len(f.domain) < len(z.domain)) {
		target, err := z.answerName(ctx, d, r, q, name)
		return true, target, err
	}
	if !inDomain {
		if set := z.records.wildcard(name); set != nil {
			return true, answerRecords(r, q, set, z.soaFor(name)), nil
		}
	}
	if ip, prefix, ok := parseReverse(name); ok {
		for _, p := range []netip.Prefix{z.record.Subnet, z.record.IPv6} {
			if p.IsValid() && prefix.Bits() >= p.Bits() && p.Overlaps(prefix) && (f == nil || !f.isWithin(p)) {
				return true, "", z.answerReverse(ctx, d, r, q, reverseQuery{ip, prefix, p})
			}
		}
	}
	if f != nil {
		return false, "", nil
	}
	return answerPrivate(z, r, q, name), "", nil
}

// ofApex reports whether the zone itself has the records of a type for its domain.
func ofApex(qtype uint16) bool { return qtype == dns.TypeSOA || qtype == dns.TypeNS }

// soaFor returns the SOA record for negative answers about a name with records.
func (z zone) soaFor(name string) *dns.SOA {
	if z.domain != "" && dns.IsSubDomain(z.domain, name) {
		return z.soa(z.domain)
	}
	return z.soa(name)
}

// answerName answers for a name in the domain that has no records of its own. It returns the
// name that an alias leads to.
func (z zone) answerName(
	ctx context.Context, d Directory, r *dns.Msg, q dns.Question, name string,
) (target string, err error) {
	r.Authoritative = true
	soa := z.soa(z.domain)
	if name == z.domain {
		switch q.Qtype {
		case dns.TypeSOA:
			r.Answer = append(r.Answer, soa)
		case dns.TypeNS:
			r.Answer = append(r.Answer, &dns.NS{Hdr: header(q.Name, dns.TypeNS, positiveTTL), Ns: soa.Ns})
		default:
			r.Ns = append(r.Ns, soa)
		}
		return "", nil
	}
	label := strings.TrimSuffix(name, "."+z.domain)
	ip4, ip6, err := z.addressesOf(ctx, d, label)
	switch {
	case errors.Is(err, vm.ErrNotFound):
		if z.records.nodes[name] { // there are names below it
			r.Ns = append(r.Ns, soa)
		} else if set := z.records.wildcard(name); set != nil {
			return answerRecords(r, q, set, soa), nil
		} else {
			noSuchName(r, soa)
		}
		return "", nil
	case err != nil:
		return "", err
	case q.Qtype == dns.TypeA && ip4.Is4():
		r.Answer = append(r.Answer, &dns.A{Hdr: header(q.Name, dns.TypeA, positiveTTL), A: ip4.AsSlice()})
	case q.Qtype == dns.TypeAAAA && ip6.Is6():
		r.Answer = append(r.Answer, &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA, positiveTTL), AAAA: ip6.AsSlice()})
	default:
		r.Ns = append(r.Ns, soa)
	}
	return "", nil
}

// addressesOf returns the addresses of the host or the VM with a name in the domain, or an
// error of class [vm.ErrNotFound].
func (z zone) addressesOf(ctx context.Context, d Directory, label string) (ip4, ip6 netip.Addr, err error) {
	switch {
	case label == gatewayName:
		return z.record.Gateway, z.record.GatewayIPv6(), nil
	case strings.ContainsAny(label, `.\`): // the name of a VM is one label without escapes
		return ip4, ip6, vm.ErrNotFound
	}
	l, err := d.LeaseByName(ctx, z.record.Name, label)
	return l.IP, l.IPv6, err
}

// A reverseQuery is a name in the reverse tree of one of the network's prefixes.
type reverseQuery struct {
	ip     netip.Addr
	named  netip.Prefix // the prefix that the name stands for; a single address if it is complete
	subnet netip.Prefix // the network's prefix
}

// answerReverse answers for a name in a reverse tree.
func (z zone) answerReverse(
	ctx context.Context, d Directory, r *dns.Msg, q dns.Question, reverse reverseQuery,
) error {
	r.Authoritative = true
	soa := z.soa(reverseName(reverse.subnet))
	if !reverse.named.IsSingleIP() {
		if reverse.named == reverse.subnet && q.Qtype == dns.TypeSOA {
			r.Answer = append(r.Answer, soa)
			return nil
		}
		r.Ns = append(r.Ns, soa)
		return nil
	}
	name := ""
	if reverse.ip == z.record.Gateway || reverse.ip == z.record.GatewayIPv6() {
		name = gatewayName
	} else {
		l, err := d.LeaseByIP(ctx, z.record.Name, reverse.ip)
		if err != nil && !errors.Is(err, vm.ErrNotFound) {
			return err
		}
		if err == nil {
			name = l.Hostname
		}
	}
	switch {
	case name == "" || z.domain == "":
		noSuchName(r, soa)
	case q.Qtype == dns.TypePTR:
		ptr := &dns.PTR{Hdr: header(q.Name, dns.TypePTR, positiveTTL), Ptr: name + "." + z.domain}
		r.Answer = append(r.Answer, ptr)
	default:
		r.Ns = append(r.Ns, soa)
	}
	return nil
}

// noSuchName makes r a name error. The SOA record limits how long clients cache it (RFC
// 2308, section 3).
func noSuchName(r *dns.Msg, soa *dns.SOA) {
	r.Rcode = dns.RcodeNameError
	r.Ns = append(r.Ns, soa)
}

func (z zone) soa(apex string) *dns.SOA {
	host := apex
	if z.domain != "" {
		host = gatewayName + "." + z.domain
	}
	return &dns.SOA{
		Hdr:     header(apex, dns.TypeSOA, negativeTTL),
		Ns:      host,
		Mbox:    "hostmaster." + strings.TrimPrefix(host, gatewayName+"."),
		Serial:  1,
		Refresh: 3600,
		Retry:   600,
		Expire:  86400,
		Minttl:  negativeTTL,
	}
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// parseReverse returns the address that a name in in-addr.arpa or ip6.arpa stands for (RFC
// 1035, section 3.5; RFC 3596, section 2.5), and the prefix of its labels: an incomplete
// name stands for a shorter prefix. It is not ok for any other name.
func parseReverse(name string) (netip.Addr, netip.Prefix, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return parseLabels(rest, make([]byte, 4), 8, 10)
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		return parseLabels(rest, make([]byte, 16), 4, 16)
	}
	return netip.Addr{}, netip.Prefix{}, false
}

// parseLabels stores the numbers of labels in an address, the last label first. Each label is
// a number with a base, of a number of bits.
func parseLabels(labels string, address []byte, bits, base int) (netip.Addr, netip.Prefix, bool) {
	parts := strings.Split(labels, ".")
	if len(parts)*bits > len(address)*8 {
		return netip.Addr{}, netip.Prefix{}, false
	}
	for i := range parts {
		part := parts[len(parts)-1-i]
		v, err := strconv.ParseUint(part, base, bits)
		if err != nil || strconv.FormatUint(v, base) != part {
			return netip.Addr{}, netip.Prefix{}, false
		}
		address[i*bits/8] |= byte(v << (8 - bits - i*bits%8))
	}
	ip, _ := netip.AddrFromSlice(address)
	return ip, netip.PrefixFrom(ip, len(parts)*bits), true
}

// reverseName returns the name of p in the reverse tree. If the length of p is not one of
// whole labels, the name is that of the next shorter prefix which has one.
func reverseName(p netip.Prefix) string {
	name, err := dns.ReverseAddr(p.Addr().String())
	if err != nil {
		return "."
	}
	drop, bits := 4, 8
	if p.Addr().Is6() {
		drop, bits = 32, 4
	}
	for range drop - p.Bits()/bits {
		_, name, _ = strings.Cut(name, ".")
	}
	return name
}
