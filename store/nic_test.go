package store

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

// makeNIC returns a NIC on a NAT network; it has the MAC of no other IP.
func makeNIC(slot int, network, ip string) vm.NIC {
	return vm.NIC{Slot: slot, Network: network, Mode: vm.NetworkNAT, MAC: vm.MACOf(ip, slot), Model: vm.NICVirtio,
		IP: netip.MustParseAddr(ip), State: vm.NICAttached}
}

// withNICs returns a VM that has the given NICs.
func withNICs(i int, nics ...vm.NIC) vm.VM {
	v := makeVM(i)
	v.NICs = nics
	return v
}

// makeForward returns a forward of a port of the host, such as "127.0.0.1:8080".
func makeForward(id string, p vm.Protocol, listens string) vm.PortForward {
	a := netip.MustParseAddrPort(listens)
	return vm.PortForward{ID: id, Protocol: p, HostAddress: a.Addr(), HostPort: int(a.Port()), GuestPort: 22}
}

func TestEveryFieldOfANICAndAForwardComesBack(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	full := vm.NIC{Slot: 7, Network: "lan", Mode: vm.NetworkIsolated, MAC: "52:00:00:00:00:01", Model: vm.NICE1000e, IP: netip.MustParseAddr("10.0.0.7"),
		IPv6: netip.MustParseAddr("fd00::7"), RateIn: 1, RateOut: vm.MaxRateKbit, LinkDown: true, State: vm.NICDetaching}
	bare := vm.NIC{Network: "lan", Mode: vm.NetworkBridge, MAC: "52:00:00:00:00:02", Model: vm.NICVirtio, State: vm.NICAttaching}
	v := withNICs(0, bare, full)
	v.Forwards = []vm.PortForward{
		{ID: "pf-b", Slot: 7, Protocol: vm.UDP, HostAddress: netip.MustParseAddr("0.0.0.0"), HostPort: 65535, GuestPort: 1},
		{ID: "pf-a", Slot: 0, Protocol: vm.TCP, HostAddress: netip.MustParseAddr("192.0.2.1"), HostPort: 1, GuestPort: 65535},
	}
	apply(t, s, vm.Change{NewVM: &v})
	for _, reason := range []string{"", "the guest is mute", "a,b;c:d", "5:", "0:;0,lan", "new\nline", "a\x00b", "\xff not UTF-8", "名前 😀", strings.Repeat(";", 100_000)} {
		v.NICs[1].Reason = reason
		apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
		got := s.mustVM(t, v.ID)
		if !reflect.DeepEqual(got.NICs, v.NICs) || !reflect.DeepEqual(got.Forwards, v.Forwards) {
			t.Errorf("reason %.20q: read %.500q, %+v; want %.500q, %+v", reason, fmt.Sprint(got.NICs), got.Forwards, fmt.Sprint(v.NICs), v.Forwards)
		}
	}
	v.NICs, v.Forwards = nil, []vm.PortForward{}
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	if got := s.mustVM(t, v.ID); got.NICs != nil || got.Forwards != nil {
		t.Errorf("read %+v, %+v; want none", got.NICs, got.Forwards)
	}
	var left int
	must(t, s.reader.Get(&left, `SELECT (SELECT count(*) FROM addresses) + (SELECT count(*) FROM host_ports) + count(nics) + count(forwards) FROM vms`))
	if left != 0 {
		t.Errorf("%d things are left of the NICs and the forwards", left)
	}
}

