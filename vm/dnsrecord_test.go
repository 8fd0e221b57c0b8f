package vm

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestPackDomains(t *testing.T) {
	for _, c := range []struct {
		domains  []string
		compress bool
		want     string
	}{
		{nil, true, ""},
		{[]string{"a.b"}, true, "\x01a\x01b\x00"},
		{[]string{"eng.apple.com", "marketing.apple.com"}, true, "\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04"}, // RFC 3397
		{[]string{"eng.apple.com", "marketing.apple.com"}, false,
			"\x03eng\x05apple\x03com\x00\x09marketing\x05apple\x03com\x00"},
		// The second name ends with a pointer, so the third one does not point to it.
		{[]string{"b.c", "a.b.c", "x.a.b.c"}, true, "\x01b\x01c\x00\x01a\xc0\x00\x01x\x01a\xc0\x00"},
		{[]string{"b.c", "c"}, true, "\x01b\x01c\x00\xc0\x02"},
	} {
		if got := PackDomains(c.domains, c.compress); string(got) != c.want {
			t.Errorf("%v, compressed %v: got %q, want %q", c.domains, c.compress, got, c.want)
		}
	}
}

func TestSearchList(t *testing.T) {
	for _, c := range []struct {
		domain string
		search []string
		want   string
	}{
		{"lan.example", nil, "[lan.example]"},
		{"lan.example", []string{"corp.example"}, "[lan.example corp.example]"},
		{"lan.example", []string{"corp.example", "lan.example"}, "[corp.example lan.example]"},
		{"", []string{"corp.example"}, "[corp.example]"},
	} {
		if got := fmt.Sprint(Network{Domain: c.domain, SearchDomains: c.search}.SearchList()); got != c.want {
			t.Errorf("domain %q and %v: got %s, want %s", c.domain, c.search, got, c.want)
		}
	}
}

// checkFault fails the test unless the fault of n has want in its text, or n has none if want is "".
func checkFault(t *testing.T, name string, n Network, want string) {
	t.Helper()
	err := n.Check()
	var f *Fault
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case want != "" && (!errors.As(err, &f) || f.Code != CodeInvalid || !strings.HasPrefix(f.Detail, want)):
		t.Errorf("%s: got %v, want an error that begins with %q", name, err, want)
	}
}

func TestSearchDomainsCheck(t *testing.T) {
	numbered := func(n int, suffix string) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("d%x%s", i, suffix))
		}
		return list
	}
	long := "." + strings.Repeat("abcdefghi.", 15) + "example"
	for name, c := range map[string]struct {
		domains []string
		want    string
	}{
		"none":            {nil, ""},
		"the maximum":     {numbered(16, ".example.org"), ""},
		"too many":        {numbered(17, ".example.org"), "/search_domains: must have at most 16"},
		"upper case":      {[]string{"a", "Example.org"}, "/search_domains/1: "},
		"a final dot":     {[]string{"example.org."}, "/search_domains/0: "},
		"an empty label":  {[]string{"a..b"}, "/search_domains/0: "},
		"twice":           {[]string{"a.b", "c", "a.b"}, "/search_domains/2: a.b is in the list twice"},
		"too long packed": {[]string{strings.Repeat("a", 63) + ".b", strings.Repeat("c", 63) + ".d", strings.Repeat("e", 63) + ".f", strings.Repeat("g", 63) + ".h"}, "/search_domains: with domain, the list takes 285 bytes in a DHCP option"},
		"too long plain":  {numbered(8, long), "/search_domains: with domain, the list takes 1"},
	} {
		n := natNetwork()
		n.SearchDomains = c.domains
		checkFault(t, name, n, c.want)
		if list := n.SearchList(); c.want == "" && len(PackDomains(list, true)) > 255 {
			t.Errorf("%s: the list takes more than an option", name)
		}
	}
}

