package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"vmand/vm"
)

// namedNetwork has records of every type, and forwarders.
func namedNetwork(servers ...netip.AddrPort) vm.Network {
	nw := testNetwork
	nw.DNSRecords = []vm.DNSRecord{
		{Name: "db", Type: vm.RecordA, Value: "192.168.77.50", TTL: 60},
		{Name: "db", Type: vm.RecordA, Value: "192.168.77.51", TTL: 60},
		{Name: "db", Type: vm.RecordTXT, Value: `a \ b "c"`, TTL: 60},
		{Name: "@", Type: vm.RecordTXT, Value: strings.Repeat("x", 300), TTL: 60},
		{Name: "*.apps", Type: vm.RecordA, Value: "192.168.77.60", TTL: 60},
		{Name: "own.apps", Type: vm.RecordAAAA, Value: "fd00:77::60", TTL: 60},
		{Name: "_ldap._tcp", Type: vm.RecordSRV, Value: "10 5 389 db", TTL: 60},
		{Name: "www", Type: vm.RecordCNAME, Value: "web", TTL: 60},
		{Name: "alias", Type: vm.RecordCNAME, Value: "www", TTL: 60},
		{Name: "mirror", Type: vm.RecordCNAME, Value: "deb.example.org.", TTL: 60},
		{Name: "loop", Type: vm.RecordCNAME, Value: "loop2", TTL: 60},
		{Name: "loop2", Type: vm.RecordCNAME, Value: "loop", TTL: 60},
		{Name: "hidden.example.com.", Type: vm.RecordA, Value: "192.168.77.70", TTL: 60},
		{Name: "*.test.", Type: vm.RecordCNAME, Value: "db", TTL: 60},
		{Name: "50.77.168.192.in-addr.arpa.", Type: vm.RecordPTR, Value: "db", TTL: 60},
	}
	if len(servers) == 0 {
		servers = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}
	}
	nw.DNSForwarders = []vm.DNSForwarder{
		{Domain: "corp.example", Servers: servers},
		{Domain: "lab.corp.example", Servers: servers[len(servers)-1:]},
		{Domain: "10.in-addr.arpa", Servers: servers},
		{Domain: "168.192.in-addr.arpa", Servers: servers},
		{Domain: "intern", Servers: servers},
		{Domain: "ad.vm.internal", Servers: servers},
	}
	return nw
}

