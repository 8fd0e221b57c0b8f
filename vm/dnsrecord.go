package vm

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of the names that a network serves.
const (
	MaxSearchDomains = 16
	maxSearchPacked  = 255     // bytes: the search list fits into one DHCP option (RFC 3397)
	maxSearchPlain   = 1000    // bytes without compression: a router advertisement fits into 1280 bytes
	MaxDNSRecords    = 256     // of a network
	maxRecordBytes   = 1 << 16 // of the names and values of all records of a network
	maxTXT           = 512     // bytes of a TXT record
	maxRecordTTL     = 7 * 24 * 3600
	MaxForwarders    = 32 // domains
	MaxForwarderDNS  = 4  // servers of a domain
	maxDNSName       = 253
	dnsPort          = 53
)

// DefaultRecordTTL is the TTL in seconds of a [DNSRecord] if the request gives none.
const DefaultRecordTTL = 30

// SearchList returns the domains that guests search for a name, in order: Domain first unless
// SearchDomains has it at another place.
func (n Network) SearchList() []string {
	if n.Domain == "" || slices.Contains(n.SearchDomains, n.Domain) {
		return n.SearchDomains
	}
	return append([]string{n.Domain}, n.SearchDomains...)
}

// PackDomains returns domains in the format of DNS (RFC 1035, section 3.1). With compress, the
// end of a domain that an earlier one has is a pointer to it (RFC 3397); a pointer never leads
// to another pointer, which some clients do not follow.
func PackDomains(domains []string, compress bool) []byte {
	const pointer, maxOffset = 0xc0, 1<<14 - 1
	var b []byte
	written := map[string]int{} // offsets of names without a pointer
	for _, domain := range domains {
		full := map[string]int{}
		rest, pointed := domain, false
		for rest != "" {
			if at, ok := written[rest]; ok && compress {
				b = append(b, pointer|byte(at>>8), byte(at))
				pointed = true
				break
			}
			if len(b) <= maxOffset {
				full[rest] = len(b)
			}
			label, after, _ := strings.Cut(rest, ".")
			b = append(b, byte(len(label)))
			b = append(b, label...)
			rest = after
		}
		if pointed {
			continue
		}
		b = append(b, 0)
		for name, at := range full {
			written[name] = at
		}
	}
	return b
}

// checkSearchDomains checks the search domains of n.
func (n Network) checkSearchDomains() error {
	const field = "/search_domains"
	if len(n.SearchDomains) > MaxSearchDomains {
		return InvalidField(field, "must have at most %d entries", MaxSearchDomains)
	}
	for i, d := range n.SearchDomains {
		at := fmt.Sprintf("%s/%d", field, i)
		if !validDomain(d) {
			return InvalidField(at, "%.64q must be a DNS name in lower case of at most %d characters, such as example.org",
				d, maxDomain)
		}
		if slices.Contains(n.SearchDomains[:i], d) {
			return InvalidField(at, "%s is in the list twice", d)
		}
	}
	if len(n.SearchDomains) == 0 {
		return nil
	}
	list := n.SearchList()
	if size := len(PackDomains(list, true)); size > maxSearchPacked {
		return InvalidField(field, "with domain, the list takes %d bytes in a DHCP option, and at most %d fit: "+
			"use fewer or shorter domains", size, maxSearchPacked)
	}
	if size := len(PackDomains(list, false)); size > maxSearchPlain {
		return InvalidField(field, "with domain, the list takes %d bytes in a router advertisement, and at most %d fit: "+
			"use fewer or shorter domains", size, maxSearchPlain)
	}
	return nil
}

// A DNSRecordType is the type of a [DNSRecord].
type DNSRecordType string

// The types of records.
const (
	RecordA     DNSRecordType = "A"
	RecordAAAA  DNSRecordType = "AAAA"
	RecordCNAME DNSRecordType = "CNAME"
	RecordTXT   DNSRecordType = "TXT"
	RecordSRV   DNSRecordType = "SRV"
	RecordPTR   DNSRecordType = "PTR"
)

// A DNSRecord is a record that the DNS server of a network answers with. Where a VM has the same
// name, the records of the name hide the VM.
type DNSRecord struct {
	// Name is relative to the domain of the network, or absolute with a final dot; "@" is the
	// domain. The first label may be "*", which stands for all names below the rest that do not
	// exist (RFC 4592).
	Name string        `json:"name"`
	Type DNSRecordType `json:"type"`
	// Value is an address, a name as in Name, the text of a TXT record, or the priority, weight,
	// port and target of an SRV record.
	Value string `json:"value"`
	TTL   int    `json:"ttl"` // seconds
}