func TestWhatIsReadOfOneVMIsNotAnothers(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	for i := range 4 {
		v := makeVM(i)
		for slot := range i {
			v.NICs = append(v.NICs, makeNIC(slot, "lan", fmt.Sprintf("10.0.%d.%d", i, slot)))
			v.Forwards = append(v.Forwards, makeForward(fmt.Sprint("pf-", slot), vm.TCP, fmt.Sprintf("127.0.0.1:%d", 100*i+slot+1)))
		}
		apply(t, s, vm.Change{NewVM: &v, Learned: []vm.Learned{{VMID: v.ID, Boot: vm.Boot{DHCP: at.Add(time.Duration(i) * time.Second)}}}})
	}
	list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{})
	must(t, err)
	for i, v := range list {
		if len(v.NICs) != i || len(v.Forwards) != i || !v.Boot.DHCP.Equal(at.Add(time.Duration(i)*time.Second)) {
			t.Errorf("VM %d has the NICs %+v, the forwards %+v and %+v", i, v.NICs, v.Forwards, v.Boot)
		}
		for slot, n := range v.NICs {
			if want := fmt.Sprintf("10.0.%d.%d", i, slot); n.IP.String() != want {
				t.Errorf("NIC %d of VM %d has %s; want %s", slot, i, n.IP, want)
			}
		}
	}
	for range 2 { // the first reads the row, the second what is kept of it
		v := s.mustVM(t, makeVM(3).ID)
		v.NICs[0].Network, v.Forwards[0].ID = "changed", "changed"
		if again := s.mustVM(t, v.ID); again.NICs[0].Network != "lan" || again.Forwards[0].ID != "pf-0" {
			t.Fatalf("what one reader changed, another reads: %+v, %+v", again.NICs[0], again.Forwards[0])
		}
	}
}

func TestWhatWouldNotComeBackIsNotRecorded(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	good := withNICs(0, makeNIC(0, "lan", "10.0.0.7"))
	good.Forwards = []vm.PortForward{makeForward("pf-a", vm.TCP, "127.0.0.1:80")}
	apply(t, s, vm.Change{NewVM: &good})
	for name, spoil := range map[string]func(*vm.NIC, *vm.PortForward){
		"a network with a comma":           func(n *vm.NIC, _ *vm.PortForward) { n.Network = "l,an" },
		"a MAC with a comma":               func(n *vm.NIC, _ *vm.PortForward) { n.MAC = "a,b" },
		"no network":                       func(n *vm.NIC, _ *vm.PortForward) { n.Network = "" },
		"no MAC":                           func(n *vm.NIC, _ *vm.PortForward) { n.MAC = "" },
		"no mode":                          func(n *vm.NIC, _ *vm.PortForward) { n.Mode = "" },
		"an unknown model":                 func(n *vm.NIC, _ *vm.PortForward) { n.Model = "ne2000" },
		"an unknown state":                 func(n *vm.NIC, _ *vm.PortForward) { n.State = "lost" },
		"a slot too high":                  func(n *vm.NIC, _ *vm.PortForward) { n.Slot = vm.MaxNICs },
		"a slot below 0":                   func(n *vm.NIC, _ *vm.PortForward) { n.Slot = -1 },
		"a rate below 0":                   func(n *vm.NIC, _ *vm.PortForward) { n.RateIn = -1 },
		"an IPv6 for an IPv4":              func(n *vm.NIC, _ *vm.PortForward) { n.IP = netip.MustParseAddr("fd00::1") },
		"a forward of no id":               func(_ *vm.NIC, f *vm.PortForward) { f.ID = "" },
		"a forward of no protocol":         func(_ *vm.NIC, f *vm.PortForward) { f.Protocol = "" },
		"a forward of no host port":        func(_ *vm.NIC, f *vm.PortForward) { f.HostPort = 0 },
		"a forward of a port that is none": func(_ *vm.NIC, f *vm.PortForward) { f.GuestPort = 65536 },
		"a forward of no host address":     func(_ *vm.NIC, f *vm.PortForward) { f.HostAddress = netip.Addr{} },
	} {
		bad := s.mustVM(t, good.ID)
		spoil(&bad.NICs[0], &bad.Forwards[0])
		err := s.applyErr(t.Context(), vm.Change{VM: &vm.VMUpdate{From: bad.State, VM: bad}})
		if err == nil || vm.ProblemOf(err).Code != vm.CodeInternal {
			t.Errorf("%s: %v; want an error of no class", name, err)
		}
		bad.ID, bad.UUID = "new", "new"
		if err := s.applyErr(t.Context(), vm.Change{NewVM: &bad}); err == nil {
			t.Errorf("%s: a new VM of it is recorded", name)
		}
	}
	if got := s.mustVM(t, good.ID); got.Revision != 1 || !reflect.DeepEqual(got.NICs, good.NICs) || !reflect.DeepEqual(got.Forwards, good.Forwards) {
		t.Errorf("read %+v; want it untouched", got)
	}
}

