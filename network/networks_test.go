package network

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

func link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

func codeOf(err error) vm.Code {
	if f, ok := errors.AsType[*vm.Fault](err); ok {
		return f.Code
	}
	return ""
}

func TestANetworkIsABridgeWithItsAddressesAndRules(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	if err := n.Admit(t.Context(), nw); err != nil {
		t.Fatal(err)
	}
	up(t, n, nw)
	b := link(t, "vman0")
	if b.Attrs().Alias != alias || b.Attrs().HardwareAddr.String() != bridgeMAC("vman0").String() || b.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("the bridge is %+v", b.Attrs())
	}
	addrs, err := netlink.AddrList(b, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		got = append(got, addressOf(a).String())
	}
	if slices.Sort(got); !slices.Equal(got, []string{"192.168.100.1/24", "fd00:64::1/64", "fe80::1/64"}) {
		t.Errorf("the bridge has the addresses %v", got)
	}
	for name, want := range map[string]string{forward4: "1", forward6: "1", "ipv4/conf/vman0/route_localnet": "1", "ipv6/conf/vman0/accept_ra": "0"} {
		if got, err := getSysctl(name); err != nil || got != want {
			t.Errorf("%s = %s, %v, want %s", name, got, err, want)
		}
	}
	settledPass(t, n, vm.Wanted{Networks: []vm.Network{nw}})
	if err := n.Admit(t.Context(), nw); err != nil {
		t.Errorf("Admit of our own bridge: %v", err)
	}
	if err := n.Down(t.Context(), nw); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("vman0"); err == nil {
		t.Error("the bridge is left")
	}
	if err := n.Down(t.Context(), nw); err != nil {
		t.Errorf("Down again: %v", err)
	}
	up(t, n, nw)
	if err := n.Down(t.Context(), vm.Network{Name: nw.Name, Bridge: nw.Bridge}); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("vman0"); err == nil {
		t.Error("the bridge of a network that is recorded no more is left")
	}
}

func TestABridgeOfOursIsNoBridgeOfTheHost(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	lan := vm.Network{Name: "lan", Mode: vm.NetworkBridge, Bridge: nw.Bridge, Revision: 1}
	if err := n.Admit(t.Context(), lan); codeOf(err) != vm.CodeNetworkUnavailable || !strings.Contains(err.Error(), "another network") {
		t.Errorf("Admit: %v", err)
	}
}

func TestAForeignInterfaceIsNeverTouched(t *testing.T) {
	n := newHost(t)
	a := netlink.NewLinkAttrs()
	a.Name = "vman0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
		t.Fatal(err)
	}
	nw := natNetwork()
	if err := n.Admit(t.Context(), nw); codeOf(err) != vm.CodeInUse {
		t.Errorf("Admit: %v", err)
	}
	if err := n.Up(t.Context(), nw); codeOf(err) != vm.CodeNetworkUnavailable || !strings.Contains(err.Error(), "vman0") {
		t.Errorf("Up: %v", err)
	}
	if err := n.Down(t.Context(), nw); err != nil {
		t.Errorf("Down: %v", err)
	}
	if b := link(t, "vman0"); b.Attrs().Alias != "" || b.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("the foreign bridge was changed: %+v", b.Attrs())
	}
	d := reconcile(t, n, vm.Wanted{Networks: []vm.Network{nw}}, true)
	if !slices.ContainsFunc(d, func(d vm.Drift) bool { return d.Err != nil && strings.Contains(d.Details, "not vmand's") }) {
		t.Errorf("Reconcile finds %+v", d)
	}
}

