package ndp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"vmand/vm"
)

// Messages and options of neighbour discovery (RFC 4861, section 4; RFC 8106, section 5).
const (
	typeSolicitation  = 133
	typeAdvertisement = 134

	optionSourceLinkAddress = 1
	optionPrefix            = 3
	optionMTU               = 5
	optionDNSServers        = 25
	optionSearchList        = 31

	flagManaged = 0x80 // addresses come from DHCPv6
	flagOther   = 0x40 // other configuration comes from DHCPv6
	flagOnLink  = 0x80 // of a prefix; without 0x40, guests form no addresses from it

	hopLimit = 255 // of every message; a router decrements it (section 6.1.1)
)

// Lifetimes of the advertised information. They are long, so that guests do not notice when
// vmand does not run for hours.
const (
	routerLifetime = 9000 * time.Second // the maximum (section 6.2.1)
	prefixLifetime = 24 * time.Hour
	serverLifetime = 24 * time.Hour
)

// advertisement returns the router advertisement of a network for an interface with a
// link-layer address. With withdrawn, all lifetimes are 0: the router and its information
// are gone (section 6.2.5). The kernel fills in the checksum.
func advertisement(nw vm.Network, link net.HardwareAddr, withdrawn bool) []byte {
	router, prefix, server := routerLifetime, prefixLifetime, serverLifetime
	if withdrawn {
		router, prefix, server = 0, 0, 0
	}
	if nw.Mode != vm.NetworkNAT {
		router = 0 // it is no default router: guests reach nothing through it
	}
	b := []byte{typeAdvertisement, 0, 0, 0, 64, flagManaged | flagOther}
	b = binary.BigEndian.AppendUint16(b, uint16(router/time.Second))
	b = append(b, make([]byte, 8)...) // reachable time and retransmission timer: unspecified
	if len(link) == 6 {
		b = append(b, optionSourceLinkAddress, 1)
		b = append(b, link...)
	}
	if nw.MTU != 0 {
		b = append(b, optionMTU, 1, 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(nw.MTU))
	}
	b = append(b, optionPrefix, 4, byte(nw.IPv6.Bits()), flagOnLink)
	b = appendSeconds(b, prefix) // valid
	b = appendSeconds(b, prefix) // preferred
	b = append(b, 0, 0, 0, 0)
	b = append(b, nw.IPv6.Addr().AsSlice()...)
	b = appendServers(b, nw, server)
	return appendSearchList(b, nw.SearchList(), server)
}

// removedDomains returns the search domains of old that nw does not have.
func removedDomains(old, nw vm.Network) []string {
	now := nw.SearchList()
	return slices.DeleteFunc(slices.Clone(old.SearchList()), func(d string) bool { return slices.Contains(now, d) })
}

// withdrawal returns an advertisement of a network that ends the use of search domains: their
// lifetime is 0 (RFC 8106, section 5.2). It leaves out the search list of the network, with which
// it might be too long.
func withdrawal(nw vm.Network, link net.HardwareAddr, domains []string) []byte {
	nw.Domain, nw.SearchDomains = "", nil
	return appendSearchList(advertisement(nw, link, false), domains, 0)
}

func appendSeconds(b []byte, d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(d/time.Second))
}

// appendServers adds the recursive DNS servers (RFC 8106, section 5.1).
func appendServers(b []byte, nw vm.Network, lifetime time.Duration) []byte {
	servers := []netip.Addr{nw.GatewayIPv6()}
	if len(nw.DNS) > 0 {
		servers = nil
		for _, a := range nw.DNS {
			if a.Is6() {
				servers = append(servers, a)
			}
		}
	}
	if len(servers) == 0 || len(servers) > 127 { // the limit of the length field
		return b
	}
	b = append(b, optionDNSServers, byte(1+2*len(servers)), 0, 0)
	b = appendSeconds(b, lifetime)
	for _, a := range servers {
		b = append(b, a.AsSlice()...)
	}
	return b
}

// maxSearchList is the maximum length in bytes of the names in the search list: the limit of the
// length field.
const maxSearchList = 254 * 8

// appendSearchList adds the search domains (RFC 8106, section 5.2): labels as in DNS (RFC 1035,
// section 3.1) without compression, padded with zeros to a multiple of 8 octets.
func appendSearchList(b []byte, domains []string, lifetime time.Duration) []byte {
	names := vm.PackDomains(domains, false)
	if len(names) == 0 || len(names) > maxSearchList {
		return b
	}
	for len(names)%8 != 0 {
		names = append(names, 0)
	}
	b = append(b, optionSearchList, byte(1+len(names)/8), 0, 0)
	b = appendSeconds(b, lifetime)
	return append(b, names...)
}

// validSolicitation reports whether a message from an address, received with a hop limit, is
// a valid router solicitation (section 6.1.1). The kernel has verified the checksum.
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