var (
	recordLabel = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
	recordText  = regexp.MustCompile(`^[^\x00-\x1f\x7f]+$`)
)

// AbsoluteName returns the absolute form, with a final dot, of a name of a [DNSRecord].
func (n Network) AbsoluteName(name string) string {
	switch {
	case name == "@":
		return n.Domain + "."
	case strings.HasSuffix(name, "."):
		return name
	}
	return name + "." + n.Domain + "."
}

// An SRV is the value of an SRV record (RFC 2782).
type SRV struct {
	Priority, Weight, Port uint16
	Target                 string // as in [DNSRecord].Name, or "." for none
}

// ParseSRV parses the value of an SRV record.
func ParseSRV(value string) (SRV, bool) {
	fields := strings.Fields(value)
	if len(fields) != 4 {
		return SRV{}, false
	}
	s := SRV{Target: fields[3]}
	for i, to := range []*uint16{&s.Priority, &s.Weight, &s.Port} {
		v, err := strconv.ParseUint(fields[i], 10, 16)
		if err != nil {
			return SRV{}, false
		}
		*to = uint16(v)
	}
	return s, true
}

// checkRecordName returns a [Fault] if name is not the name of a record of n.
func (n Network) checkRecordName(field, name string, wildcard bool) error {
	absolute := strings.TrimSuffix(n.AbsoluteName(name), ".")
	if len(absolute) > maxDNSName {
		return InvalidField(field, "the name %.64s… is longer than %d characters", absolute, maxDNSName)
	}
	labels := strings.Split(absolute, ".")
	if wildcard && len(labels) > 1 && labels[0] == "*" {
		labels = labels[1:]
	}
	for _, label := range labels {
		if !recordLabel.MatchString(label) {
			return InvalidField(field,
				"%.64q is not a DNS name in lower case, such as db, or db.example.org. with a final dot", name)
		}
	}
	return nil
}

// checkTarget returns a [Fault] if name is not the target of a record. A name with dots must
// have a final one: without it, www.example.org would be a name in the domain of the network,
// which is rarely meant.
func (n Network) checkTarget(field, name string) error {
	if strings.Contains(name, ".") && !strings.HasSuffix(name, ".") {
		return InvalidField(field, "the target %.64q must end with a dot: write %.64s. for that name, or %.64s.%s. "+
			"for a name in the domain of the network", name, name, name, n.Domain)
	}
	return n.checkRecordName(field, name, false)
}

// checkDNSRecords checks the DNS records of n.
func (n Network) checkDNSRecords() error {
	const field = "/dns_records"
	if len(n.DNSRecords) > MaxDNSRecords {
		return InvalidField(field, "must have at most %d entries", MaxDNSRecords)
	}
	bytes, seen := 0, map[DNSRecord]bool{}
	alias, others := map[string]bool{}, map[string]bool{}
	for i, r := range n.DNSRecords {
		at := fmt.Sprintf("%s/%d", field, i)
		if err := n.checkRecordName(at+"/name", r.Name, true); err != nil {
			return err
		}
		if err := n.checkRecordValue(at+"/value", r); err != nil {
			return err
		}
		if r.TTL < 0 || r.TTL > maxRecordTTL {
			return InvalidField(at+"/ttl", "must be 0 to %d seconds", maxRecordTTL)
		}
		name := n.AbsoluteName(r.Name)
		if name == "_gateway."+n.Domain+"." {
			return InvalidField(at+"/name", "_gateway is the name of the host")
		}
		same := DNSRecord{Name: name, Type: r.Type, Value: r.Value}
		if seen[same] {
			return InvalidField(at, "the record is in the list twice")
		}
		seen[same] = true
		if r.Type == RecordCNAME {
			if name == n.Domain+"." || alias[name] {
				return InvalidField(at, "%s can have no CNAME record: it has other records", r.Name)
			}
			alias[name] = true
		} else {
			others[name] = true
		}
		if alias[name] && others[name] {
			return InvalidField(at, "%s has a CNAME record, so it can have no other record", r.Name)
		}
		bytes += len(name) + len(r.Value)
	}
	if bytes > maxRecordBytes {
		return InvalidField(field, "the names and values take %d bytes, and at most %d are allowed", bytes, maxRecordBytes)
	}
	return nil
}