func TestRecordsAnswer(t *testing.T) {
	nw := namedNetwork()
	nw.Bridge = nw.Name
	if err := nw.Check(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		qtype  uint16
		ours   bool
		rcode  int
		target string
		want   string // the answers without their headers, sorted; empty: only an SOA record
	}{
		{"db.vm.internal.", dns.TypeA, true, 0, "", "192.168.77.50 192.168.77.51"},
		{"DB.vm.Internal.", dns.TypeA, true, 0, "", "192.168.77.50 192.168.77.51"},
		{"db.vm.internal.", dns.TypeTXT, true, 0, "", `"a \\ b \"c\""`},
		{"db.vm.internal.", dns.TypeAAAA, true, 0, "", ""},
		{"a.db.vm.internal.", dns.TypeA, true, dns.RcodeNameError, "", ""},
		{"vm.internal.", dns.TypeTXT, true, 0, "", fmt.Sprintf("%q %q", strings.Repeat("x", 255), strings.Repeat("x", 45))},
		{"vm.internal.", dns.TypeA, true, 0, "", ""},
		{"vm.internal.", dns.TypeNS, true, 0, "", "_gateway.vm.internal."},
		{"web.vm.internal.", dns.TypeA, true, 0, "", "192.168.77.9"},
		{"x.apps.vm.internal.", dns.TypeA, true, 0, "", "192.168.77.60"},
		{"a.b.apps.vm.internal.", dns.TypeA, true, 0, "", "192.168.77.60"},
		{"apps.vm.internal.", dns.TypeA, true, 0, "", ""},
		{"own.apps.vm.internal.", dns.TypeA, true, 0, "", ""},
		{"a.own.apps.vm.internal.", dns.TypeA, true, dns.RcodeNameError, "", ""},
		{"nobody.vm.internal.", dns.TypeA, true, dns.RcodeNameError, "", ""},
		{"_ldap._tcp.vm.internal.", dns.TypeSRV, true, 0, "", "10 5 389 db.vm.internal."},
		{"_tcp.vm.internal.", dns.TypeSRV, true, 0, "", ""},
		{"www.vm.internal.", dns.TypeA, true, 0, "web.vm.internal.", "web.vm.internal."},
		{"www.vm.internal.", dns.TypeCNAME, true, 0, "", "web.vm.internal."},
		{"mirror.vm.internal.", dns.TypeAAAA, true, 0, "deb.example.org.", "deb.example.org."},
		{"hidden.example.com.", dns.TypeA, true, 0, "", "192.168.77.70"},
		{"hidden.example.com.", dns.TypeAAAA, true, 0, "", ""},
		{"a.hidden.example.com.", dns.TypeA, false, 0, "", ""},
		{"example.com.", dns.TypeA, false, 0, "", ""},
		{"a.b.test.", dns.TypeA, true, 0, "db.vm.internal.", "db.vm.internal."},
		{"50.77.168.192.in-addr.arpa.", dns.TypePTR, true, 0, "", "db.vm.internal."},
		{"9.77.168.192.in-addr.arpa.", dns.TypePTR, true, 0, "", "web.vm.internal."},
		{"9.78.168.192.in-addr.arpa.", dns.TypePTR, false, 0, "", ""},
		{"1.2.3.10.in-addr.arpa.", dns.TypePTR, false, 0, "", ""},
		{"1.2.31.172.in-addr.arpa.", dns.TypePTR, true, dns.RcodeNameError, "", ""},
		{"intern.", dns.TypeA, false, 0, "", ""},
		{"a.ad.vm.internal.", dns.TypeA, false, 0, "", ""},
	} {
		r := new(dns.Msg).SetReply(question(c.name, c.qtype))
		ours, target, err := newZone(nw, zone{}).answer(t.Context(), directory{}, r, r.Question[0])
		if err != nil || ours != c.ours || r.Rcode != c.rcode || target != c.target {
			t.Errorf("%s %s: ours %v, code %d, target %q, %v; want %v, %d, %q",
				c.name, dns.TypeToString[c.qtype], ours, r.Rcode, target, err, c.ours, c.rcode, c.target)
			continue
		}
		var got []string
		for _, rr := range r.Answer {
			if rr.Header().Name != c.name {
				t.Errorf("%s: the owner of the answer is %s", c.name, rr.Header().Name)
			}
			got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		slices.Sort(got)
		if strings.Join(got, " ") != c.want || ours && c.want == "" && len(r.Ns) != 1 {
			t.Errorf("%s %s: %v, want %q", c.name, dns.TypeToString[c.qtype], r, c.want)
		}
		if _, err := r.Pack(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestTextOfRecordsIsSentUnchanged(t *testing.T) {
	nw := testNetwork
	value := `\ \\ \092 "quoted" ; ü ` + strings.Repeat("z", 255)
	nw.DNSRecords = []vm.DNSRecord{{Name: "t", Type: vm.RecordTXT, Value: value}}
	r := new(dns.Msg).SetReply(question("t.vm.internal.", dns.TypeTXT))
	if _, _, err := newZone(nw, zone{}).answer(t.Context(), directory{}, r, r.Question[0]); err != nil {
		t.Fatal(err)
	}
	b, err := r.Pack()
	if err != nil {
		t.Fatal(err)
	}
	end := b[len(b)-len(value)-2:]
	if sent := string(end[1:256]) + string(end[257:]); sent != value || end[0] != 255 {
		t.Errorf("sent %q, want %q", sent, value)
	}
}

func TestForwarderOfTheLongestDomain(t *testing.T) {
	z := newZone(namedNetwork(), zone{})
	for name, want := range map[string]string{
		"corp.example.":          "corp.example.",
		"a.corp.example.":        "corp.example.",
		"a.lab.corp.example.":    "lab.corp.example.",
		"xcorp.example.":         "",
		"example.":               "",
		"4.3.2.10.in-addr.arpa.": "10.in-addr.arpa.",
	} {
		got := ""
		if f := z.forwarder(name); f != nil {
			got = f.domain
		}
		if got != want {
			t.Errorf("%s: forwarder of %q, want %q", name, got, want)
		}
	}
}

func TestAliasesAreFollowed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.Update(namedNetwork(b.up.address))
	for _, c := range []struct {
		name  string
		rcode int
		want  string // the last answer
		n     int    // answers
	}{
		{"www.vm.internal.", 0, "192.168.77.9", 2},
		{"alias.vm.internal.", 0, "192.168.77.9", 3},
		{"mirror.vm.internal.", 0, "203.0.113.5", 2},
		{"mirror.vm.internal.", 0, "203.0.113.5", 2}, // from the cache
		{"loop.vm.internal.", dns.RcodeServerFailure, "", 0},
		{"x.test.", 0, "192.168.77.51", 3},
	} {
		for _, transport := range []string{"udp", "tcp"} {
			r := b.mustAsk(t, transport, testNetwork.Gateway, question(c.name, dns.TypeA))
			if r.Rcode != c.rcode || len(r.Answer) != c.n || c.n > 0 && !strings.HasSuffix(r.Answer[c.n-1].String(), c.want) {
				t.Errorf("%s by %s: %v, want %d answers that end with %s", c.name, transport, r, c.n, c.want)
			}
		}
	}
	if n := b.up.queries.Load(); n != 1 {
		t.Errorf("the resolver got %d queries, want 1", n)
	}
	q := question("mirror.vm.internal.", dns.TypeA)
	q.RecursionDesired = false
	if r := b.mustAsk(t, "udp", testNetwork.Gateway, q); len(r.Answer) != 1 || r.Rcode != 0 {
		t.Errorf("an alias without recursion: %v", r)
	}
}

func TestForwardersGetTheQueriesForTheirDomains(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	corp, lab := newUpstream(t), newUpstream(t)
	b.Update(namedNetwork(corp.address, lab.address))
	ask := func(name string, qtype uint16) *dns.Msg {
		t.Helper()
		return b.mustAsk(t, "udp", testNetwork.Gateway, question(name, qtype))
	}
	want := func(when string, up, c, l int64) {
		t.Helper()
		if got := []int64{b.up.queries.Swap(0), corp.queries.Swap(0), lab.queries.Swap(0)}; !slices.Equal(got, []int64{up, c, l}) {
			t.Errorf("%s: queries %v, want %v", when, got, []int64{up, c, l})
		}
	}
	ask("a.corp.example.", dns.TypeA)
	ask("corp.example.", dns.TypeA)
	want("a domain", 0, 2, 0)
	ask("a.lab.corp.example.", dns.TypeA)
	want("a longer domain", 0, 0, 1)
	ask("1.2.3.10.in-addr.arpa.", dns.TypePTR)
	ask("printer.intern.", dns.TypeA)
	ask("intern.", dns.TypeA)
	want("private names", 0, 3, 0)
	ask("www.example.com.", dns.TypeA)
	want("other names", 1, 0, 0)
	ask("a.corp.example.", dns.TypeA)
	ask("www.example.com.", dns.TypeA)
	want("cached names", 0, 0, 0)
	if r := ask("none.corp.example.", dns.TypeA); r.Rcode != dns.RcodeNameError {
		t.Errorf("a name that the forwarder does not know: %v", r)
	}
	want("a negative answer", 0, 1, 0)

	// The same forwarders keep the cache, others do not use it.
	b.Update(namedNetwork(corp.address, lab.address))
	ask("a.corp.example.", dns.TypeA)
	want("no change", 0, 0, 0)
	b.Update(namedNetwork(lab.address))
	ask("a.corp.example.", dns.TypeA)
	want("another server", 0, 0, 1)
	b.Update(testNetwork)
	ask("a.corp.example.", dns.TypeA)
	if r := ask("1.2.3.10.in-addr.arpa.", dns.TypePTR); r.Rcode != dns.RcodeNameError {
		t.Errorf("a private name without a forwarder: %v", r)
	}
	want("no forwarder", 1, 0, 0)

	// A forwarder without an answer is not replaced by the resolvers of the host.
	b.Update(namedNetwork(netip.MustParseAddrPort("127.0.0.1:1")))
	if r := ask("b.corp.example.", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("a forwarder that does not answer: %v", r)
	}
	want("a dead forwarder", 0, 0, 0)
	if got := b.log.String(); !strings.Contains(got, "the DNS servers of a forwarder do not answer") {
		t.Errorf("the log is %s", got)
	}
}

// BenchmarkZoneOfTheMostRecords measures a change of the record, and a query for a name without
// a record.
func BenchmarkZoneOfTheMostRecords(b *testing.B) {
	nw := testNetwork
	for i := range vm.MaxDNSRecords {
		nw.DNSRecords = append(nw.DNSRecords, vm.DNSRecord{Name: fmt.Sprintf("a.b.c.d%d", i), Type: vm.RecordA, Value: "10.0.0.1"})
	}
	b.Run("update", func(b *testing.B) {
		for b.Loop() {
			newZone(nw, zone{})
		}
	})
	nw.DNSRecords[0].Name = "*.apps"
	z := newZone(nw, zone{})
	q := question(strings.Repeat("a.", 120)+"example.com.", dns.TypeA)
	b.Run("query", func(b *testing.B) {
		for b.Loop() {
			r := new(dns.Msg).SetReply(q)
			z.answer(b.Context(), directory{}, r, r.Question[0])
		}
	})
}
