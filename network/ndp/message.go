package ndp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"time"

	"vmand/vm"
)

// The messages and options of neighbour discovery that are used here (RFC 4861,
// section 4; RFC 8106, section 5).
const (
	typeSolicitation  = 133
	typeAdvertisement = 134

	optionSourceLinkAddress = 1
	optionPrefix            = 3
	optionMTU               = 5
	optionDNSServers        = 25
	optionSearchList        = 31

	flagManaged = 0x80 // addresses come by DHCPv6
	flagOther   = 0x40 // other configuration does too
	flagOnLink  = 0x80 // of a prefix; without 0x40, addresses are not formed from it

	hopLimit = 255 // of every message: a router would have made it less (section 6.1.1)
)

// How long guests believe what they are told. It is long, so that they do not
// notice when nobody tells them for a while.
const (
	routerLifetime = 9000 * time.Second // the most that there is (section 6.2.1)
	prefixLifetime = 24 * time.Hour
	serverLifetime = 24 * time.Hour
)

// advertisement returns the router advertisement for a network, sent from an
// interface with the given link-layer address; withdrawn, it says that there is
// no router any more and that what it told is over (section 6.2.5). The checksum
// is left to the kernel, which fills it in for ICMPv6 sockets.
func advertisement(n vm.Network, link net.HardwareAddr, withdrawn bool) []byte {
	router, prefix, server := routerLifetime, prefixLifetime, serverLifetime
	if withdrawn {
		router, prefix, server = 0, 0, 0
	}
	if n.Mode != vm.NetworkNAT {
		router = 0 // nothing is behind it: it is no default router
	}
	b := []byte{typeAdvertisement, 0, 0, 0, 64, flagManaged | flagOther}
	b = binary.BigEndian.AppendUint16(b, uint16(router/time.Second))
	b = append(b, make([]byte, 8)...) // reachable time and retransmission timer: unspecified
	if len(link) == 6 {
		b = append(b, optionSourceLinkAddress, 1)
		b = append(b, link...)
	}
	if n.MTU != 0 {
		b = append(b, optionMTU, 1, 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(n.MTU))
	}
	b = append(b, optionPrefix, 4, byte(n.IPv6.Bits()), flagOnLink)
	b = appendSeconds(b, prefix) // valid
	b = appendSeconds(b, prefix) // preferred
	b = append(b, 0, 0, 0, 0)
	b = append(b, n.IPv6.Addr().AsSlice()...)
	b = appendServers(b, n, server)
	return appendSearchList(b, n.Domain, server)
}

func appendSeconds(b []byte, d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(d/time.Second))
}

// appendServers adds the recursive DNS servers (RFC 8106, section 5.1).
func appendServers(b []byte, n vm.Network, lifetime time.Duration) []byte {
	servers := []netip.Addr{n.GatewayIPv6()}
	if len(n.DNS) > 0 {
		servers = nil
		for _, a := range n.DNS {
			if a.Is6() {
				servers = append(servers, a)
			}
		}
	}
	if len(servers) == 0 || len(servers) > 127 { // as many as the length can say
		return b
	}
	b = append(b, optionDNSServers, byte(1+2*len(servers)), 0, 0)
	b = appendSeconds(b, lifetime)
	for _, a := range servers {
		b = append(b, a.AsSlice()...)
	}
	return b
}

// appendSearchList adds the domain that names are looked up in (RFC 8106, section
// 5.2): labels as in DNS (RFC 1035, section 3.1), padded with zeros to 8 octets.
func appendSearchList(b []byte, domain string, lifetime time.Duration) []byte {
	domain = strings.TrimSuffix(domain, ".")
	if domain == "" || len(domain) > 253 {
		return b
	}
	var name []byte
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 {
			return b
		}
		name = append(name, byte(len(label)))
		name = append(name, label...)
	}
	name = append(name, 0)
	for len(name)%8 != 0 {
		name = append(name, 0)
	}
	b = append(b, optionSearchList, byte(1+len(name)/8), 0, 0)
	b = appendSeconds(b, lifetime)
	return append(b, name...)
}

// validSolicitation reports whether a message, received with a hop limit from an
// address, is a router solicitation that is to be answered (section 6.1.1). The
// kernel has looked at the checksum.
func validSolicitation(b []byte, source netip.Addr, hops int) bool {
	if hops != hopLimit || len(b) < 8 || b[0] != typeSolicitation || b[1] != 0 {
		return false
	}
	if !source.IsUnspecified() && !source.IsLinkLocalUnicast() {
		return false
	}
	for options := b[8:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || len(options) < 8*int(options[1]) {
			return false
		}
		if options[0] == optionSourceLinkAddress && source.IsUnspecified() {
			return false
		}
		options = options[8*int(options[1]):]
	}
	return true
}
