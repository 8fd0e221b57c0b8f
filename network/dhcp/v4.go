package dhcp

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"vmand/vm"
)

// The times of a lease. It is long, so that guests do not notice when vmand does not run
// for hours; an address belongs to its NIC anyway. T1 and T2 are the fractions of RFC 2131,
// section 4.4.5.
const (
	leaseTime   = 24 * time.Hour
	renewAfter  = leaseTime / 2
	rebindAfter = leaseTime * 7 / 8
)

// An outcome is the effect of an exchange on the lease.
type outcome int

const (
	unchanged outcome = iota
	confirmed
	released
	declined
)

// acceptable4 reports whether a client on this link could have sent m: from an Ethernet
// address and through no relay.
func acceptable4(m *dhcpv4.DHCPv4) bool {
	mac := m.ClientHWAddr
	return m.OpCode == dhcpv4.OpcodeBootRequest &&
		m.HWType == iana.HWTypeEthernet && len(mac) == 6 && mac[0]&1 == 0 && [6]byte(mac) != [6]byte{} &&
		(len(m.GatewayIPAddr) == 0 || m.GatewayIPAddr.IsUnspecified()) &&
		m.MessageType() != dhcpv4.MessageTypeNone
}

// reply4 returns the reply to m from the client with a recorded lease (RFC 2131, section
// 4.3). The reply is nil if there must be none.
func reply4(m *dhcpv4.DHCPv4, nw vm.Network, lease vm.Lease) (*dhcpv4.DHCPv4, outcome) {
	server, named := addressOf(m.ServerIdentifier())
	if named && server != nw.Gateway {
		return nil, unchanged // for another server
	}
	ciaddr, _ := addressOf(m.ClientIPAddr)
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return answer4(m, nw, lease, dhcpv4.MessageTypeOffer), unchanged
	case dhcpv4.MessageTypeRequest:
		wanted, ok := addressOf(m.RequestedIPAddress())
		if !ok {
			wanted = ciaddr
		}
		switch {
		case !wanted.IsValid():
			return nil, unchanged
		case wanted != lease.IP || (ciaddr.IsValid() && ciaddr != lease.IP):
			return refusal4(m, nw), unchanged
		}
		return answer4(m, nw, lease, dhcpv4.MessageTypeAck), confirmed
	case dhcpv4.MessageTypeInform:
		if ciaddr != lease.IP {
			return nil, unchanged
		}
		return answer4(m, nw, lease, dhcpv4.MessageTypeAck), unchanged
	case dhcpv4.MessageTypeDecline:
		if wanted, _ := addressOf(m.RequestedIPAddress()); wanted == lease.IP {
			return nil, declined
		}
	case dhcpv4.MessageTypeRelease:
		if ciaddr == lease.IP {
			return nil, released
		}
	}
	return nil, unchanged
}

// answer4 returns an offer or an acknowledgement. The acknowledgement of an INFORM has no
// address and no times (RFC 2131, section 4.3.5).
func answer4(m *dhcpv4.DHCPv4, nw vm.Network, lease vm.Lease, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	r := skeleton4(m, nw, kind)
	if kind == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = m.ClientIPAddr // zero or the recorded one
	}
	if m.MessageType() != dhcpv4.MessageTypeInform {
		r.YourIPAddr = lease.IP.AsSlice()
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
		r.UpdateOption(dhcpv4.OptRenewTimeValue(renewAfter))
		r.UpdateOption(dhcpv4.OptRebindingTimeValue(rebindAfter))
	}
	r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(nw.Subnet.Bits(), 32)))
	if nw.Mode == vm.NetworkNAT {
		r.UpdateOption(dhcpv4.OptRouter(nw.Gateway.AsSlice()))
	}
	if servers := v4(nw.DNS); len(servers) > 0 {
		r.UpdateOption(dhcpv4.OptDNS(servers...))
	} else if len(nw.DNS) == 0 {
		r.UpdateOption(dhcpv4.OptDNS(nw.Gateway.AsSlice()))
	}
	if nw.Domain != "" {
		r.UpdateOption(dhcpv4.OptDomainName(nw.Domain))
	}
	if list := searchList4(nw.SearchList(), maxOption); list != nil {
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionDNSDomainSearchList, list))
	}
	if lease.Hostname != "" {
		r.UpdateOption(dhcpv4.OptHostName(lease.Hostname))
	}
	if nw.MTU != 0 {
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(nw.MTU >> 8), byte(nw.MTU)}))
	}
	if servers := v4(nw.NTP); len(servers) > 0 {
		r.UpdateOption(dhcpv4.OptNTPServers(servers...))
	}
	if routes := routes4(nw); len(routes) > 0 {
		r.UpdateOption(dhcpv4.OptClasslessStaticRoute(routes...))
	}
	addFree(r, m, nw)
	addBoot(r, m, nw)
	return r
}