func TestAColumnThatIsNotPackedRightIsAnError(t *testing.T) {
	const nic, forward, times = "0,lan,nat,52:00:00:00:00:01,virtio,10.0.0.7,fd00::7,0,0,up,attached,4:mute;", "pf-a,0,tcp,127.0.0.1,80,8080;", "1,2,3,4,5;"
	var v vm.VM
	scan := func(column string, src any) error {
		switch column {
		case "nics":
			return (*nics)(&v.NICs).Scan(src)
		case "forwards":
			return (*forwards)(&v.Forwards).Scan(src)
		}
		return (&facts{&v}).Scan(src)
	}
	for column, good := range map[string]string{"nics": nic + nic, "forwards": forward + forward, "facts": times + "0,10.0.0.9,neighbour,6;"} {
		must(t, scan(column, good))
		for i := range good { // cut off anywhere but between records
			if whole := good[:i] == "" || good[:i] == nic || good[:i] == forward || good[:i] == times; (scan(column, good[:i]) == nil) != whole {
				t.Errorf("%s %q: want an error: %t", column, good[:i], !whole)
			}
		}
	}
	for _, tt := range []struct{ column, good, old, new string }{
		{"nics", nic, "0,lan", "00,lan"}, {"nics", nic, "0,lan", "+0,lan"}, {"nics", nic, "0,lan", "8,lan"}, {"nics", nic, "0,lan", ",lan"},
		{"nics", nic, "0,lan", "-1,lan"}, {"nics", nic, "lan", ""}, {"nics", nic, "nat", "NAT"}, {"nics", nic, "10.0.0.7", "10.0.0.07"},
		{"nics", nic, "10.0.0.7", "ten"}, {"nics", nic, "up", "UP"}, {"nics", nic, "attached", ""}, {"nics", nic, "4:", "3:"}, {"nics", nic, "4:", "5:"},
		{"nics", nic, "4:", "04:"}, {"nics", nic, "4:", "99999999999999999999:"}, {"nics", nic, "4:", "-1:"}, {"nics", nic, "0,0,up", "0,9999999999,up"},
		{"nics", nic, "mute;", "mute; "}, {"forwards", forward, "tcp", "icmp"}, {"forwards", forward, "8080", "65536"}, {"forwards", forward, "80,", "8O,"},
		{"facts", times, "1,", "1.5,"}, {"facts", times, "5;", "9999999999999999999;"}, {"facts", times, "5;", "5;0,10.0.0.9,rumour,6;"},
	} {
		bad := strings.Replace(tt.good, tt.old, tt.new, 1)
		if err := scan(tt.column, bad); bad == tt.good || err == nil {
			t.Errorf("%s %q is taken", tt.column, bad)
		}
	}
	if scan("nics", int64(1)) == nil || scan("facts", []byte(times)) == nil {
		t.Error("a number or a blob is taken")
	}
}

func FuzzNICsAreReadAsTheyWereWritten(f *testing.F) {
	f.Add("0,lan,nat,52:00:00:00:00:01,virtio,10.0.0.7,,0,0,up,attached,0:;")
	f.Add("7,lan,bridge,m,e1000e,,fd00::1,5,6,down,detaching,3:a,;;")
	f.Fuzz(func(t *testing.T, column string) {
		var read, again nics
		if read.Scan(column) != nil {
			return
		}
		written, err := packNICs(read)
		if err == nil {
			err = again.Scan(string(written))
		}
		if err != nil || !reflect.DeepEqual(read, again) {
			t.Errorf("%q is read as %+v, written as %q and read as %+v, %v", column, read, written, again, err)
		}
	})
}
