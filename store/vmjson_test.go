package store

import (
	"database/sql/driver"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

// makeNIC returns a NIC on a NAT network. Its MAC address depends on ip.
func makeNIC(slot int, network, ip string) vm.NIC {
	return vm.NIC{Slot: slot, Network: network, Mode: vm.NetworkNAT, MAC: vm.MACOf(ip, slot), Model: vm.NICVirtio,
		IP: netip.MustParseAddr(ip), State: vm.NICAttached}
}

// withNICs returns a VM with the given NICs.
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
		IPv6: netip.MustParseAddr("fd00::7"), Extra: []netip.Prefix{netip.MustParsePrefix("10.0.0.32/28"), netip.MustParsePrefix("fd00::5/128")}, RateIn: 1, RateOut: vm.MaxRateKbit, LinkDown: true, State: vm.NICDetaching}
	bare := vm.NIC{Network: "lan", Mode: vm.NetworkBridge, MAC: "52:00:00:00:00:02", Model: vm.NICVirtio, State: vm.NICAttaching}
	v := withNICs(0, bare, full)
	v.Forwards = []vm.PortForward{
		{ID: "pf-b", Slot: 7, Protocol: vm.UDP, HostAddress: netip.MustParseAddr("0.0.0.0"), HostPort: 65535, GuestPort: 1},
		{ID: "pf-a", Slot: 0, Protocol: vm.TCP, HostAddress: netip.MustParseAddr("192.0.2.1"), HostPort: 1, GuestPort: 65535},
		{ID: "pf-c", Slot: 0, Protocol: vm.TCP, HostAddress: netip.MustParseAddr("2001:db8::1"), HostPort: 1, GuestPort: 9, Ports: 1000},
	}
	apply(t, s, vm.Change{NewVM: &v})
	for _, reason := range []string{"", "the guest is mute", "a,b;c:d", "5:", "0:;0,lan", "new\nline", "a\x00b", "\xff not UTF-8", "名前 😀", strings.Repeat(";", 100_000)} {
		v.NICs[1].Reason = reason
		apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
		got := s.mustVM(t, v.ID)
		v.NICs[1].Reason = strings.ToValidUTF8(reason, "\ufffd") // JSON is UTF-8
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
	must(t, s.reader.Get(&left, `SELECT (SELECT count(*) FROM vm_addresses) + (SELECT count(*) FROM vm_host_ports) + (SELECT count(*) FROM vm_extra_addresses) + count(nics) + count(forwards) FROM vms`))
	if left != 0 {
		t.Errorf("%d values are left of the NICs and the forwards", left)
	}
}

