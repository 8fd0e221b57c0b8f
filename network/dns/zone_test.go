package dns

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"vmand/network/guard/linktest"
	"vmand/vm"
)

var testNetwork = vm.Network{
	Name: "net0", Mode: vm.NetworkNAT, Bridge: linktest.HostInterface,
	Subnet: netip.MustParsePrefix("192.168.77.0/24"), Gateway: netip.MustParseAddr("192.168.77.1"),
	IPv6: netip.MustParsePrefix("fd00:77::/64"), Domain: "vm.internal",
}

// A directory has one lease, and one name with a failing lookup.
type directory struct{}

var testLease = vm.Lease{
	Network: "net0", Hostname: "web",
	IP: netip.MustParseAddr("192.168.77.9"), IPv6: netip.MustParseAddr("fd00:77::9"),
}

func (directory) LeaseByName(_ context.Context, networkName, name string) (vm.Lease, error) {
	switch {
	case networkName == "net0" && name == "web":
		return testLease, nil
	case name == "broken":
		return vm.Lease{}, errors.New("the disk is full")
	}
	return vm.Lease{}, vm.NotFound("lease", name)
}

func (directory) LeaseByIP(_ context.Context, networkName string, ip netip.Addr) (vm.Lease, error) {
	if networkName == "net0" && (ip == testLease.IP || ip == testLease.IPv6) {
		return testLease, nil
	}
	return vm.Lease{}, vm.NotFound("lease", ip.String())
}

