package image

import (
	"fmt"
	"net/netip"
	"syscall"
)

// Refused is a URL, or an address that it leads to, that nothing is fetched from.
type Refused struct {
	Reason  string
	Private bool // the address is not one of the public Internet, and could be allowed
}

func (e *Refused) Error() string { return "refused: " + e.Reason }

func refusef(format string, args ...any) error { return &Refused{Reason: fmt.Sprintf(format, args...)} }

// reserved are the addresses that are not of the public Internet: the IANA
// registries of special-purpose addresses, and multicast. Of IPv6, everything
// outside 2000::/3 is too, but for those with an IPv4 address in them.
var reserved = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "3fff::/20",
)

var (
	global = netip.MustParsePrefix("2000::/3")
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
)

func prefixes(all ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, s := range all {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// public reports whether an address is one of the Internet, or in a range that
// is allowed. An address that has an IPv4 address in it is what that one is.
func public(a netip.Addr, allowed []netip.Prefix) bool {
	a = a.Unmap()
	for _, p := range allowed {
		if p.Contains(a) {
			return true
		}
	}
	if a.Zone() != "" {
		return false
	}
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return public(netip.AddrFrom4([4]byte(b[12:])), allowed)
	case sixTo4.Contains(a):
		return public(netip.AddrFrom4([4]byte(b[2:6])), allowed)
	case a.Is6() && !global.Contains(a):
		return false
	}
	for _, p := range reserved {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// control is a net.Dialer's: it sees the address that is really connected to,
// whatever a name resolved to before.
func control(allowed []netip.Prefix) func(network, address string, _ syscall.RawConn) error {
	return func(network, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || network != "tcp4" && network != "tcp6" {
			return refusef("%s address %s", network, address)
		}
		if !public(to.Addr(), allowed) {
			return &Refused{Reason: fmt.Sprintf("%s is not an address of the public Internet, and not allowed", to.Addr()), Private: true}
		}
		return nil
	}
}