func TestReadVMsDoNotShareLists(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	for i := range 4 {
		v := makeVM(i)
		for slot := range i {
			v.NICs = append(v.NICs, makeNIC(slot, "lan", fmt.Sprintf("10.0.%d.%d", i, slot)))
			v.NICs[slot].Extra = []netip.Prefix{netip.MustParsePrefix("10.0.9.9/32")}
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
	for range 2 { // first from the database, then from the cache
		v := s.mustVM(t, makeVM(3).ID)
		v.NICs[0].Network, v.Forwards[0].ID, v.NICs[0].Extra[0] = "changed", "changed", netip.Prefix{}
		if again := s.mustVM(t, v.ID); again.NICs[0].Network != "lan" || again.Forwards[0].ID != "pf-0" || !again.NICs[0].Extra[0].IsValid() {
			t.Fatalf("a change by one reader is visible to another: %+v, %+v", again.NICs[0], again.Forwards[0])
		}
	}
}

func TestListsWithInvalidValuesAreNotRecorded(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	good := withNICs(0, makeNIC(0, "lan", "10.0.0.7"))
	good.Forwards = []vm.PortForward{makeForward("pf-a", vm.TCP, "127.0.0.1:80")}
	apply(t, s, vm.Change{NewVM: &good})
	for name, spoil := range map[string]func(*vm.NIC, *vm.PortForward){
		"no network":                   func(n *vm.NIC, _ *vm.PortForward) { n.Network = "" },
		"no MAC":                       func(n *vm.NIC, _ *vm.PortForward) { n.MAC = "" },
		"no mode":                      func(n *vm.NIC, _ *vm.PortForward) { n.Mode = "" },
		"an unknown model":             func(n *vm.NIC, _ *vm.PortForward) { n.Model = "ne2000" },
		"an unknown state":             func(n *vm.NIC, _ *vm.PortForward) { n.State = "lost" },
		"a slot too high":              func(n *vm.NIC, _ *vm.PortForward) { n.Slot = vm.MaxNICs },
		"a slot below 0":               func(n *vm.NIC, _ *vm.PortForward) { n.Slot = -1 },
		"a rate below 0":               func(n *vm.NIC, _ *vm.PortForward) { n.RateIn = -1 },
		"an IPv6 for an IPv4":          func(n *vm.NIC, _ *vm.PortForward) { n.IP = netip.MustParseAddr("fd00::1") },
		"a forward of no id":           func(_ *vm.NIC, f *vm.PortForward) { f.ID = "" },
		"a forward of no protocol":     func(_ *vm.NIC, f *vm.PortForward) { f.Protocol = "" },
		"a forward of no host port":    func(_ *vm.NIC, f *vm.PortForward) { f.HostPort = 0 },
		"a forward to an invalid port": func(_ *vm.NIC, f *vm.PortForward) { f.GuestPort = 65536 },
		"a range past the last port":   func(_ *vm.NIC, f *vm.PortForward) { f.GuestPort, f.Ports = 65535, 2 },
		"a range that is too long":     func(_ *vm.NIC, f *vm.PortForward) { f.Ports = vm.MaxPorts + 1 },
		"a forward of no host address": func(_ *vm.NIC, f *vm.PortForward) { f.HostAddress = netip.Addr{} },
	} {
		bad := s.mustVM(t, good.ID)
		spoil(&bad.NICs[0], &bad.Forwards[0])
		err := s.applyErr(t.Context(), vm.Change{VM: &vm.VMUpdate{From: bad.State, VM: bad}})
		if err == nil || vm.ProblemOf(err).Code != vm.CodeInternal {
			t.Errorf("%s: %v; want an error of no class", name, err)
		}
		bad.ID, bad.UUID = "new", "new"
		if err := s.applyErr(t.Context(), vm.Change{NewVM: &bad}); err == nil {
			t.Errorf("%s: a new VM with it is recorded", name)
		}
	}
	if got := s.mustVM(t, good.ID); got.Revision != 1 || !reflect.DeepEqual(got.NICs, good.NICs) || !reflect.DeepEqual(got.Forwards, good.Forwards) {
		t.Errorf("read %+v; want it unchanged", got)
	}
}

func TestTheListsOfAVMAreJSONThatSQLiteReads(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	v := withNICs(0, makeNIC(0, "lan", "10.0.0.7"), makeNIC(3, "lan", "10.0.0.8"))
	v.NICs[1].RateIn, v.NICs[1].LinkDown = 1000, true
	v.Forwards = []vm.PortForward{makeForward("pf-a", vm.TCP, "127.0.0.1:80")}
	v.CDROMs = []vm.CDROM{{ID: vm.SeedCDROM}, {ID: "cd-1", Image: "debian", SHA256: someSum, BootIndex: 7}}
	learned := []vm.LearnedAddress{{Slot: 3, IP: netip.MustParseAddr("fd00::9"), Source: vm.SourceAgent, At: at}}
	apply(t, s, vm.Change{NewVM: &v, Learned: []vm.Learned{{VMID: v.ID, Boot: vm.Boot{DHCP: at}, Addresses: &learned}}})
	for query, want := range map[string]string{
		`SELECT nics -> '$[0]' FROM vms`: `{"slot":0,"network":"lan","mode":"nat","mac":"` + v.NICs[0].MAC +
			`","model":"virtio","ip":"10.0.0.7","state":"attached"}`,
		`SELECT group_concat(value ->> '$.ip') FROM vms, json_each(nics)`:      "10.0.0.7,10.0.0.8",
		`SELECT nics ->> '$[1].rate_in_kbit' FROM vms`:                         "1000",
		`SELECT nics ->> '$[1].link_down' FROM vms`:                            "1",
		`SELECT forwards ->> '$[0].host_port' FROM vms`:                        "80",
		`SELECT group_concat(value ->> '$.id') FROM vms, json_each(cdroms)`:    "seed,cd-1",
		`SELECT boot FROM vms`:                                                 `{"dhcp":1741064767089}`,
		`SELECT learned FROM vms`:                                              `[{"slot":3,"ip":"fd00::9","source":"agent","at":1741064767089}]`,
		`SELECT vms.id FROM vms, json_each(nics) WHERE value ->> '$.slot' = 3`: v.ID,
		`SELECT datetime(boot ->> '$.dhcp' / 1000, 'unixepoch') FROM vms`:      "2025-03-04 05:06:07",
		`SELECT cdroms ->> '$[1].sha256' = '` + someSum + `' FROM vms`:         "1",
		`SELECT count(*) FROM vm_contents WHERE sha256 = '` + someSum + `'`:    "1",
	} {
		var got string
		if err := s.reader.Get(&got, query); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", query, got, err, want)
		}
	}
}

func TestAColumnWithInvalidJSONIsAnError(t *testing.T) {
	for name, tt := range map[string]struct {
		column interface {
			Scan(any) error
			Value() (driver.Value, error)
		}
		good string
	}{
		"nics":     {&nics{}, `[{"slot":1,"network":"lan","mode":"nat","mac":"m","model":"virtio","ip":"10.0.0.7","state":"attached"}]`},
		"forwards": {&forwards{}, `[{"id":"pf-a","slot":0,"protocol":"tcp","host_address":"127.0.0.1","host_port":80,"guest_port":8080}]`},
		"cdroms":   {&cdroms{}, `[{"id":"seed"},{"id":"cd-1","image":"a","sha256":"5a","boot_index":7}]`},
		"learned":  {&learnedAddresses{}, `[{"slot":0,"ip":"10.0.0.9","source":"agent","at":6}]`},
		"boot":     {&boot{}, `{"dhcp":4,"spawned":1}`},
	} {
		must(t, tt.column.Scan(tt.good))
		if again, err := tt.column.Value(); err != nil || again != tt.good {
			t.Errorf("%s: %s is written back as %v, %v", name, tt.good, again, err)
		}
		for i := range tt.good {
			if tt.column.Scan(tt.good[:i]) == nil {
				t.Errorf("%s: %q is accepted", name, tt.good[:i])
			}
		}
		for _, bad := range []any{int64(1), []byte(tt.good), `"text"`, `{"a":`, strings.Replace(tt.good, "10.0.0", "ten", 1) + "]"} {
			if tt.column.Scan(bad) == nil {
				t.Errorf("%s: %v is accepted", name, bad)
			}
		}
		must(t, tt.column.Scan(nil))
		if none, err := tt.column.Value(); none != nil || err != nil {
			t.Errorf("%s: NULL is written back as %v, %v", name, none, err)
		}
	}
}

func FuzzNICsAreReadAsTheyWereWritten(f *testing.F) {
	f.Add(`[{"slot":0,"network":"lan","mode":"nat","mac":"52:00:00:00:00:01","model":"virtio","ip":"10.0.0.7","state":"attached"}]`)
	f.Add(`[{"slot":7,"ipv6":"fd00::1","rate_in_kbit":5,"link_down":true,"reason":"a\u0000,\""},{}]`)
	f.Fuzz(func(t *testing.T, column string) {
		var read, again nics
		if read.Scan(column) != nil {
			return
		}
		written, err := read.Value()
		if err == nil {
			err = again.Scan(written)
		}
		if err != nil || !reflect.DeepEqual(read, again) {
			t.Errorf("%q is read as %+v, written as %q and read as %+v, %v", column, read, written, again, err)
		}
	})
}