func question(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

func TestAZoneAnswersForItsNamesOnly(t *testing.T) {
	const half6 = "0.0.0.0.0.0.0.0.7.7.0.0.0.0.d.f.ip6.arpa." // of the /64
	for _, c := range []struct {
		name  string
		qtype uint16
		ours  bool
		rcode int
		want  string // the end of the answer; empty: there is none
	}{
		{"web.vm.internal.", dns.TypeA, true, dns.RcodeSuccess, "192.168.77.9"},
		{"WEB.vm.Internal.", dns.TypeA, true, dns.RcodeSuccess, "192.168.77.9"},
		{"web.vm.internal.", dns.TypeAAAA, true, dns.RcodeSuccess, "fd00:77::9"},
		{"web.vm.internal.", dns.TypeMX, true, dns.RcodeSuccess, ""},
		{"nobody.vm.internal.", dns.TypeA, true, dns.RcodeNameError, ""},
		{"a.web.vm.internal.", dns.TypeA, true, dns.RcodeNameError, ""},
		{`we\.b.vm.internal.`, dns.TypeA, true, dns.RcodeNameError, ""},
		{"_gateway.vm.internal.", dns.TypeA, true, dns.RcodeSuccess, "192.168.77.1"},
		{"_gateway.vm.internal.", dns.TypeAAAA, true, dns.RcodeSuccess, "fd00:77::1"},
		{"vm.internal.", dns.TypeA, true, dns.RcodeSuccess, ""},
		{"vm.internal.", dns.TypeNS, true, dns.RcodeSuccess, "_gateway.vm.internal."},
		{"vm.internal.", dns.TypeSOA, true, dns.RcodeSuccess, "5"},
		{"xvm.internal.", dns.TypeA, false, 0, ""},
		{"internal.", dns.TypeA, true, dns.RcodeSuccess, ""},
		{"printer.", dns.TypeA, true, dns.RcodeNameError, ""},
		{"Printer.", dns.TypeAAAA, true, dns.RcodeNameError, ""},
		{"printer.", dns.TypeTXT, true, dns.RcodeNameError, ""},
		{"com.", dns.TypeNS, false, 0, ""},
		{"com.", dns.TypeDS, false, 0, ""},
		{"localhost.", dns.TypeA, true, dns.RcodeSuccess, "127.0.0.1"},
		{"localhost.", dns.TypeAAAA, true, dns.RcodeSuccess, "::1"},
		{"a.localhost.", dns.TypeMX, true, dns.RcodeSuccess, ""},
		{"example.com.", dns.TypeA, false, 0, ""},
		{".", dns.TypeNS, false, 0, ""},
		{"9.77.168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeSuccess, "web.vm.internal."},
		{"1.77.168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeSuccess, "_gateway.vm.internal."},
		{"9.77.168.192.in-addr.arpa.", dns.TypeA, true, dns.RcodeSuccess, ""},
		{"10.77.168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, ""},
		{"77.168.192.in-addr.arpa.", dns.TypeSOA, true, dns.RcodeSuccess, "5"},
		{"9.78.168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, ""},
		{"168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeSuccess, ""},
		{"168.192.in-addr.arpa.", dns.TypeSOA, true, dns.RcodeSuccess, "5"},
		{"192.in-addr.arpa.", dns.TypePTR, false, 0, ""},
		{"1.2.31.172.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, ""},
		{"1.2.32.172.in-addr.arpa.", dns.TypePTR, false, 0, ""},
		{"1.0.0.10.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, ""},
		{"1.1.1.1.in-addr.arpa.", dns.TypePTR, false, 0, ""},
		{"b._dns-sd._udp.0.1.168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, ""},
		{"8.e.f.ip6.arpa.", dns.TypePTR, true, dns.RcodeSuccess, ""},
		{"1.0.0.2.ip6.arpa.", dns.TypePTR, false, 0, ""},
		{"d.f.ip6.arpa.", dns.TypeSOA, true, dns.RcodeSuccess, "5"},
		{"009.77.168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, ""},
		{"256.77.168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, ""},
		{"1.9.77.168.192.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, ""},
		{"9.0.0.0." + half6, dns.TypePTR, true, dns.RcodeSuccess, ""},
		{half6, dns.TypeSOA, true, dns.RcodeSuccess, "5"},
		{half6[2:], dns.TypeSOA, true, dns.RcodeSuccess, ""},
	} {
		r := new(dns.Msg).SetReply(question(c.name, c.qtype))
		ours, _, err := newZone(testNetwork, zone{}).answer(t.Context(), directory{}, r, r.Question[0])
		if err != nil || ours != c.ours || r.Rcode != c.rcode {
			t.Errorf("%s %s: ours %v, rcode %d, error %v; want %v, %d",
				c.name, dns.TypeToString[c.qtype], ours, r.Rcode, err, c.ours, c.rcode)
			continue
		}
		switch {
		case !ours:
		case !r.Authoritative:
			t.Errorf("%s: not authoritative", c.name)
		case c.want == "" && (len(r.Answer) > 0 || len(r.Ns) != 1 || r.Ns[0].Header().Rrtype != dns.TypeSOA):
			t.Errorf("%s %s: want only an SOA record, got %v", c.name, dns.TypeToString[c.qtype], r)
		case c.want != "" && (len(r.Answer) != 1 || !strings.HasSuffix(r.Answer[0].String(), c.want)):
			t.Errorf("%s %s: %v, want %s", c.name, dns.TypeToString[c.qtype], r.Answer, c.want)
		}
		if _, err := r.Pack(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestReverseNamesOfEveryPrefixLength(t *testing.T) {
	for prefix, want := range map[string]string{
		"192.168.77.0/24": "77.168.192.in-addr.arpa.", "192.168.76.0/22": "168.192.in-addr.arpa.",
		"192.168.77.128/25": "77.168.192.in-addr.arpa.", "10.0.0.0/8": "10.in-addr.arpa.",
		"fd00:77::/64": "0.0.0.0.0.0.0.0.7.7.0.0.0.0.d.f.ip6.arpa.",
	} {
		if got := reverseName(netip.MustParsePrefix(prefix)); got != want {
			t.Errorf("%s: %s, want %s", prefix, got, want)
		}
	}
	ip := netip.MustParseAddr("fd00:77::9")
	name, err := dns.ReverseAddr(ip.String())
	if err != nil {
		t.Fatal(err)
	}
	r := new(dns.Msg).SetReply(question(name, dns.TypePTR))
	_, _, err = newZone(testNetwork, zone{}).answer(t.Context(), directory{}, r, r.Question[0])
	if err != nil || len(r.Answer) != 1 || !strings.HasSuffix(r.Answer[0].String(), "web.vm.internal.") {
		t.Errorf("%s: %v, %v", name, r, err)
	}
}

func TestScreenRejectsInvalidAndForeignQueries(t *testing.T) {
	inside := netip.MustParseAddr("192.168.77.9")
	with := func(f func(*dns.Msg)) *dns.Msg {
		q := question("example.com.", dns.TypeA)
		f(q)
		return q
	}
	laterEDNS := func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }
	addAnswer := func(q *dns.Msg) { q.Answer = append(q.Answer, &dns.A{Hdr: header(".", dns.TypeA, 0)}) }
	const formErr = dns.RcodeFormatError
	for name, c := range map[string]struct {
		q      *dns.Msg
		client string
		want   int // -1: the query is accepted
	}{
		"from the subnet":         {question("example.com.", dns.TypeA), "192.168.77.9", -1},
		"from the prefix":         {question("example.com.", dns.TypeA), "fd00:77::9", -1},
		"from the link":           {question("example.com.", dns.TypeA), "fe80::9", -1},
		"from outside":            {question("example.com.", dns.TypeA), "192.168.78.9", dns.RcodeRefused},
		"from outside, IPv6":      {question("example.com.", dns.TypeA), "fd00:78::9", dns.RcodeRefused},
		"a transfer":              {question("vm.internal.", dns.TypeAXFR), "", dns.RcodeRefused},
		"an incremental transfer": {question("vm.internal.", dns.TypeIXFR), "", dns.RcodeRefused},
		"any type":                {question("vm.internal.", dns.TypeANY), "", dns.RcodeRefused},
		"two questions":           {with(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), "", formErr},
		"no question":             {with(func(q *dns.Msg) { q.Question = nil }), "", formErr},
		"another class":           {with(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), "", dns.RcodeRefused},
		"an update":               {with(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), "", dns.RcodeNotImplemented},
		"a later EDNS":            {with(laterEDNS), "", dns.RcodeBadVers},
		"with an answer":          {with(addAnswer), "", formErr},
		"a recent type":           {question("example.com.", dns.TypeHTTPS), "", -1},
	} {
		client := inside
		if c.client != "" {
			client = netip.MustParseAddr(c.client)
		}
		r, final := screen(c.q, client, newZone(testNetwork, zone{}))
		if final != (c.want >= 0) || (final && r.Rcode != c.want) {
			t.Errorf("%s: final %v, rcode %s", name, final, dns.RcodeToString[r.Rcode])
		}
		if b, err := pack(r, c.q, false); err != nil || len(b) > 512 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

func record(t testing.TB, s string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

func TestTheCacheKeepsAnswersForTheirTTL(t *testing.T) {
	soa := "example.com. 3600 IN SOA a. b. 1 2 3 4 60"
	for name, c := range map[string]struct {
		rcode       int
		answer, ns  string
		truncated   bool
		wantSeconds int
	}{
		"an answer":                 {answer: "x. 300 IN A 1.2.3.4", wantSeconds: 300},
		"an answer with a long TTL": {answer: "x. 300000 IN A 1.2.3.4", wantSeconds: 3600},
		"an answer with TTL 0":      {answer: "x. 0 IN A 1.2.3.4"},
		"a truncated answer":        {answer: "x. 300 IN A 1.2.3.4", truncated: true},
		"no such name":              {rcode: dns.RcodeNameError, ns: soa, wantSeconds: 60},
		"no such data":              {ns: soa, wantSeconds: 60},
		"no such name, no SOA":      {rcode: dns.RcodeNameError},
		"a failure":                 {rcode: dns.RcodeServerFailure, ns: soa},
	} {
		m := question("x.", dns.TypeA)
		m.Rcode, m.Truncated = c.rcode, c.truncated
		if c.answer != "" {
			m.Answer = []dns.RR{record(t, c.answer)}
		}
		if c.ns != "" {
			m.Ns = []dns.RR{record(t, c.ns)}
		}
		if got := lifetime(m); got != time.Duration(c.wantSeconds)*time.Second {
			t.Errorf("%s: %v, want %d s", name, got, c.wantSeconds)
		}
	}

	now := time.Now()
	c := newCache()
	m := question("x.", dns.TypeA)
	m.Answer = []dns.RR{record(t, "x. 300 IN A 1.2.3.4")}
	k := keyOf(m, 0)
	c.put(k, m, now)
	if got := c.get(k, now.Add(100*time.Second)); got == nil || got.Answer[0].Header().Ttl != 200 {
		t.Errorf("after 100 s: %v", got)
	}
	if got := c.get(k, now.Add(300*time.Second)); got != nil || len(c.entries) != 0 || c.bytes != 0 {
		t.Errorf("after 300 s: %v, %d entries, %d bytes", got, len(c.entries), c.bytes)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	fill := func(n int, text string) *cache {
		c := newCache()
		for i := range n {
			first, second := strings.Repeat("a", i%50+1), strings.Repeat("b", i/50%50+1)
			third := strings.Repeat("c", i/2500+1)
			m := question(first+"."+second+"."+third+".", dns.TypeTXT)
			m.Answer = []dns.RR{&dns.TXT{
				Hdr: header("x.", dns.TypeTXT, 300),
				Txt: []string{text, text, text, text, text, text, text, text},
			}}
			c.put(keyOf(m, 0), m, now)
		}
		return c
	}
	if c := fill(2*maxEntries, "x"); len(c.entries) != maxEntries || c.used.Len() != maxEntries {
		t.Errorf("%d entries, %d in the list, want %d", len(c.entries), c.used.Len(), maxEntries)
	}
	c := fill(2*maxEntries, strings.Repeat("x", 250))
	sum := 0
	for _, e := range c.entries {
		sum += e.Value.(*entry).size()
	}
	if c.bytes > maxCacheBytes || c.bytes != sum {
		t.Errorf("%d bytes, counted %d, want at most %d", c.bytes, sum, maxCacheBytes)
	}
}

func FuzzDNS(f *testing.F) {
	for _, q := range []*dns.Msg{
		question("web.vm.internal.", dns.TypeA),
		question("9.77.168.192.in-addr.arpa.", dns.TypePTR),
		question("vm.internal.", dns.TypeAXFR),
		question("example.com.", dns.TypeA).SetEdns0(4096, true),
	} {
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	z := newZone(testNetwork, zone{})
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if err := q.Unpack(b); err != nil {
			if r := formatError(b); r != nil && (len(r) != 12 || r[2]&0x80 == 0) {
				t.Fatalf("reply %x", r)
			}
			return
		}
		r, final := screen(q, testLease.IP, z)
		if !final {
			ours, _, err := z.answer(t.Context(), directory{}, r, r.Question[0])
			if err != nil {
				return // the lookup of one name fails
			}
			if !ours {
				if k := keyOf(q, 0); k.qtype != q.Question[0].Qtype {
					t.Fatal("the key has another type")
				}
				if _, err := queryFor(q).Pack(); err != nil {
					return // a name that cannot be packed again
				}
			}
		}
		answer, err := pack(r, q, false)
		if err != nil {
			return
		}
		if len(answer) > udpSize {
			t.Fatalf("a reply of %d bytes, want at most %d", len(answer), udpSize)
		}
		if err := new(dns.Msg).Unpack(answer); err != nil {
			t.Fatalf("the reply to %v cannot be parsed: %v", q, err)
		}
	})
}