// refusal4 returns the reply to a client that requests an address not its own. The client
// may be without an address, so the reply is broadcast (RFC 2131, section 4.1).
func refusal4(m *dhcpv4.DHCPv4, nw vm.Network) *dhcpv4.DHCPv4 {
	r := skeleton4(m, nw, dhcpv4.MessageTypeNak)
	r.SetBroadcast()
	r.UpdateOption(dhcpv4.OptMessage("the address belongs to another machine"))
	return r
}

// skeleton4 returns the common part of all replies. It returns the client identifier
// unchanged (RFC 6842) but does not use it: cloned guests share it.
func skeleton4(m *dhcpv4.DHCPv4, nw vm.Network, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	zero := net.IPv4zero.To4()
	r := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        m.HWType,
		TransactionID: m.TransactionID,
		Flags:         m.Flags,
		ClientIPAddr:  zero,
		YourIPAddr:    zero,
		ServerIPAddr:  zero,
		GatewayIPAddr: zero,
		ClientHWAddr:  m.ClientHWAddr,
		Options:       dhcpv4.Options{},
	}
	r.UpdateOption(dhcpv4.OptMessageType(kind))
	r.UpdateOption(dhcpv4.OptServerIdentifier(nw.Gateway.AsSlice()))
	if id := m.GetOneOption(dhcpv4.OptionClientIdentifier); id != nil {
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, id))
	}
	return r
}

// destination4 returns the destination of a reply (RFC 2131, section 4.1). A client without
// an address gets a broadcast, as the RFC permits: a unicast would need raw frames.
func destination4(r *dhcpv4.DHCPv4) netip.AddrPort {
	to := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if ciaddr, ok := addressOf(r.ClientIPAddr); ok && r.MessageType() == dhcpv4.MessageTypeAck {
		to = ciaddr
	}
	return netip.AddrPortFrom(to, dhcpv4.ClientPort)
}

// routes4 returns the static routes of a network. A client that gets any ignores the router
// option, so they include the default route (RFC 3442).
func routes4(nw vm.Network) []*dhcpv4.Route {
	var routes []*dhcpv4.Route
	hasDefault := false
	for _, r := range nw.Routes {
		if !r.Destination.Addr().Is4() || !r.Gateway.Is4() {
			continue
		}
		hasDefault = hasDefault || r.Destination.Bits() == 0
		routes = append(routes, route4(r.Destination.Masked(), r.Gateway))
	}
	if len(routes) > 0 && !hasDefault && nw.Mode == vm.NetworkNAT {
		routes = append(routes, route4(netip.PrefixFrom(netip.IPv4Unspecified(), 0), nw.Gateway))
	}
	return routes
}

func route4(to netip.Prefix, gateway netip.Addr) *dhcpv4.Route {
	return &dhcpv4.Route{
		Dest:   &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)},
		Router: gateway.AsSlice(),
	}
}

// addressOf returns an address of a message. It is not ok for an absent address and for
// 0.0.0.0.
func addressOf(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || a.IsUnspecified() {
		return netip.Addr{}, false
	}
	return a, true
}

// v4 returns the IPv4 addresses of a list, v6 the IPv6 addresses.
func v4(addresses []netip.Addr) []net.IP { return family(addresses, netip.Addr.Is4) }
func v6(addresses []netip.Addr) []net.IP { return family(addresses, netip.Addr.Is6) }

func family(addresses []netip.Addr, in func(netip.Addr) bool) []net.IP {
	var some []net.IP
	for _, a := range addresses {
		if in(a) {
			some = append(some, a.AsSlice())
		}
	}
	return some
}
