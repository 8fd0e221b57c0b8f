package dhcp

import (
	"crypto/sha256"
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"vmand/vm"
)

// serverDUID returns the identifier of a network's server. It is derived from the name, so
// clients that renew find the same server after a restart of vmand or of the host (RFC
// 8415, section 11; RFC 6355).
func serverDUID(nw vm.Network) *dhcpv6.DUIDUUID {
	sum := sha256.Sum256([]byte("vmand dhcpv6 " + nw.Name))
	d := &dhcpv6.DUIDUUID{UUID: [16]byte(sum[:16])}
	d.UUID[6] = d.UUID[6]&0x0f | 0x80 // version 8, free form, and the variant (RFC 9562)
	d.UUID[8] = d.UUID[8]&0x3f | 0x80
	return d
}

// acceptable6 reports whether m is valid for the server (RFC 8415, section 16).
func acceptable6(m *dhcpv6.Message, server dhcpv6.DUID) bool {
	id := m.Options.ServerID()
	ours := id != nil && server.Equal(id)
	switch m.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		return m.Options.ClientID() != nil && id == nil
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		return m.Options.ClientID() != nil && ours
	case dhcpv6.MessageTypeInformationRequest:
		return id == nil || ours
	}
	return false
}

// reply6 returns the reply to m from the client with a recorded lease (RFC 8415, section
// 18.3). The reply is nil if there must be none.
func reply6(m *dhcpv6.Message, nw vm.Network, lease vm.Lease) (*dhcpv6.Message, outcome) {
	server := serverDUID(nw)
	if !acceptable6(m, server) {
		return nil, unchanged
	}
	r := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
	r.AddOption(dhcpv6.OptServerID(server))
	if id := m.Options.ClientID(); id != nil {
		r.AddOption(dhcpv6.OptClientID(id))
	}
	switch m.MessageType {
	case dhcpv6.MessageTypeSolicit:
		rapid := m.GetOneOption(dhcpv6.OptionRapidCommit)
		if rapid == nil {
			r.MessageType = dhcpv6.MessageTypeAdvertise
			give6(r, m, nw, lease)
			return r, unchanged
		}
		r.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		return r, give6(r, m, nw, lease)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		return r, give6(r, m, nw, lease)
	case dhcpv6.MessageTypeConfirm:
		status, ok := confirmation6(m, lease)
		if !ok {
			return nil, unchanged
		}
		r.AddOption(status)
		return r, unchanged
	case dhcpv6.MessageTypeRelease:
		r.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
		return r, released
	case dhcpv6.MessageTypeDecline:
		r.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
		if has6(m, lease.IPv6) {
			return r, declined
		}
		return r, unchanged
	}
	configure6(r, nw)
	return r, unchanged
}

// give6 adds the replies to the identity associations of m. The first one gets the address,
// since a NIC has only one; further ones, and those for prefixes, get none.
func give6(r, m *dhcpv6.Message, nw vm.Network, lease vm.Lease) outcome {
	given := unchanged
	for _, asked := range m.Options.IANA() {
		ia := &dhcpv6.OptIANA{IaId: asked.IaId}
		if given == confirmed || !lease.IPv6.IsValid() {
			ia.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
			r.AddOption(ia)
			continue
		}
		given = confirmed
		ia.T1, ia.T2 = renewAfter, rebindAfter
		ia.Options.Add(&dhcpv6.OptIAAddress{
			IPv6Addr:          lease.IPv6.AsSlice(),
			PreferredLifetime: leaseTime,
			ValidLifetime:     leaseTime,
		})
		if m.MessageType != dhcpv6.MessageTypeSolicit && m.MessageType != dhcpv6.MessageTypeRequest {
			revoke6(ia, asked.Options.Addresses(), lease)
		}
		r.AddOption(ia)
	}
	for i, asked := range m.Options.IAPD() {
		if i < maxForeign {
			pd := &dhcpv6.OptIAPD{IaId: asked.IaId}
			pd.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail})
			r.AddOption(pd)
		}
	}
	configure6(r, nw)
	return given
}

// maxForeign bounds the addresses and prefixes of a reply that a client asked for and does
// not get: the reply must fit into a packet.
const maxForeign = 8

// revoke6 ends the lifetime of addresses that a client has and must not keep (section
// 18.3.4).
func revoke6(ia *dhcpv6.OptIANA, addresses []*dhcpv6.OptIAAddress, lease vm.Lease) {
	for i, a := range addresses {
		ip, ok := netip.AddrFromSlice(a.IPv6Addr)
		if ok && !ip.IsUnspecified() && ip != lease.IPv6 && i < maxForeign {
			ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.IPv6Addr})
		}
	}
}

// has6 reports whether a client names an address as one of its own.
func has6(m *dhcpv6.Message, address netip.Addr) bool {
	for _, ia := range m.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			if ip, ok := netip.AddrFromSlice(a.IPv6Addr); ok && ip == address {
				return true
			}
		}
	}
	return false
}

// confirmation6 returns whether the addresses of a client are correct, as a status. It is
// not ok if the message contains none.
func confirmation6(m *dhcpv6.Message, lease vm.Lease) (*dhcpv6.OptStatusCode, bool) {
	status, named := iana.StatusSuccess, false
	for _, ia := range m.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			named = true
			if ip, ok := netip.AddrFromSlice(a.IPv6Addr); !ok || ip != lease.IPv6 {
				status = iana.StatusNotOnLink
			}
		}
	}
	return &dhcpv6.OptStatusCode{StatusCode: status}, named
}

// configure6 adds the options that do not depend on the client: DNS servers and the search
// list (RFC 3646), NTP servers (RFC 5908).
func configure6(r *dhcpv6.Message, nw vm.Network) {
	servers := v6(nw.DNS)
	if len(nw.DNS) == 0 {
		servers = []net.IP{nw.GatewayIPv6().AsSlice()}
	}
	if len(servers) > 0 {
		r.AddOption(dhcpv6.OptDNS(servers...))
	}
	if list := nw.SearchList(); len(list) > 0 {
		r.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: list}))
	}
	for _, ip := range v6(nw.NTP) {
		address := dhcpv6.NTPSuboptionSrvAddr(ip)
		r.AddOption(&dhcpv6.OptNTPServer{Suboptions: dhcpv6.Options{&address}})
	}
}