func TestDriftIsSeenAndRepaired(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	v := guest("web", nw, 10)
	up(t, n, nw)
	connect(t, n, v, nw)
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	settledPass(t, n, w)
	tap := tapName(v.UUID, 0)
	for what, spoil := range map[string]func() error{
		"tables flushed": func() error { c, _ := nftables.New(); c.FlushRuleset(); return c.Flush() },
		"a chain flushed": func() error {
			c, _ := nftables.New()
			c.FlushChain(&nftables.Chain{Table: bridgeTable, Name: "ipv4"})
			return c.Flush()
		},
		"an element removed": func() error {
			c, _ := nftables.New()
			b := newBatch(c)
			b.change(nil, []element{{set: setIPs, key: string(ifname(tap)) + string(v.NICs[0].IP.AsSlice())}})
			return b.send()
		},
		"a bridge down": func() error { return netlink.LinkSetDown(link(t, "vman0")) },
		"a bridge gone": func() error { return netlink.LinkDel(link(t, "vman0")) },
		"an address gone": func() error {
			a, _ := netlink.ParseAddr("192.168.100.1/24")
			return netlink.AddrDel(link(t, "vman0"), a)
		},
		"a tap out of its bridge": func() error { return netlink.LinkSetNoMaster(link(t, tap)) },
		"a tap down":              func() error { return netlink.LinkSetDown(link(t, tap)) },
		"no forwarding":           func() error { return setSysctl(forward4, "0") },
		"a server dead":           func() error { return n.serving[nw.Name].dns.Close() },
	} {
		if err := spoil(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if what == "a server dead" && n.serving[nw.Name].dns.Err() == nil {
			continue
		}
		if d := reconcile(t, n, w, false); len(d) == 0 || d[0].Repaired {
			t.Errorf("%s: a pass without repair finds %+v", what, d)
		}
		d := reconcile(t, n, w, true)
		if len(d) == 0 {
			t.Errorf("%s: not seen", what)
		}
		for _, d := range d {
			if !d.Repaired || d.Err != nil {
				t.Errorf("%s: %+v", what, d)
			}
		}
		if d := reconcile(t, n, w, false); len(d) != 0 {
			t.Errorf("%s: after the repair there is %+v", what, d)
		}
	}
}

func TestTheNextDaemonFindsAllAsItWas(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	v := guest("web", nw, 10)
	v.NICs[0].RateOut = 8000
	v.Forwards = []vm.PortForward{{Slot: 0, Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80}}
	up(t, n, nw)
	connect(t, n, v, nw)
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	settledPass(t, n, w)
	before, err := n.firewall.readGeneration()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(options(t), n.log); err == nil {
		t.Fatal("two daemons manage one namespace")
	}
	second, err := New(Options{Mode: ModeAuto, RuntimeDir: t.TempDir()}, n.log)
	if err != nil {
		t.Fatal(err)
	}
	if mode, why := second.Mode(); mode != ModeUser || !strings.Contains(why, "another vmand") {
		t.Errorf("a second daemon has mode %s: %s", mode, why)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	next := newNetworks(t, options(t))
	if d := reconcile(t, next, w, true); len(d) != 0 {
		t.Errorf("the next daemon finds %+v", d)
	}
	if err := next.serving[nw.Name].fault(link(t, nw.Bridge).Attrs().Index); err != nil {
		t.Errorf("the next daemon does not serve: %v", err)
	}
	if after, err := next.firewall.readGeneration(); err != nil || after != before {
		t.Errorf("the rules were written again: generation %d, was %d, %v", after, before, err)
	}
	if err := next.Disconnect(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	seen, err := next.firewall.read()
	if err != nil || seen == nil {
		t.Fatalf("tables: %v, %v", seen, err)
	}
	if f := seen.faults(next.firewall.holder); len(f) != 0 {
		t.Errorf("after Disconnect: %v", f)
	}
	for _, e := range seen.elements {
		if strings.Contains(e.key, tapName(v.UUID, 0)) || e.set == setAnywhere {
			t.Errorf("an element of the VM is left: %+v", e)
		}
	}
}

func TestTeardownRemovesAllAndNothingElse(t *testing.T) {
	enterNamespace(t)
	o := options(t)
	n := newNetworks(t, o)
	nw := natNetwork()
	a := netlink.NewLinkAttrs()
	a.Name = "other0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
		t.Fatal(err)
	}
	up(t, n, nw)
	connect(t, n, guest("web", nw, 10), nw)
	if _, err := Teardown(t.Context(), o.RuntimeDir, n.log); codeOf(err) != vm.CodeInUse {
		t.Fatalf("Teardown beside a daemon: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	said, err := Teardown(t.Context(), o.RuntimeDir, n.log)
	if err != nil || len(said) < 5 {
		t.Fatalf("Teardown: %q, %v", said, err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := readTables(c); err != nil || seen != nil {
		t.Errorf("the tables are left: %v", err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if isOurBridge(l) || isTap(l) {
			t.Errorf("%s is left", l.Attrs().Name)
		}
	}
	link(t, "other0")
	if got, _ := getSysctl(forward4); got != "0" {
		t.Errorf("ip_forward is %s", got)
	}
	if said, err := Teardown(t.Context(), o.RuntimeDir, n.log); err != nil || len(said) != 0 {
		t.Errorf("Teardown again: %q, %v", said, err)
	}
}

func TestAFirewallThatDropsForwardedPacketsIsNamed(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	drop := nftables.ChainPolicyDrop
	filter := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	forward := c.AddChain(&nftables.Chain{Table: filter, Name: "FORWARD", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	c.AddChain(&nftables.Chain{Table: filter, Name: "DOCKER-USER"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	s := n.Status(t.Context(), nw)
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Fix, "DOCKER-USER -i vman0 -j ACCEPT") {
		t.Fatalf("problems: %+v", s.Problems)
	}
	c.AddRule(&nftables.Rule{Table: filter, Chain: forward, Exprs: all(iifname(), equal(ifname("vman0")...), accept())})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if s := n.Status(t.Context(), nw); len(s.Problems) != 0 || !slices.Equal(s.Interfaces, []string{"vman0"}) {
		t.Errorf("status: %+v", s)
	}
}

func TestRatesAndForwardsChangeLive(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	v := guest("web", nw, 10)
	connect(t, n, v, nw)
	networks := map[string]vm.Network{nw.Name: nw}
	for _, rate := range []int{8000, 64, 0, 1_000_000} {
		v.NICs[0].RateIn, v.NICs[0].RateOut, v.Revision = rate, rate, v.Revision+1
		v.Forwards = []vm.PortForward{{Protocol: vm.UDP, HostAddress: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, GuestPort: 53 + rate%7}}
		if err := n.Update(t.Context(), v, networks); err != nil {
			t.Fatal(err)
		}
		qdiscs, err := netlink.QdiscList(link(t, tapName(v.UUID, 0)))
		if err != nil {
			t.Fatal(err)
		}
		var got uint64
		for _, q := range qdiscs {
			if tbf, ok := q.(*netlink.Tbf); ok {
				got = tbf.Rate
			}
		}
		if got != uint64(rate)*125 {
			t.Errorf("RateIn %d kbit/s: the qdisc has %d bytes/s", rate, got)
		}
		seen, err := n.firewall.read()
		if err != nil {
			t.Fatal(err)
		}
		if f := seen.faults(n.firewall.holder); len(f) != 0 {
			t.Errorf("rate %d: %v", rate, f)
		}
	}
}

func BenchmarkConnectDisconnect(b *testing.B) {
	n := newHost(b)
	nw := natNetwork()
	up(b, n, nw)
	v := guest("web", nw, 10)
	v.Forwards = []vm.PortForward{{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80}}
	networks := map[string]vm.Network{nw.Name: nw}
	for b.Loop() {
		ports, err := n.Connect(b.Context(), v, v.NICs, networks)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		vm.ClosePorts(ports) // the kernel waits for a grace period; QEMU's end does
		b.StartTimer()
		if err := n.Disconnect(b.Context(), v.ID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPassWithoutDrift measures a pass over a host of 50 VMs with a process,
// each with a rate limit and a port forward. Stopped VMs are not part of a pass.
func BenchmarkPassWithoutDrift(b *testing.B) {
	for name, disturb := range map[string]func(b *testing.B, w *vm.Wanted){
		"nothing changed": func(*testing.B, *vm.Wanted) {},
		"one VM changed":  func(_ *testing.B, w *vm.Wanted) { w.VMs[7].Revision++ },
		"another program changed its rules": func(b *testing.B, _ *vm.Wanted) {
			c, err := nftables.New()
			if err != nil {
				b.Fatal(err)
			}
			other := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "other"})
			c.DelTable(other)
			if err := c.Flush(); err != nil {
				b.Fatal(err)
			}
		},
	} {
		// Each runs on a thread of its own, so each needs a namespace of its own.
		b.Run(name, func(b *testing.B) {
			n := newHost(b)
			w := runningVMs(b, n, 50)
			reconcile(b, n, w, true)
			before := cpuTime(b)
			for b.Loop() {
				disturb(b, &w)
				if d := reconcile(b, n, w, true); len(d) != 0 {
					b.Fatal(d)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// runningVMs connects VMs to a network and returns what a pass compares with.
func runningVMs(t testing.TB, n *Networks, count int) vm.Wanted {
	t.Helper()
	nw := natNetwork()
	up(t, n, nw)
	w := vm.Wanted{Networks: []vm.Network{nw}}
	for i := range count {
		v := guest("vm-"+strconv.Itoa(i), nw, byte(10+i))
		v.NICs[0].RateIn, v.NICs[0].RateOut = 100_000, 100_000
		v.Forwards = []vm.PortForward{
			{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8000 + i, GuestPort: 80},
		}
		connect(t, n, v, nw)
		w.VMs = append(w.VMs, v)
	}
	return w
}

// cpuTime returns the user and system time of the process.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestOneDaemonHasTheNetworksOfANamespace(t *testing.T) {
	enterNamespace(t)
	if err := netlink.LinkSetDown(link(t, "lo")); err != nil {
		t.Fatal(err)
	}
	owner, err := claim()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claim(); codeOf(err) != vm.CodeInUse {
		t.Errorf("a second claim: %v", err)
	}
	newPlace(t).do(func() {
		other, err := claim()
		if err != nil {
			t.Errorf("a claim in another namespace: %v", err)
			return
		}
		other.Close()
	})
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	if owner, err = claim(); err != nil {
		t.Fatalf("a claim after the first was given up: %v", err)
	}
	owner.Close()
}
