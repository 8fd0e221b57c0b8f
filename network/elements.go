package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// An element is one entry of a set or a map. It can be compared.
type element struct {
	set  string
	key  string // as the kernel has it
	data string // of a map, as the kernel has it; of setRates the rate in bytes per second
	end  bool   // key is the first one after a range
}

// A mapKey identifies the entry of a map, which has one value.
type mapKey struct{ set, key string }

func (e element) mapKey() mapKey { return mapKey{e.set, e.key} }

func networkOwner(name string) string { return "network/" + name }
func vmOwner(id string) string        { return "vm/" + id }

// networkElements returns what is in the sets because of a network.
func networkElements(n vm.Network) []element {
	if !n.Mode.Managed() {
		return nil
	}
	bridge := string(ifname(n.Bridge))
	all := []element{{set: setBridges, key: bridge}}
	if !n.IsolateVMs {
		all = append(all, element{set: setWithin, key: bridge + bridge})
	}
	if n.Mode != vm.NetworkNAT {
		return all
	}
	all = append(all, element{set: setNAT, key: bridge})
	all = append(all, rangeElements(setSubnets, n.Subnet)...)
	if n.IPv6.IsValid() && n.IPv6.Addr().IsPrivate() { // others know the way to a public prefix
		all = append(all, rangeElements(setSubnets6, n.IPv6)...)
	}
	return all
}

// rangeElements are the first address of a subnet and the first one after it.
func rangeElements(set string, p netip.Prefix) []element {
	first := p.Masked().Addr().AsSlice()
	after := slices.Clone(first)
	for i, bit := (p.Bits()-1)/8, 1<<(7-(p.Bits()-1)%8); i >= 0 && bit > 0; i, bit = i-1, 1 {
		sum := int(after[i]) + bit
		after[i] = byte(sum)
		if sum < 256 {
			break
		}
	}
	return []element{{set: set, key: string(first)}, {set: set, key: string(after), end: true}}
}

// vmElements returns what is in the sets because of a VM: what its guests may
// send, how much, and which ports lead to it.
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
		if err != nil || nic.Mode != vm.NetworkNAT || !nic.IP.Is4() {
			continue
		}
		all = append(all, forwardElement(f, nic.IP))
	}
	return all
}

func nicElements(nic vm.NIC, tap string) []element {
	name := string(ifname(tap))
	set := setLearned
	if nic.Mode.Managed() {
		set = setAssigned
	}
	all := []element{{set: set, key: name}}
	if nic.Mode == vm.NetworkNAT {
		all = append(all, element{set: setHairpins, key: name + name})
	}
	if mac, err := net.ParseMAC(nic.MAC); err == nil && len(mac) == 6 {
		all = append(all, element{set: setMACs, key: name + string(mac) + "\x00\x00"})
	}
	if nic.Mode.Managed() && nic.IP.Is4() {
		all = append(all, element{set: setIPs, key: name + string(nic.IP.AsSlice())})
	}
	if nic.Mode.Managed() && nic.IPv6.Is6() {
		all = append(all, element{set: setIPs6, key: name + string(nic.IPv6.AsSlice())})
	}
	if nic.RateOut > 0 {
		rate := binary.BigEndian.AppendUint64(nil, uint64(nic.RateOut)*1000/8)
		all = append(all, element{set: setRates, key: name, data: string(rate)})
	}
	return all
}

func forwardElement(f vm.PortForward, guest netip.Addr) element {
	proto := byte(unix.IPPROTO_TCP)
	if f.Protocol == vm.UDP {
		proto = unix.IPPROTO_UDP
	}
	e := element{set: setAnywhere, key: string(portKey(proto, f.HostPort)), data: string(guest.AsSlice()) + string(portPart(f.GuestPort))}
	if f.HostAddress.Is4() && !f.HostAddress.IsUnspecified() {
		e.set, e.key = setForwards, string(f.HostAddress.AsSlice())+e.key
	}
	return e
}
