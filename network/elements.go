package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// An element is one entry of an nftables set or map. Elements are comparable.
type element struct {
	set  string // name of the set or map
	key  string // as the kernel encodes it
	data string // the value in a map, as the kernel encodes it; in setRates bytes per second
	end  bool   // key is the first one after a range
	last string // the last key of a range, of which key is the first; empty for one key
}

// A mapKey identifies the entry of a map, which has one value.
type mapKey struct{ set, key string }

func (e element) mapKey() mapKey { return mapKey{e.set, e.key} }

// Owners of elements.
func networkOwner(networkName string) string { return "network/" + networkName }
func vmOwner(id string) string               { return "vm/" + id }

// networkElements returns the elements of a network.
func networkElements(nw vm.Network) []element {
	if !nw.Mode.Managed() {
		return nil
	}
	bridge := string(ifname(nw.Bridge))
	all := []element{
		{set: setBridges, key: bridge},
		servedElement(setServed, nw, nw.Gateway, 53),
		servedElement(setServed, nw, nw.Gateway, 67),
	}
	if nw.IPv6.IsValid() {
		all = append(all, servedElement(setServed6, nw, nw.GatewayIPv6(), 53))
	}
	if !nw.IsolateVMs {
		all = append(all, element{set: setWithin, key: bridge + bridge})
	}
	if nw.Mode != vm.NetworkNAT {
		return all
	}
	all = append(all, element{set: setNAT, key: bridge})
	all = append(all, rangeElements(setSubnets, nw.Subnet)...)
	if !nw.IPv6.IsValid() {
		return all
	}
	all = append(all, rangeElements(setGuests6, nw.IPv6)...)
	if nw.IPv6.Addr().IsPrivate() { // a public prefix is routed, not masqueraded
		all = append(all, rangeElements(setSubnets6, nw.IPv6)...)
	}
	return all
}

func servedElement(set string, nw vm.Network, address netip.Addr, port int) element {
	return element{set: set, key: string(ifname(nw.Bridge)) + string(address.AsSlice()) + string(portPart(port))}
}

// rangeElements returns the two elements of a subnet: its first address, and the first
// address after it.
func rangeElements(set string, p netip.Prefix) []element {
	first := p.Masked().Addr().AsSlice()
	after := slices.Clone(first)
	last := (p.Bits() - 1) / 8
	bit := 1 << (7 - (p.Bits()-1)%8)
	for i := last; i >= 0; i-- {
		sum := int(after[i]) + bit
		after[i] = byte(sum)
		if sum < 256 {
			break
		}
		bit = 1 // carry
	}
	return []element{{set: set, key: string(first)}, {set: set, key: string(after), end: true}}
}

// vmElements returns the elements of a VM: the addresses and the rate that its guest may
// send with, and the port forwards to it.
func vmElements(v vm.VM) []element {
	var all []element
	for _, nic := range v.NICs {
		if nic.Mode == vm.NetworkUser {
			continue
		}
		all = append(all, nicElements(nic, tapName(v.UUID, nic.Slot))...)
	}
	for _, f := range v.Forwards {
		nic, err := v.NIC(f.Slot)
		if err != nil || nic.Mode != vm.NetworkNAT {
			continue
		}
		all = append(all, forwardElements(f, nic)...)
	}
	return all
}

func nicElements(nic vm.NIC, tapName string) []element {
	tap := string(ifname(tapName))
	set := setLearned
	if nic.Mode.Managed() {
		set = setAssigned
	}
	all := []element{{set: set, key: tap}}
	if nic.Mode == vm.NetworkNAT {
		all = append(all, element{set: setHairpins, key: tap + tap})
	}
	if mac, err := net.ParseMAC(nic.MAC); err == nil && len(mac) == 6 {
		all = append(all, element{set: setMACs, key: tap + string(mac) + "\x00\x00"})
	}
	if nic.Mode.Managed() && nic.IP.Is4() {
		all = append(all, element{set: setIPs, key: tap + string(nic.IP.AsSlice())})
	}
	if nic.Mode.Managed() && nic.IPv6.Is6() {
		all = append(all, element{set: setIPs6, key: tap + string(nic.IPv6.AsSlice())})
	}
	if nic.Mode.Managed() {
		for _, p := range nic.Extra {
			all = append(all, extraElement(tap, p))
		}
	}
	if nic.RateOut > 0 {
		rate := binary.BigEndian.AppendUint64(nil, uint64(nic.RateOut)*1000/8)
		all = append(all, element{set: setRates, key: tap, data: string(rate)})
	}
	return all
}

// extraElement returns the element of an extra address of the guest behind a tap.
func extraElement(tap string, p netip.Prefix) element {
	set := setExtras
	if p.Addr().Is6() {
		set = setExtras6
	}
	first, last := p.Masked().Addr(), vm.LastAddr(p)
	return element{set: set, key: tap + string(first.AsSlice()), last: tap + string(last.AsSlice())}
}

// addressRange returns the range of extra addresses that e is. It is not ok if e is of another
// set.
func (e element) addressRange() (first, last netip.Addr, ok bool) {
	if e.set != setExtras && e.set != setExtras6 {
		return first, last, false
	}
	first, _ = netip.AddrFromSlice([]byte(e.key)[unix.IFNAMSIZ:])
	last, ok = netip.AddrFromSlice([]byte(e.last)[unix.IFNAMSIZ:])
	return first, last, ok
}

// forwardElements returns an element for each port of a forward: the kernel cannot translate a
// range of ports to another one with the offset kept, except by a map.
func forwardElements(f vm.PortForward, nic vm.NIC) []element {
	guest, one, every := nic.IP, setForwards, setAnywhere
	if f.HostAddress.Is6() {
		guest, one, every = nic.IPv6, setForwards6, setAnywhere6
	}
	if !guest.IsValid() {
		return nil
	}
	proto := byte(unix.IPPROTO_TCP)
	if f.Protocol == vm.UDP {
		proto = unix.IPPROTO_UDP
	}
	set, prefix := every, ""
	if f.HostAddress.IsValid() && !f.HostAddress.IsUnspecified() {
		set, prefix = one, string(f.HostAddress.AsSlice())
	}
	all := make([]element, 0, f.Count())
	for p := range f.Each() {
		all = append(all, element{
			set:  set,
			key:  prefix + string(portKey(proto, p.HostPort)),
			data: string(guest.AsSlice()) + string(portPart(p.GuestPort)),
		})
	}
	return all
}