func TestDNSRecordsCheck(t *testing.T) {
	const at = "/dns_records/0"
	many := func(n, size int) (list []DNSRecord) {
		for i := range n {
			list = append(list, DNSRecord{fmt.Sprintf("r%d", i), RecordTXT, strings.Repeat("x", size), 30})
		}
		return list
	}
	one := func(name string, kind DNSRecordType, value string) []DNSRecord {
		return []DNSRecord{{name, kind, value, 30}}
	}
	for name, c := range map[string]struct {
		records []DNSRecord
		want    string
	}{
		"every type": {[]DNSRecord{
			{"db", RecordA, "10.0.0.1", 0}, {"db", RecordA, "10.0.0.2", 604800}, {"db", RecordAAAA, "fd00::1", 30},
			{"@", RecordTXT, "v=spf1 -all", 30}, {"*.apps", RecordA, "10.0.0.1", 30}, {"www", RecordCNAME, "db", 30},
			{"mirror", RecordCNAME, "mirror.example.org.", 30}, {"_ldap._tcp", RecordSRV, "10 5 389 db", 30},
			{"_x._tcp", RecordSRV, "0 0 0 .", 30}, {"1.0.0.10.in-addr.arpa.", RecordPTR, "db", 30},
			{"other.example.", RecordA, "10.0.0.3", 30},
		}, ""},
		"the maximum":            {many(256, 200), ""},
		"too many":               {many(257, 1), "/dns_records: must have at most 256"},
		"too large":              {many(256, 250), "/dns_records: the names and values take "},
		"no type":                {one("db", "MX", "10 mail"), at + "/type: must be A"},
		"no name":                {one("", RecordA, "10.0.0.1"), at + "/name: "},
		"upper case":             {one("Db", RecordA, "10.0.0.1"), at + "/name: "},
		"an escape":              {one(`a\.b`, RecordA, "10.0.0.1"), at + "/name: "},
		"a star inside":          {one("a.*", RecordA, "10.0.0.1"), at + "/name: "},
		"only a star":            {one("*", RecordA, "10.0.0.1"), ""},
		"a star for all":         {one("*.", RecordA, "10.0.0.1"), at + "/name: "},
		"a label too long":       {one(strings.Repeat("a", 64), RecordA, "10.0.0.1"), at + "/name: "},
		"a name too long":        {one(strings.Repeat("a.", 125), RecordA, "10.0.0.1"), ""},
		"longer with the domain": {one(strings.Repeat("a.", 125)+"a", RecordA, "10.0.0.1"), at + "/name: the name"},
		"the host":               {one("_gateway", RecordA, "10.0.0.1"), at + "/name: _gateway is"},
		"A with IPv6":            {one("db", RecordA, "fd00::1"), at + "/value: "},
		"AAAA with IPv4":         {one("db", RecordAAAA, "10.0.0.1"), at + "/value: "},
		"AAAA with mapped IPv4":  {one("db", RecordAAAA, "::ffff:10.0.0.1"), at + "/value: "},
		"AAAA with a zone":       {one("db", RecordAAAA, "fe80::1%eth0"), at + "/value: "},
		"an ambiguous target":    {one("www", RecordCNAME, "www.example.org"), at + `/value: the target "www.example.org" must end with a dot`},
		"a target with a star":   {one("www", RecordCNAME, "*.example."), at + "/value: "},
		"text too long":          {one("db", RecordTXT, strings.Repeat("x", 513)), at + "/value: "},
		"text of two lines":      {one("db", RecordTXT, "a\nb"), at + "/value: "},
		"SRV without a target":   {one("_a._tcp", RecordSRV, "1 2 3"), at + "/value: "},
		"SRV with a large port":  {one("_a._tcp", RecordSRV, "1 2 65536 db"), at + "/value: "},
		"a negative TTL":         {[]DNSRecord{{"db", RecordA, "10.0.0.1", -1}}, at + "/ttl: "},
		"a TTL too long":         {[]DNSRecord{{"db", RecordA, "10.0.0.1", 604801}}, at + "/ttl: "},
		"twice": {[]DNSRecord{{"db", RecordA, "10.0.0.1", 1}, {"db.lan.example.org.", RecordA, "10.0.0.1", 2}},
			"/dns_records/1: the record is in the list twice"},
		"CNAME after another": {[]DNSRecord{{"db", RecordA, "10.0.0.1", 1}, {"db", RecordCNAME, "x", 1}}, "/dns_records/1: db has a CNAME"},
		"CNAME before another": {[]DNSRecord{{"db", RecordCNAME, "x", 1}, {"db.lan.example.org.", RecordA, "10.0.0.1", 1}},
			"/dns_records/1: db.lan.example.org. has a CNAME"},
		"two CNAMEs":          {[]DNSRecord{{"db", RecordCNAME, "x", 1}, {"db", RecordCNAME, "y", 1}}, "/dns_records/1: db can have no CNAME"},
		"CNAME of the domain": {one("@", RecordCNAME, "x"), at + ": @ can have no CNAME"},
	} {
		n := natNetwork()
		n.DNSRecords = c.records
		if name == "a name too long" { // with the domain it has 252 characters
			n.Domain = "a"
		}
		checkFault(t, name, n, c.want)
	}
}

