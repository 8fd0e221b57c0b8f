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

// serverDUID returns how the server of a network calls itself. It is made of the
// name, so that clients which renew find the same server after a restart of the
// daemon or of the host (RFC 8415, section 11; RFC 6355).
func serverDUID(n vm.Network) *dhcpv6.DUIDUUID {
	sum := sha256.Sum256([]byte("vmand dhcpv6 " + n.Name))
	d := &dhcpv6.DUIDUUID{UUID: [16]byte(sum[:16])}
	d.UUID[6] = d.UUID[6]&0x0f | 0x80 // version 8, free form, and the variant (RFC 9562)
	d.UUID[8] = d.UUID[8]&0x3f | 0x80
	return d
}

// acceptable6 reports whether the server must not discard m (RFC 8415, section 16).
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

// reply6 returns the answer to a client whose recorded address is that of lease,
// nil for none (RFC 8415, section 18.3).
func reply6(m *dhcpv6.Message, n vm.Network, lease vm.Lease) (*dhcpv6.Message, outcome) {
	server := serverDUID(n)
	if !acceptable6(m, server) {
		return nil, nothing
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
			give6(r, m, n, lease)
			return r, nothing
		}
		r.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		return r, give6(r, m, n, lease)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		return r, give6(r, m, n, lease)
	case dhcpv6.MessageTypeConfirm:
		status, ok := confirmation6(m, lease)
		if !ok {
			return nil, nothing
		}
		r.AddOption(status)
		return r, nothing
	case dhcpv6.MessageTypeRelease:
		r.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
		return r, released
	case dhcpv6.MessageTypeDecline:
		r.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
		return r, declined
	}
	configure6(r, n)
	return r, nothing
}

// give6 answers the identity associations of m: the first one gets the address,
// for a NIC has one; further ones, and those for prefixes, get none.
func give6(r, m *dhcpv6.Message, n vm.Network, lease vm.Lease) outcome {
	given := nothing
	for _, asked := range m.Options.IANA() {
		ia := &dhcpv6.OptIANA{IaId: asked.IaId}
		if given == confirmed || !lease.IPv6.IsValid() {
			ia.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
			r.AddOption(ia)
			continue
		}
		given = confirmed
		ia.T1, ia.T2 = renewAfter, rebindAfter
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: lease.IPv6.AsSlice(), PreferredLifetime: leaseTime, ValidLifetime: leaseTime})
		for i, a := range asked.Options.Addresses() {
			// What the client has and may not keep is over at once (section 18.3.4).
			if ip, ok := netip.AddrFromSlice(a.IPv6Addr); ok && !ip.IsUnspecified() && ip != lease.IPv6 && i < maxForeign &&
				m.MessageType != dhcpv6.MessageTypeSolicit && m.MessageType != dhcpv6.MessageTypeRequest {
				ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.IPv6Addr})
			}
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
	configure6(r, n)
	return given
}

// maxForeign is how many things that a client names and does not get are named
// in an answer, which has to fit in a packet.
const maxForeign = 8

// confirmation6 returns whether the addresses that a client has are still right;
// not ok if it names none.
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

// configure6 adds what does not depend on the client: DNS servers and the search
// list (RFC 3646), NTP servers (RFC 5908).
func configure6(r *dhcpv6.Message, n vm.Network) {
	servers := v6(n.DNS)
	if len(n.DNS) == 0 {
		servers = []net.IP{n.GatewayIPv6().AsSlice()}
	}
	if len(servers) > 0 {
		r.AddOption(dhcpv6.OptDNS(servers...))
	}
	if n.Domain != "" {
		r.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: []string{n.Domain}}))
	}
	for _, ip := range v6(n.NTP) {
		address := dhcpv6.NTPSuboptionSrvAddr(ip)
		r.AddOption(&dhcpv6.OptNTPServer{Suboptions: dhcpv6.Options{&address}})
	}
}
