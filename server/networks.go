package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"vmand/openapi"
	"vmand/vm"
)

// Networks creates, changes and deletes networks.
type Networks interface {
	Create(ctx context.Context, n vm.Network) (vm.Network, error)
	Update(ctx context.Context, name string, e vm.NetworkEdits, match vm.Match) (vm.Network, error)
	Delete(ctx context.Context, name string, match vm.Match) error
	Status(ctx context.Context, name string) (vm.NetworkReport, error)
}

// CreateNetwork implements [openapi.StrictServerInterface].
func (s *Server) CreateNetwork(ctx context.Context, r openapi.CreateNetworkRequestObject) (openapi.Response, error) {
	b := r.Body
	var p addressParser
	n := vm.Network{
		Name:       b.Name,
		Mode:       vm.NetworkMode(b.Mode),
		Bridge:     value(b.Bridge),
		Subnet:     value(p.prefix("/subnet", b.Subnet)),
		Gateway:    value(p.addr("/gateway", b.Gateway)),
		IPv6:       value(p.prefix("/ipv6_subnet", b.IPv6Subnet)),
		DNS:        value(p.addrs("/dns", b.DNS)),
		NTP:        value(p.addrs("/ntp", b.NTP)),
		Routes:     value(p.routes("/routes", b.Routes)),
		Domain:     value(b.Domain),
		MTU:        value(b.MTU),
		VLAN:       value(b.VLANID),
		IsolateVMs: value(b.IsolateVMs),
		Restrict:   value(b.Restrict),

		SearchDomains: value(b.SearchDomains),
		DHCPOptions:   value(p.dhcpOptions("/dhcp_options", b.DHCPOptions)),
		PXE:           value(p.pxe("/pxe", b.PXE)),
		DNSRecords:    value(dnsRecords(b.DNSRecords)),
		DNSForwarders: value(p.forwarders("/dns_forwarders", b.DNSForwarders)),
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	if len(n.DNSForwarders) > 0 {
		if err := permitForwarders(ctx); err != nil {
			return nil, err
		}
	}
	n, err := s.Networks.Create(ctx, n)
	if err != nil {
		return nil, err
	}
	return networkAnswer(&n).created("/networks/" + n.Name), nil
}

// ListNetworks implements [openapi.StrictServerInterface].
func (s *Server) ListNetworks(ctx context.Context, r openapi.ListNetworksRequestObject) (openapi.Response, error) {
	return newList(ctx, "/networks", query(), r.Params.Limit, r.Params.Cursor, r.Params.IfNoneMatch, s.reader.Networks,
		func(n *vm.Network) int64 { return n.Seq },
		func(n *vm.Network) any { return apiNetwork(n) })
}

// GetNetwork implements [openapi.StrictServerInterface].
func (s *Server) GetNetwork(ctx context.Context, r openapi.GetNetworkRequestObject) (openapi.Response, error) {
	report, err := s.Networks.Status(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	body := apiNetworkDetails(&report)
	// The state on the host has no revision, so the entity tag contains a hash of it.
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(b)
	etag := strings.TrimSuffix(etagOf(networkVersion(&report.Network)), `"`) + "." + hex.EncodeToString(hash[:8]) + `"`
	return resource(etag, r.Params.IfNoneMatch, func() any { return body }), nil
}

// UpdateNetwork implements [openapi.StrictServerInterface].
func (s *Server) UpdateNetwork(ctx context.Context, r openapi.UpdateNetworkRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	b := r.Body
	var p addressParser
	e := vm.NetworkEdits{
		Subnet:     p.prefix("/subnet", b.Subnet),
		Gateway:    p.addr("/gateway", b.Gateway),
		DNS:        p.addrs("/dns", b.DNS),
		NTP:        p.addrs("/ntp", b.NTP),
		Routes:     p.routes("/routes", b.Routes),
		Domain:     b.Domain,
		MTU:        b.MTU,
		VLAN:       b.VLANID,
		IsolateVMs: b.IsolateVMs,
		Restrict:   b.Restrict,
		Force:      value(b.Force),

		SearchDomains: b.SearchDomains,
		DHCPOptions:   p.dhcpOptions("/dhcp_options", b.DHCPOptions),
		PXE:           p.pxe("/pxe", b.PXE),
		DNSRecords:    dnsRecords(b.DNSRecords),
		DNSForwarders: p.forwarders("/dns_forwarders", b.DNSForwarders),
	}
	if v6 := b.IPv6Subnet; v6 != nil && *v6 == "" {
		e.IPv6 = &netip.Prefix{}
	} else {
		e.IPv6 = p.prefix("/ipv6_subnet", v6)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	if e.DNSForwarders != nil {
		if err := permitForwarders(ctx); err != nil {
			return nil, err
		}
	}
	n, err := s.Networks.Update(ctx, r.Name, e, match)
	if err != nil {
		return nil, err
	}
	return networkAnswer(&n), nil
}

// DeleteNetwork implements [openapi.StrictServerInterface].
func (s *Server) DeleteNetwork(ctx context.Context, r openapi.DeleteNetworkRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	if err := s.Networks.Delete(ctx, r.Name, match); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// permitForwarders returns a fault if the caller must not set the forwarders of a network. The
// host sends queries to any address in them, also to servers that only the host reaches.
func permitForwarders(ctx context.Context) error {
	err := permit(vm.CallerOf(ctx), vm.RoleAdmin)
	var f *vm.Fault
	if errors.As(err, &f) {
		f.Detail = "dns_forwarders needs the role " + string(vm.RoleAdmin)
	}
	return err
}

// networkAnswer returns the answer 200 with the configuration of a network.
func networkAnswer(n *vm.Network) answer {
	return answer{status: http.StatusOK, body: apiNetwork(n), etag: etagOf(networkVersion(n))}
}

func networkVersion(n *vm.Network) vm.Version {
	return vm.Version{Seq: n.Seq, Revision: n.Revision}
}

// usualMTU is the MTU in bytes of a network without a configured MTU.
const usualMTU = 1500

func apiNetwork(n *vm.Network) *openapi.Network {
	out := &openapi.Network{
		Name:       n.Name,
		Mode:       openapi.NetworkMode(n.Mode),
		Bridge:     optional(&n.Bridge),
		Gateway:    optionalAddr(n.Gateway),
		DNS:        apiAddrs(n.DNS),
		NTP:        apiAddrs(n.NTP),
		Routes:     make([]openapi.NetworkRoute, len(n.Routes)),
		Domain:     optional(&n.Domain),
		MTU:        n.MTU,
		IsolateVMs: n.IsolateVMs,
		Restrict:   n.Restrict,
		CreatedAt:  openapi.Time{Time: n.CreatedAt},
		UpdatedAt:  openapi.Time{Time: n.UpdatedAt},
		Subnet:     optionalPrefix(n.Subnet),
		IPv6Subnet: optionalPrefix(n.IPv6),

		SearchDomains: append([]string{}, n.SearchDomains...),
		DHCPOptions:   apiDHCPOptions(n.DHCPOptions),
		PXE:           apiPXE(n.PXE),
		DNSRecords:    apiDNSRecords(n.DNSRecords),
		DNSForwarders: apiForwarders(n.DNSForwarders),
	}
	if n.MTU == 0 {
		out.MTU = usualMTU
	}
	if n.VLAN != 0 {
		out.VLANID = &n.VLAN
	}
	for i, r := range n.Routes {
		out.Routes[i] = openapi.NetworkRoute{Destination: r.Destination.String(), Gateway: r.Gateway.String()}
	}
	return out
}

func apiNetworkDetails(r *vm.NetworkReport) *openapi.NetworkDetails {
	n := apiNetwork(&r.Network)
	out := &openapi.NetworkDetails{
		Name:       n.Name,
		Mode:       n.Mode,
		Bridge:     n.Bridge,
		Subnet:     n.Subnet,
		Gateway:    n.Gateway,
		IPv6Subnet: n.IPv6Subnet,
		DNS:        n.DNS,
		NTP:        n.NTP,
		Routes:     n.Routes,
		Domain:     n.Domain,
		MTU:        n.MTU,
		VLANID:     n.VLANID,
		IsolateVMs: n.IsolateVMs,
		Restrict:   n.Restrict,
		CreatedAt:  n.CreatedAt,
		UpdatedAt:  n.UpdatedAt,
		Interfaces: append([]string{}, r.Status.Interfaces...),
		Leases:     make([]openapi.Lease, len(r.Leases)),
		DNSLimited: r.Status.DNSLimited,
		Problems:   make([]openapi.NetworkProblem, len(r.Status.Problems)),

		SearchDomains: n.SearchDomains,
		DHCPOptions:   n.DHCPOptions,
		PXE:           n.PXE,
		DNSRecords:    n.DNSRecords,
		DNSForwarders: n.DNSForwarders,
	}
	if r.Free >= 0 {
		out.FreeAddresses = &r.Free
	}
	for i, l := range r.Leases {
		out.Leases[i] = openapi.Lease{
			VMID:      l.VMID,
			Slot:      l.Slot,
			MAC:       l.MAC,
			IP:        optionalAddr(l.IP),
			IPv6:      optionalAddr(l.IPv6),
			Hostname:  l.Hostname,
			AckedAt:   optionalTime(l.Acked),
			ExpiresAt: optionalTime(l.Expires),
		}
	}
	for i, p := range r.Status.Problems {
		out.Problems[i] = openapi.NetworkProblem{Detail: p.Detail, Fix: p.Fix}
	}
	return out
}

func optionalAddr(a netip.Addr) *string {
	if !a.IsValid() {
		return nil
	}
	s := a.String()
	return &s
}

func optionalPrefix(p netip.Prefix) *string {
	if !p.IsValid() {
		return nil
	}
	s := p.String()
	return &s
}

func apiAddrs(addrs []netip.Addr) []openapi.IPv4Address {
	out := make([]openapi.IPv4Address, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// An addressParser parses the addresses of a request and collects the faults. Its
// methods return nil for properties that are absent.
type addressParser struct{ faults []vm.FieldFault }

// err returns the collected faults as one error, or nil.
func (p *addressParser) err() error {
	if len(p.faults) == 0 {
		return nil
	}
	return invalid(p.faults...)
}

func (p *addressParser) fault(field, detail string) {
	p.faults = append(p.faults, vm.FieldFault{Field: field, Detail: detail})
}

func (p *addressParser) addr(field string, s *string) *netip.Addr {
	if s == nil {
		return nil
	}
	a, err := netip.ParseAddr(*s)
	if err != nil || !a.Is4() {
		p.fault(field, "must be an IPv4 address such as 192.168.100.1")
	}
	return &a
}

// either is addr for an address of any family.
func (p *addressParser) either(field string, s *string) *netip.Addr {
	if s == nil {
		return nil
	}
	a, err := netip.ParseAddr(*s)
	if err != nil || a.Zone() != "" {
		p.fault(field, "must be an IPv4 or IPv6 address, such as 192.0.2.1 or 2001:db8::1")
	}
	return &a
}

// prefixes parses a list of prefixes. An address is the prefix of that address alone.
func (p *addressParser) prefixes(field string, list *[]openapi.ExtraAddress) *[]netip.Prefix {
	if list == nil {
		return nil
	}
	out := make([]netip.Prefix, len(*list))
	for i, s := range *list {
		prefix, err := netip.ParsePrefix(s)
		if a, e := netip.ParseAddr(s); err != nil && e == nil && a.Zone() == "" {
			prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			p.fault(fmt.Sprintf("%s/%d", field, i), "must be an address or a prefix, such as 10.0.0.200, 10.0.0.224/28 or fd00::5")
		}
		out[i] = prefix
	}
	return &out
}

func (p *addressParser) addrs(field string, list *[]openapi.IPv4Address) *[]netip.Addr {
	if list == nil {
		return nil
	}
	out := make([]netip.Addr, len(*list))
	for i := range *list {
		out[i] = *p.addr(fmt.Sprintf("%s/%d", field, i), &(*list)[i])
	}
	return &out
}

func (p *addressParser) prefix(field string, s *string) *netip.Prefix {
	if s == nil {
		return nil
	}
	prefix, err := netip.ParsePrefix(*s)
	if err != nil {
		p.fault(field, "must be a subnet with its prefix length, such as 192.168.100.0/24 or fd00:1:2:3::/64")
	}
	return &prefix
}

func (p *addressParser) routes(field string, list *[]openapi.NetworkRoute) *[]vm.Route {
	if list == nil {
		return nil
	}
	out := make([]vm.Route, len(*list))
	for i := range *list {
		r := &(*list)[i]
		at := fmt.Sprintf("%s/%d", field, i)
		out[i] = vm.Route{
			Destination: *p.prefix(at+"/destination", &r.Destination),
			Gateway:     *p.addr(at+"/gateway", &r.Gateway),
		}
	}
	return &out
}
