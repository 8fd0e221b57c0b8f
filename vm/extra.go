package vm

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// MaxExtraAddresses is the maximum number of extra addresses of a NIC.
const MaxExtraAddresses = 16

// CheckExtraAddresses returns a [Fault] of code [CodeInvalid] if a NIC on n cannot have these
// extra addresses. field is the JSON pointer of the list in the request. It does not check
// whether other NICs have the addresses.
func (n Network) CheckExtraAddresses(field string, list []netip.Prefix) error {
	if len(list) == 0 {
		return nil
	}
	if !n.Mode.Managed() {
		return InvalidField(field, "is not supported on a network of mode %s, where vmand does not limit the addresses "+
			"of guests", n.Mode)
	}
	if len(list) > MaxExtraAddresses {
		return InvalidField(field, "must have at most %d entries", MaxExtraAddresses)
	}
	for i, p := range list {
		at := fmt.Sprintf("%s/%d", field, i)
		if err := n.checkExtraAddress(at, p); err != nil {
			return err
		}
		for _, q := range list[:i] {
			if p.Overlaps(q) {
				return InvalidField(at, "%s overlaps the entry %s", p, q)
			}
		}
	}
	return nil
}

func (n Network) checkExtraAddress(field string, p netip.Prefix) error {
	if !p.IsValid() || p.Addr().Is4In6() {
		return InvalidField(field, "must be an address or a prefix such as %s", netip.PrefixFrom(n.Gateway.Next(), 32))
	}
	subnet, gateway := n.Subnet, n.Gateway
	if p.Addr().Is6() {
		subnet, gateway = n.IPv6, n.GatewayIPv6()
	}
	switch {
	case !subnet.IsValid():
		return InvalidField(field, "%s is an IPv6 address, and network %s has no ipv6_subnet", p, n.Name)
	case p != p.Masked():
		return InvalidField(field, "%s is not the first address of the prefix: use %s or %s",
			p, p.Masked(), netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	case p.Bits() < subnet.Bits() || !subnet.Contains(p.Addr()):
		return InvalidField(field, "%s is not in the subnet %s of network %s", p, subnet, n.Name)
	case p.Contains(gateway):
		return InvalidField(field, "%s contains %s, the gateway of network %s", p, gateway, n.Name)
	case p.Addr().Is4() && p.IsSingleIP() && !isHostAddr(subnet, p.Addr()):
		return InvalidField(field, "%s is not a host address in %s", p, subnet)
	case p.Addr().Is4() && !isHostAddr(subnet, p.Addr()):
		return InvalidField(field, "%s contains %s, the network address of %s", p, p.Addr(), subnet)
	case p.Addr().Is4() && !isHostAddr(subnet, LastAddr(p)):
		return InvalidField(field, "%s contains %s, the broadcast address of %s", p, LastAddr(p), subnet)
	}
	return nil
}

// AssignedIn returns the first and the last IPv4 address in the subnet of n with which a NIC would
// have an IPv4 or IPv6 address in p; see [Network.AddressIPv6]. It is not ok if there is none.
func (n Network) AssignedIn(p netip.Prefix) (first, last netip.Addr, ok bool) {
	if !n.Subnet.IsValid() || !p.IsValid() {
		return first, last, false
	}
	if p.Addr().Is4() {
		return p.Addr(), LastAddr(p), n.Subnet.Contains(p.Addr())
	}
	from, to := p.Masked().Addr().As16(), LastAddr(p).As16()
	// The offset of an assigned address has at most 32 bits.
	high := func(a [16]byte) uint32 { return binary.BigEndian.Uint32(a[8:]) }
	low := func(a [16]byte) uint32 { return binary.BigEndian.Uint32(a[12:]) }
	size := uint32(1) << (32 - n.Subnet.Bits())
	if !n.IPv6.Contains(p.Addr()) || high(from) > 0 || low(from) >= size {
		return first, last, false
	}
	end := size - 1
	if high(to) == 0 {
		end = min(end, low(to))
	}
	at := func(offset uint32) netip.Addr {
		base := n.Subnet.Addr().As4()
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(base[:])+offset)
		return netip.AddrFrom4(a)
	}
	return at(low(from)), at(end), true
}
