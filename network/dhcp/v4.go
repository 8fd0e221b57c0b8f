package dhcp

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"vmand/vm"
)

// The times of a lease. It is long, so that guests do not notice when nobody
// answers for a while; an address belongs to its NIC anyway. T1 and T2 are the
// fractions that RFC 2131, section 4.4.5, names.
const (
	leaseTime   = 24 * time.Hour
	renewAfter  = leaseTime / 2
	rebindAfter = leaseTime * 7 / 8
)

// outcome is what an exchange means for the records.
type outcome int

const (
	nothing outcome = iota
	confirmed
	released
	declined
)

// acceptable4 reports whether m is a request that a client on this link could
// have sent: from an Ethernet address, through no relay.
func acceptable4(m *dhcpv4.DHCPv4) bool {
	mac := m.ClientHWAddr
	return m.OpCode == dhcpv4.OpcodeBootRequest &&
		m.HWType == iana.HWTypeEthernet && len(mac) == 6 && mac[0]&1 == 0 && [6]byte(mac) != [6]byte{} &&
		(len(m.GatewayIPAddr) == 0 || m.GatewayIPAddr.IsUnspecified()) &&
		m.MessageType() != dhcpv4.MessageTypeNone
}

// reply4 returns the answer to a client whose recorded address is that of lease,
// nil for none (RFC 2131, section 4.3).
func reply4(m *dhcpv4.DHCPv4, n vm.Network, lease vm.Lease) (*dhcpv4.DHCPv4, outcome) {
	server, named := addressOf(m.ServerIdentifier())
	if named && server != n.Gateway {
		return nil, nothing // it speaks to another server
	}
	ciaddr, _ := addressOf(m.ClientIPAddr)
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return answer4(m, n, lease, dhcpv4.MessageTypeOffer), nothing
	case dhcpv4.MessageTypeRequest:
		wanted, ok := addressOf(m.RequestedIPAddress())
		if !ok {
			wanted = ciaddr
		}
		switch {
		case !wanted.IsValid():
			return nil, nothing
		case wanted != lease.IP || (ciaddr.IsValid() && ciaddr != lease.IP):
			return refusal4(m, n), nothing
		}
		return answer4(m, n, lease, dhcpv4.MessageTypeAck), confirmed
	case dhcpv4.MessageTypeInform:
		if ciaddr != lease.IP {
			return nil, nothing
		}
		return answer4(m, n, lease, dhcpv4.MessageTypeAck), nothing
	case dhcpv4.MessageTypeDecline:
		return nil, declined
	case dhcpv4.MessageTypeRelease:
		if ciaddr == lease.IP {
			return nil, released
		}
	}
	return nil, nothing
}

// answer4 returns an offer or an acknowledgement. That of an INFORM gives no
// address and no times (RFC 2131, section 4.3.5).
func answer4(m *dhcpv4.DHCPv4, n vm.Network, lease vm.Lease, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	r := skeleton4(m, n, kind)
	if kind == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = m.ClientIPAddr // zero or the recorded one
	}
	if m.MessageType() != dhcpv4.MessageTypeInform {
		r.YourIPAddr = lease.IP.AsSlice()
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
		r.UpdateOption(dhcpv4.OptRenewTimeValue(renewAfter))
		r.UpdateOption(dhcpv4.OptRebindingTimeValue(rebindAfter))
	}
	r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(n.Subnet.Bits(), 32)))
	if n.Mode == vm.NetworkNAT {
		r.UpdateOption(dhcpv4.OptRouter(n.Gateway.AsSlice()))
	}
	if servers := v4(n.DNS); len(servers) > 0 {
		r.UpdateOption(dhcpv4.OptDNS(servers...))
	} else if len(n.DNS) == 0 {
		r.UpdateOption(dhcpv4.OptDNS(n.Gateway.AsSlice()))
	}
	if n.Domain != "" {
		r.UpdateOption(dhcpv4.OptDomainName(n.Domain))
		dhcpv4.WithDomainSearchList(n.Domain)(r)
	}
	if lease.Hostname != "" {
		r.UpdateOption(dhcpv4.OptHostName(lease.Hostname))
	}
	if n.MTU != 0 {
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(n.MTU >> 8), byte(n.MTU)}))
	}
	if servers := v4(n.NTP); len(servers) > 0 {
		r.UpdateOption(dhcpv4.OptNTPServers(servers...))
	}
	if routes := routes4(n); len(routes) > 0 {
		r.UpdateOption(dhcpv4.OptClasslessStaticRoute(routes...))
	}
	return r
}

// refusal4 returns the answer to a client that asks for an address not its own.
// It has to reach a client without an address, so it is broadcast (RFC 2131,
// section 4.1).
func refusal4(m *dhcpv4.DHCPv4, n vm.Network) *dhcpv4.DHCPv4 {
	r := skeleton4(m, n, dhcpv4.MessageTypeNak)
	r.SetBroadcast()
	r.UpdateOption(dhcpv4.OptMessage("the address belongs to another machine"))
	return r
}

// skeleton4 returns what all answers have in common. The client identifier goes
// back as it came (RFC 6842), and means nothing here: cloned guests share it.
func skeleton4(m *dhcpv4.DHCPv4, n vm.Network, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
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
	r.UpdateOption(dhcpv4.OptServerIdentifier(n.Gateway.AsSlice()))
	if id := m.GetOneOption(dhcpv4.OptionClientIdentifier); id != nil {
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, id))
	}
	return r
}

// destination4 returns where an answer goes (RFC 2131, section 4.1). A client
// that has no address yet could be reached at its MAC alone; it is broadcast to,
// as the RFC allows, which needs no raw frames.
func destination4(r *dhcpv4.DHCPv4) netip.AddrPort {
	to := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if ciaddr, ok := addressOf(r.ClientIPAddr); ok && r.MessageType() == dhcpv4.MessageTypeAck {
		to = ciaddr
	}
	return netip.AddrPortFrom(to, dhcpv4.ClientPort)
}

// routes4 returns the routes that guests are told of. A client that gets any
// ignores the router option, so the way to the gateway is among them (RFC 3442).
func routes4(n vm.Network) []*dhcpv4.Route {
	var routes []*dhcpv4.Route
	hasDefault := false
	for _, r := range n.Routes {
		if !r.Destination.Addr().Is4() || !r.Gateway.Is4() {
			continue
		}
		hasDefault = hasDefault || r.Destination.Bits() == 0
		routes = append(routes, route4(r.Destination.Masked(), r.Gateway))
	}
	if len(routes) > 0 && !hasDefault && n.Mode == vm.NetworkNAT {
		routes = append(routes, route4(netip.PrefixFrom(netip.IPv4Unspecified(), 0), n.Gateway))
	}
	return routes
}

func route4(to netip.Prefix, gateway netip.Addr) *dhcpv4.Route {
	return &dhcpv4.Route{
		Dest:   &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)},
		Router: gateway.AsSlice(),
	}
}

// addressOf returns an address of a message, unless it is absent or 0.0.0.0.
func addressOf(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || a.IsUnspecified() {
		return netip.Addr{}, false
	}
	return a, true
}

// v4 returns the IPv4 addresses among some, v6 the others.
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
