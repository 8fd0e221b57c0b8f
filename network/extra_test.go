package network

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

func prefixes(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// extraFrames returns frames from addresses that only a guest with the extra addresses of
// withExtras may send.
func extraFrames(arrives bool) []frameCase {
	return []frameCase{
		{"ARP from an extra address", arrives, func(c cable, m []byte) []byte {
			return arp(c.mac, c.mac, 1, addr("192.168.100.200"), m)
		}},
		{"ARP from the last one of a prefix", arrives, func(c cable, m []byte) []byte {
			return arp(c.mac, c.mac, 2, addr("192.168.100.247"), m)
		}},
		{"ARP from another MAC inside", false, func(c cable, m []byte) []byte {
			return arp(c.mac, net.HardwareAddr{0, 0, 0x5e, 0, 1, 7}, 2, addr("192.168.100.200"), m)
		}},
		{"the virtual MAC address of VRRP", false, func(c cable, m []byte) []byte {
			virtual := net.HardwareAddr{0, 0, 0x5e, 0, 1, 7}
			return arp(virtual, virtual, 2, addr("192.168.100.200"), m)
		}},
		{"IPv4 from an extra address", arrives, func(c cable, m []byte) []byte {
			return ipv4(c.mac, addr("192.168.100.200"), addr("192.168.100.255"), 17, udp(4000, 4000, m))
		}},
		{"IPv4 from a prefix", arrives, func(c cable, m []byte) []byte {
			return ipv4(c.mac, addr("192.168.100.240"), addr("192.168.100.255"), 17, udp(4000, 4000, m))
		}},
		{"IPv4 from the address after a prefix", false, func(c cable, m []byte) []byte {
			return ipv4(c.mac, addr("192.168.100.248"), addr("192.168.100.255"), 17, udp(4000, 4000, m))
		}},
		{"IPv4 from the address before a prefix", false, func(c cable, m []byte) []byte {
			return ipv4(c.mac, addr("192.168.100.239"), addr("192.168.100.255"), 17, udp(4000, 4000, m))
		}},
		{"a DHCP offer from an extra address", false, func(c cable, m []byte) []byte {
			return ipv4(c.mac, addr("192.168.100.200"), addr("255.255.255.255"), 17, udp(67, 68, m))
		}},
		{"VRRP from its own address", true, func(c cable, m []byte) []byte {
			return ipv4(c.mac, c.ip, addr("224.0.0.18"), 112, m)
		}},
		{"IPv6 from an extra address", arrives, func(c cable, m []byte) []byte {
			return ipv6(c.mac, addr("fd00:64::5:5"), 17, udp(4000, 4000, m))
		}},
		{"IPv6 from a prefix", arrives, func(c cable, m []byte) []byte {
			return ipv6(c.mac, addr("fd00:64:0:0:1:2:3:4"), 17, udp(4000, 4000, m))
		}},
		{"IPv6 from outside of the prefix", false, func(c cable, m []byte) []byte {
			return ipv6(c.mac, addr("fd00:64:0:0:2::1"), 17, udp(4000, 4000, m))
		}},
		{"a neighbour advertisement for an extra address", arrives, func(c cable, m []byte) []byte {
			return ipv6(c.mac, addr("fe80::1234"), 58, icmp6(icmpv6NA, addr("fd00:64::5:5"), m))
		}},
		{"a probe for an extra address", arrives, func(c cable, m []byte) []byte {
			return ipv6(c.mac, addr("::"), 58, icmp6(icmpv6NS, addr("fd00:64::5:5"), m))
		}},
		{"a router advertisement from an extra address", false, func(c cable, m []byte) []byte {
			return ipv6(c.mac, addr("fd00:64::5:5"), 58, icmp6(icmpv6RA, addr("::"), m))
		}},
	}
}

func withExtras(v vm.VM) vm.VM {
	v.NICs = slices.Clone(v.NICs)
	v.NICs[0].Extra = prefixes("192.168.100.200/32", "192.168.100.240/29", "fd00:64::5:5/128", "fd00:64:0:0:1::/80")
	v.Revision++
	return v
}

func TestGuestsSendFromExtraAddresses(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	va, vb := guest("a", nw, 10), guest("b", nw, 11)
	a, b := plug(t, n, va, nw), plug(t, n, vb, nw)
	accepted := func(c cable) func(m []byte) []byte {
		return func(m []byte) []byte { return arp(c.mac, c.mac, 2, c.ip, m) }
	}
	update := func(v vm.VM) {
		t.Helper()
		if err := n.Update(t.Context(), v, map[string]vm.Network{nw.Name: nw}); err != nil {
			t.Fatal(err)
		}
	}
	sendAll(t, a, b, extraFrames(false), accepted(a))
	blocked := n.Blocked(t.Context(), va)
	if len(blocked) != 2 || !slices.Contains(blocked, vm.BlockedAddress{IP: addr("192.168.100.200")}) ||
		!slices.Contains(blocked, vm.BlockedAddress{IP: addr("fd00:64::5:5")}) {
		t.Errorf("blocked addresses %v", blocked)
	}
	if got := n.Blocked(t.Context(), vb); len(got) != 0 {
		t.Errorf("blocked addresses of the other VM %v", got)
	}
	update(withExtras(va))
	if got := n.Blocked(t.Context(), withExtras(va)); len(got) != 0 {
		t.Errorf("blocked addresses that are permitted now: %v", got)
	}
	sendAll(t, a, b, extraFrames(true), accepted(a))
	sendAll(t, a, b, assignedFrames, accepted(a))
	sendAll(t, b, a, extraFrames(false), accepted(b))
	update(withExtras(vb)) // both have them, as for VRRP
	sendAll(t, b, a, extraFrames(true), accepted(b))

	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{withExtras(va), withExtras(vb)}}
	settledPass(t, n, w)
	deleteTables(t)
	if d := reconcile(t, n, w, true); len(d) == 0 || !d[0].Repaired {
		t.Errorf("a pass after the deletion of the tables: %+v", d)
	}
	sendAll(t, a, b, extraFrames(true), accepted(a))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = newNetworks(t, n.o)
	if d := reconcile(t, n, w, true); len(d) != 0 {
		t.Errorf("the next daemon finds drift: %+v", d)
	}
	vb.Revision += 2
	update(vb)
	sendAll(t, b, a, extraFrames(false), accepted(b))
	sendAll(t, a, b, extraFrames(true), accepted(a))
}