func TestDNSForwardersCheck(t *testing.T) {
	servers := func(list ...string) (out []netip.AddrPort) {
		for _, s := range list {
			a, ok := ParseDNSServer(s)
			if !ok {
				t.Fatalf("%s is not parsed", s)
			}
			if again, ok := ParseDNSServer(DNSServerText(a)); !ok || again != a {
				t.Fatalf("%s becomes %s and then %v", s, DNSServerText(a), again)
			}
			out = append(out, a)
		}
		return out
	}
	many := func(n int) (list []DNSForwarder) {
		for i := range n {
			list = append(list, DNSForwarder{fmt.Sprintf("d%d.example", i), servers("10.0.0.1")})
		}
		return list
	}
	one := func(domain string, list ...string) []DNSForwarder { return []DNSForwarder{{domain, servers(list...)}} }
	for name, c := range map[string]struct {
		forwarders []DNSForwarder
		want       string
	}{
		"the maximum":         {many(32), ""},
		"too many":            {many(33), "/dns_forwarders: must have at most 32"},
		"every server":        {one("10.in-addr.arpa", "10.1.1.1", "10.1.1.2:5353", "fd00::1", "[fd00::1]:5353"), ""},
		"another port of us":  {one("corp", "192.168.100.1:5353"), ""},
		"no server":           {one("corp"), "/dns_forwarders/0/servers: must have 1 to 4"},
		"five servers":        {one("corp", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"), "/dns_forwarders/0/servers: "},
		"ourselves":           {one("corp", "192.168.100.1"), "/dns_forwarders/0/servers/0: 192.168.100.1 is the DNS server of network lan"},
		"the domain":          {one("lan.example.org", "10.0.0.1"), "/dns_forwarders/0/domain: lan.example.org is the domain"},
		"below the domain":    {one("ad.lan.example.org", "10.0.0.1"), ""},
		"localhost":           {one("localhost", "10.0.0.1"), "/dns_forwarders/0/domain: "},
		"a final dot":         {one("corp.", "10.0.0.1"), "/dns_forwarders/0/domain: "},
		"every domain":        {one("", "10.0.0.1"), "/dns_forwarders/0/domain: "},
		"twice":               {append(one("a", "10.0.0.1"), one("a", "10.0.0.2")...), "/dns_forwarders/1/domain: a is in the list twice"},
		"no address":          {one("corp", "0.0.0.0"), "/dns_forwarders/0/servers/0: "},
		"multicast":           {one("corp", "224.0.0.251:5353"), "/dns_forwarders/0/servers/0: "},
		"a link-local server": {one("corp", "10.0.0.1", "fe80::1%eth0"), "/dns_forwarders/0/servers/1: "},
		"port 0":              {one("corp", "10.0.0.1:0"), "/dns_forwarders/0/servers/0: "},
	} {
		n := natNetwork()
		n.DNSForwarders = c.forwarders
		checkFault(t, name, n, c.want)
	}
	for _, bad := range []string{"", "corp.example", "10.0.0.1:", "10.0.0.1:65536", "fd00::1:x", "[fd00::1]"} {
		if a, ok := ParseDNSServer(bad); ok {
			t.Errorf("%q is parsed as %v", bad, a)
		}
	}
}

func FuzzPackDomains(f *testing.F) {
	f.Add("a.b c.a.b", true)
	f.Fuzz(func(t *testing.T, text string, compress bool) {
		domains := strings.Fields(text)
		for _, d := range domains {
			if !validDomain(d) {
				return
			}
		}
		if got := unpackDomains(t, PackDomains(domains, compress)); fmt.Sprint(got) != fmt.Sprint(domains) {
			t.Errorf("%q becomes %q", domains, got)
		}
	})
}

// unpackDomains reads names with pointers that do not lead to pointers.
func unpackDomains(t *testing.T, b []byte) (domains []string) {
	for at := 0; at < len(b); {
		var labels [][]byte
		read, end := at, 0
		for b[read] != 0 {
			if b[read]&0xc0 == 0xc0 {
				if end != 0 {
					t.Fatal("a pointer leads to a pointer")
				}
				end = read + 2
				read = int(b[read]&0x3f)<<8 | int(b[read+1])
				continue
			}
			n := int(b[read])
			labels = append(labels, b[read+1:read+1+n])
			read += 1 + n
		}
		if end == 0 {
			end = read + 1
		}
		domains = append(domains, string(bytes.Join(labels, []byte("."))))
		at = end
	}
	return domains
}