// checkRecordValue checks the type and the value of a record.
func (n Network) checkRecordValue(field string, r DNSRecord) error {
	switch r.Type {
	case RecordA, RecordAAAA:
		a, err := netip.ParseAddr(r.Value)
		if err != nil || a.Zone() != "" || a.Is4In6() || a.Is4() != (r.Type == RecordA) {
			return InvalidField(field, "%.64q is not an address for a record of type %s", r.Value, r.Type)
		}
		return nil
	case RecordCNAME, RecordPTR:
		return n.checkTarget(field, r.Value)
	case RecordTXT:
		if len(r.Value) > maxTXT || !recordText.MatchString(r.Value) {
			return InvalidField(field, "must be 1 to %d bytes of text without control characters", maxTXT)
		}
		return nil
	case RecordSRV:
		s, ok := ParseSRV(r.Value)
		if !ok {
			return InvalidField(field,
				"%.64q must be a priority, a weight, a port and a target, such as 10 5 389 ldap", r.Value)
		}
		if s.Target == "." {
			return nil
		}
		return n.checkTarget(field, s.Target)
	}
	return InvalidField(strings.TrimSuffix(field, "value")+"type", "must be A, AAAA, CNAME, TXT, SRV or PTR")
}

// A DNSForwarder names the DNS servers that know a domain. Queries for names in the domain go to
// them instead of the resolvers of the host.
type DNSForwarder struct {
	Domain  string           `json:"domain"`
	Servers []netip.AddrPort `json:"servers"` // in order of preference
}

// ParseDNSServer parses an IP address with or without a port, such as 10.0.0.1:5353 or
// [fd00::1]:5353.
func ParseDNSServer(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, dnsPort), true
	}
	a, err := netip.ParseAddrPort(s)
	return a, err == nil
}

// DNSServerText returns the shortest text that [ParseDNSServer] parses as a.
func DNSServerText(a netip.AddrPort) string {
	if a.Port() == dnsPort {
		return a.Addr().String()
	}
	return a.String()
}

// checkDNSForwarders checks the forwarders of n.
func (n Network) checkDNSForwarders() error {
	const field = "/dns_forwarders"
	if len(n.DNSForwarders) > MaxForwarders {
		return InvalidField(field, "must have at most %d entries", MaxForwarders)
	}
	for i, f := range n.DNSForwarders {
		at := fmt.Sprintf("%s/%d", field, i)
		if !validDomain(f.Domain) || f.Domain == "localhost" {
			return InvalidField(at+"/domain", "%.64q must be a DNS name in lower case of at most %d characters, such as "+
				"corp.example or 10.in-addr.arpa", f.Domain, maxDomain)
		}
		if f.Domain == n.Domain {
			return InvalidField(at+"/domain", "%s is the domain of the network, which answers for it itself", f.Domain)
		}
		for _, other := range n.DNSForwarders[:i] {
			if other.Domain == f.Domain {
				return InvalidField(at+"/domain", "%s is in the list twice", f.Domain)
			}
		}
		if len(f.Servers) == 0 || len(f.Servers) > MaxForwarderDNS {
			return InvalidField(at+"/servers", "must have 1 to %d entries", MaxForwarderDNS)
		}
		for j, s := range f.Servers {
			if err := n.checkForwarderServer(fmt.Sprintf("%s/servers/%d", at, j), s); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkForwarderServer checks a server of a forwarder.
func (n Network) checkForwarderServer(field string, s netip.AddrPort) error {
	a := s.Addr()
	switch {
	case !a.IsValid() || a.Is4In6() || a.Zone() != "" || s.Port() == 0 || a.IsUnspecified() || a.IsMulticast() ||
		a.IsLinkLocalUnicast():
		return InvalidField(field, "%s is not the address of a DNS server, such as 10.0.0.1 or [fd00::1]:5353", s)
	case n.ServesDNS(s):
		return InvalidField(field, "%s is the DNS server of network %s itself", DNSServerText(s), n.Name)
	}
	return nil
}

// ServesDNS reports whether s is the DNS server of n.
func (n Network) ServesDNS(s netip.AddrPort) bool {
	return n.Mode.Managed() && s.Port() == dnsPort && (s.Addr() == n.Gateway || s.Addr() == n.GatewayIPv6())
}
