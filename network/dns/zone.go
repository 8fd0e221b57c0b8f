package dns

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"vmand/vm"
)

const (
	// gatewayName is what the host is called in a network's domain: with the
	// underscore it is no name that a VM can have.
	gatewayName = "_gateway"
	positiveTTL = 30 // seconds; an address may go to another VM
	negativeTTL = 5  // seconds; a VM that somebody waits for may be made at any time
)

// A zone is what a network answers for by itself.
type zone struct {
	network vm.Network
	domain  string // in lower case, with a dot at the end; empty for none
}

func newZone(n vm.Network) zone {
	z := zone{network: n}
	if n.Domain != "" {
		z.domain = dns.CanonicalName(n.Domain)
	}
	return z
}

// allows reports whether a client may ask: one of the network, or of its link.
func (z zone) allows(client netip.Addr) bool {
	return z.network.Subnet.Contains(client) || z.network.IPv6.Contains(client) ||
		(client.Is6() && client.IsLinkLocalUnicast())
}

// answer fills in r, the reply to a question of class IN, if the zone is
// responsible for its name; not ours otherwise.
func (z zone) answer(ctx context.Context, d Directory, r *dns.Msg) (ours bool, err error) {
	q := r.Question[0]
	name := dns.CanonicalName(q.Name)
	if z.domain != "" && dns.IsSubDomain(z.domain, name) {
		return true, z.forward(ctx, d, r, q, name)
	}
	if ip, prefix, ok := reverse(name); ok {
		for _, p := range []netip.Prefix{z.network.Subnet, z.network.IPv6} {
			if p.IsValid() && prefix.Bits() >= p.Bits() && p.Overlaps(prefix) {
				return true, z.backward(ctx, d, r, q, ip, prefix, p)
			}
		}
	}
	return false, nil
}

// forward answers for a name in the domain.
func (z zone) forward(ctx context.Context, d Directory, r *dns.Msg, q dns.Question, name string) error {
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
		return nil
	}
	label := strings.TrimSuffix(name, "."+z.domain)
	var ip4, ip6 netip.Addr
	switch {
	case label == gatewayName:
		ip4, ip6 = z.network.Gateway, z.network.GatewayIPv6()
	case strings.ContainsAny(label, `.\`): // names have one label, without escapes
		return missing(r, soa)
	default:
		l, err := d.LeaseByName(ctx, z.network.Name, label)
		if errors.Is(err, vm.ErrNotFound) {
			return missing(r, soa)
		}
		if err != nil {
			return err
		}
		ip4, ip6 = l.IP, l.IPv6
	}
	switch {
	case q.Qtype == dns.TypeA && ip4.Is4():
		r.Answer = append(r.Answer, &dns.A{Hdr: header(q.Name, dns.TypeA, positiveTTL), A: ip4.AsSlice()})
	case q.Qtype == dns.TypeAAAA && ip6.Is6():
		r.Answer = append(r.Answer, &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA, positiveTTL), AAAA: ip6.AsSlice()})
	default:
		r.Ns = append(r.Ns, soa)
	}
	return nil
}

// backward answers for a name in the reverse tree of p, one of the network's
// prefixes: of an address, or of the part of p that prefix is.
func (z zone) backward(ctx context.Context, d Directory, r *dns.Msg, q dns.Question, ip netip.Addr, prefix, p netip.Prefix) error {
	r.Authoritative = true
	soa := z.soa(reverseName(p))
	if !prefix.IsSingleIP() {
		if prefix == p && q.Qtype == dns.TypeSOA {
			r.Answer = append(r.Answer, soa)
			return nil
		}
		r.Ns = append(r.Ns, soa)
		return nil
	}
	name := ""
	if ip == z.network.Gateway || ip == z.network.GatewayIPv6() {
		name = gatewayName
	} else {
		l, err := d.LeaseByIP(ctx, z.network.Name, ip)
		if err != nil && !errors.Is(err, vm.ErrNotFound) {
			return err
		}
		if err == nil {
			name = l.Hostname
		}
	}
	switch {
	case name == "" || z.domain == "":
		return missing(r, soa)
	case q.Qtype == dns.TypePTR:
		r.Answer = append(r.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR, positiveTTL), Ptr: name + "." + z.domain})
	default:
		r.Ns = append(r.Ns, soa)
	}
	return nil
}

// missing says that there is no such name, and for how long that may be believed
// (RFC 2308, section 3).
func missing(r *dns.Msg, soa *dns.SOA) error {
	r.Rcode = dns.RcodeNameError
	r.Ns = append(r.Ns, soa)
	return nil
}

func (z zone) soa(apex string) *dns.SOA {
	host := apex
	if z.domain != "" {
		host = gatewayName + "." + z.domain
	}
	return &dns.SOA{
		Hdr: header(apex, dns.TypeSOA, negativeTTL), Ns: host, Mbox: "hostmaster." + strings.TrimPrefix(host, gatewayName+"."),
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// reverse returns the address that a name in in-addr.arpa or ip6.arpa stands for
// (RFC 1035, section 3.5; RFC 3596, section 2.5), and the prefix, which is
// shorter for a name that stands for a part of one. Not ok for any other name.
func reverse(name string) (netip.Addr, netip.Prefix, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return reverseOf(rest, make([]byte, 4), 8, 10)
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		return reverseOf(rest, make([]byte, 16), 4, 16)
	}
	return netip.Addr{}, netip.Prefix{}, false
}

// reverseOf puts labels, the last first, into an address: each is a number of so
// many bits to a base.
func reverseOf(labels string, address []byte, bits, base int) (netip.Addr, netip.Prefix, bool) {
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

// reverseName returns the name in the reverse tree of the shortest prefix with
// such a name that p is in: itself, if its length is that of whole labels.
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