// TestConnectionsOfASharedAddressOutliveOneNIC tracks a connection from an extra address that two
// NICs have.
func TestConnectionsOfASharedAddressOutliveOneNIC(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	va, vb := withExtras(guest("a", nw, 10)), withExtras(guest("b", nw, 11))
	connect(t, n, va, nw)
	connect(t, n, vb, nw)
	flow := &netlink.ConntrackFlow{
		FamilyType: unix.AF_INET, TimeOut: 60,
		Forward: netlink.IPTuple{
			SrcIP: net.ParseIP("192.168.100.241").To4(), DstIP: net.ParseIP("203.0.113.9").To4(),
			Protocol: unix.IPPROTO_UDP, SrcPort: 1000, DstPort: 2000,
		},
		Reverse: netlink.IPTuple{
			SrcIP: net.ParseIP("203.0.113.9").To4(), DstIP: net.ParseIP("192.168.100.241").To4(),
			Protocol: unix.IPPROTO_UDP, SrcPort: 2000, DstPort: 1000,
		},
	}
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, flow); err != nil {
		t.Fatal(err)
	}
	tracked := func() bool {
		t.Helper()
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(flows, func(f *netlink.ConntrackFlow) bool {
			return f.Forward.SrcIP.Equal(flow.Forward.SrcIP)
		})
	}
	for _, c := range []struct {
		vm   string
		want bool
	}{{"a", true}, {"b", false}} {
		if err := n.Disconnect(t.Context(), c.vm); err != nil {
			t.Fatal(err)
		}
		if tracked() != c.want {
			t.Errorf("after the end of VM %s, the connection is tracked: %v, want %v", c.vm, !c.want, c.want)
		}
	}
}

// TestMostExtraAddresses sets the extra addresses of 100 VMs with all NICs and as many addresses
// as they may have.
func TestMostExtraAddresses(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	var vms []vm.VM
	for i := range 100 {
		v := guest(string(rune('a'+i%26))+string(rune('a'+i/26)), nw, byte(i+10))
		for slot := range vm.MaxNICs {
			nic := v.NICs[0]
			nic.Slot, nic.Extra = slot, nil
			for e := range vm.MaxExtraAddresses {
				nic.Extra = append(nic.Extra, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 100, byte(120 + 2*e)}), 31))
			}
			if slot > 0 {
				v.NICs = append(v.NICs, nic)
			} else {
				v.NICs[0] = nic
			}
		}
		vms = append(vms, v)
	}
	began := time.Now()
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: vms}
	if _, err := n.Reconcile(t.Context(), w, true); err != nil {
		t.Fatal(err)
	}
	t.Logf("12,800 extra addresses: %v", time.Since(began))
	began = time.Now()
	vms[0].NICs[0].Extra = nil
	if err := n.setVMRules(vms[0]); err != nil {
		t.Fatal(err)
	}
	t.Logf("removed 16: %v", time.Since(began))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.firewall.verified = false
	began = time.Now()
	if found, err := n.firewall.check(); err != nil || len(found) > 0 {
		t.Errorf("the rules differ: %v, %v", found, err)
	}
	t.Logf("read: %v", time.Since(began))
}
