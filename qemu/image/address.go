package image

import (
	"fmt"
	"net/netip"
	"syscall"
)

// Refused is the error for a URL that must not be fetched, or an address that the
// URL leads to.
type Refused struct {
	Reason  string
	Private bool // the address is not on the public Internet; FetchOptions could allow it
}

func (e *Refused) Error() string { return "refused: " + e.Reason }

func refusef(format string, args ...any) error { return &Refused{Reason: fmt.Sprintf(format, args...)} }

// reserved lists the addresses that are not on the public Internet: the IANA
// registries of special-purpose addresses, and multicast. IPv6 addresses outside
// 2000::/3 are not public either, except those that embed an IPv4 address.
var reserved = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8",
	"169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
	"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
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

// isPublic reports whether a is on the public Internet or in one of the allowed
// ranges. For an address that embeds an IPv4 address, the IPv4 address decides.
func isPublic(a netip.Addr, allowed []netip.Prefix) bool {
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
		return isPublic(netip.AddrFrom4([4]byte(b[12:])), allowed)
	case sixTo4.Contains(a):
		return isPublic(netip.AddrFrom4([4]byte(b[2:6])), allowed)
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

// dialControl returns a [net.Dialer.Control] that refuses addresses that are not
// public. The dialer passes the address it is about to connect to, so it does not
// matter what a host name resolved to before.
func dialControl(allowed []netip.Prefix) func(network, address string, _ syscall.RawConn) error {
	return func(network, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil || network != "tcp4" && network != "tcp6" {
			return refusef("an address of the kind %s", network)
		}
		if !isPublic(to.Addr(), allowed) {
			// Without the address: a name of an internal zone may lead to it.
			return &Refused{
				Reason:  "the URL leads to an address that is not on the public Internet and is not allowed",
				Private: true,
			}
		}
		return nil
	}
}
