package network

import (
	"errors"
	"net"
	"net/netip"
	"slices"
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
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	if err := n.Admit(t.Context(), nw); err != nil {
		t.Fatal(err)
	}
	up(t, n, nw)
	b := link(t, "vman0")
	a := b.Attrs()
	if a.Alias != alias || a.HardwareAddr.String() != bridgeMAC("vman0").String() || a.Flags&net.FlagUp == 0 {
		t.Errorf("the bridge is %+v", a)
	}
	addrs, err := netlink.AddrList(b, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		got = append(got, addressOf(a).String())
	}
	slices.Sort(got)
	if want := []string{"192.168.100.1/24", "fd00:64::1/64", "fe80::1/64"}; !slices.Equal(got, want) {
		t.Errorf("the bridge has the addresses %v, want %v", got, want)
	}
	for name, want := range map[string]string{
		forward4:                         "1",
		forward6:                         "1",
		"ipv4/conf/vman0/route_localnet": "1",
		"ipv6/conf/vman0/accept_ra":      "0",
	} {
		if got, err := getSysctl(name); err != nil || got != want {
			t.Errorf("%s = %s, %v, want %s", name, got, err, want)
		}
	}
	settledPass(t, n, vm.Wanted{Networks: []vm.Network{nw}})
	if err := n.Admit(t.Context(), nw); err != nil {
		t.Errorf("Admit with the network's own bridge present: %v", err)
	}
	if err := n.Down(t.Context(), nw); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("vman0"); err == nil {
		t.Error("the bridge exists after Down")
	}
	if err := n.Down(t.Context(), nw); err != nil {
		t.Errorf("second Down: %v", err)
	}
	up(t, n, nw)
	if err := n.Down(t.Context(), vm.Network{Name: nw.Name, Bridge: nw.Bridge}); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("vman0"); err == nil {
		t.Error("the bridge of a network without a record exists after Down")
	}
}

func TestABridgeOfVmandIsNoBridgeOfTheHost(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	lan := vm.Network{Name: "lan", Mode: vm.NetworkBridge, Bridge: nw.Bridge, Revision: 1}
	err := n.Admit(t.Context(), lan)
	if codeOf(err) != vm.CodeNetworkUnavailable || !strings.Contains(err.Error(), "another network") {
		t.Errorf("Admit: %v", err)
	}
}

func TestAForeignInterfaceIsNeverChanged(t *testing.T) {
	t.Parallel()
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
	err := n.Up(t.Context(), nw)
	if codeOf(err) != vm.CodeNetworkUnavailable || !strings.Contains(err.Error(), "vman0") {
		t.Errorf("Up: %v", err)
	}
	if err := n.Down(t.Context(), nw); err != nil {
		t.Errorf("Down: %v", err)
	}
	if b := link(t, "vman0"); b.Attrs().Alias != "" || b.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("the foreign bridge was changed: %+v", b.Attrs())
	}
	d := reconcile(t, n, vm.Wanted{Networks: []vm.Network{nw}}, true)
	isReported := func(d vm.Drift) bool { return d.Err != nil && strings.Contains(d.Details, "not vmand's") }
	if !slices.ContainsFunc(d, isReported) {
		t.Errorf("Reconcile reports %+v", d)
	}
}

func TestTheNextDaemonFindsEverythingUnchanged(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	v := guest("web", nw, 10)
	v.NICs[0].RateOut = 8000
	v.Forwards = []vm.PortForward{
		{Slot: 0, Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80},
	}
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
		t.Errorf("the next daemon reports %+v", d)
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

func TestTeardownRemovesEverythingOfVmandAndNothingElse(t *testing.T) {
	t.Parallel()
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
		t.Fatalf("Teardown while a daemon runs: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	removed, err := Teardown(t.Context(), o.RuntimeDir, n.log)
	if err != nil || len(removed) < 5 {
		t.Fatalf("Teardown: %q, %v", removed, err)
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
	if removed, err := Teardown(t.Context(), o.RuntimeDir, n.log); err != nil || len(removed) != 0 {
		t.Errorf("second Teardown: %q, %v", removed, err)
	}
}

func TestRatesAndForwardsChangeLive(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	v := guest("web", nw, 10)
	connect(t, n, v, nw)
	networks := map[string]vm.Network{nw.Name: nw}
	for _, rate := range []int{8000, 64, 0, 1_000_000} {
		v.NICs[0].RateIn, v.NICs[0].RateOut, v.Revision = rate, rate, v.Revision+1
		loopback := netip.MustParseAddr("127.0.0.1")
		v.Forwards = []vm.PortForward{
			{Protocol: vm.UDP, HostAddress: loopback, HostPort: 5353, GuestPort: 53 + rate%7},
		}
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
	v.Forwards = []vm.PortForward{
		{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80},
	}
	networks := map[string]vm.Network{nw.Name: nw}
	for b.Loop() {
		ports, err := n.Connect(b.Context(), v, v.NICs, networks)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		vm.ClosePorts(ports) // blocks for a grace period of the kernel, as the end of QEMU does
		b.StartTimer()
		if err := n.Disconnect(b.Context(), v.ID); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOneDaemonOwnsTheNetworksOfANamespace(t *testing.T) {
	t.Parallel()
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
		t.Fatalf("a claim after the first one was closed: %v", err)
	}
	owner.Close()
}

func TestAGuestThatMeetsTheLimitsOfDNSIsNamed(t *testing.T) {
	enterNamespace(t)
	o := options(t)
	nw := natNetwork()
	v := guest("web", nw, 10)
	o.Directory = leaseOf{lease: vm.Lease{Network: nw.Name, VMID: v.ID, IP: v.NICs[0].IP, MAC: v.NICs[0].MAC}}
	n := newNetworks(t, o)
	up(t, n, nw)
	a := newGuest(t, n, v, nw)
	err := a.inPlace(func() error {
		c, err := net.Dial("udp4", "192.168.100.1:53")
		if err != nil {
			return err
		}
		defer c.Close()
		deadline := time.Now().Add(20 * time.Second)
		for sent := 0; time.Now().Before(deadline); sent++ {
			if _, err := c.Write(make([]byte, 12)); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
			if _, total := n.serving[nw.Name].dns.LimitedSince(time.Time{}); sent%1000 == 0 && total > 0 {
				break
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s := n.Status(t.Context(), nw)
	if s.DNSLimited == 0 || len(s.Problems) != 1 || s.Problems[0].Kind != vm.ProblemDNS ||
		!strings.Contains(s.Problems[0].Detail, "VM web (192.168.100.10)") {
		t.Errorf("%d queries met a limit, problems %+v", s.DNSLimited, s.Problems)
	}
}

func TestServedNamesTheServerThatDoesNotServe(t *testing.T) {
	for _, c := range []struct {
		port, says string
	}{
		{":53", "DNS of network vman0 is not served: find the program that has the port"},
		{":67", "DHCP of network vman0 is not served"},
	} {
		n := newHost(t)
		nw := natNetwork()
		if err := n.Served(nw); codeOf(err) != vm.CodeNetworkUnavailable {
			t.Errorf("Served without a bridge: %v", err)
		}
		other, err := net.ListenPacket("udp4", c.port)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Up(t.Context(), nw); err == nil {
			t.Fatalf("a network comes up although a program has the port %s", c.port)
		}
		if err := n.Served(nw); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Served with the port %s in use: %v", c.port, err)
		}
		other.Close()
		settledPass(t, n, vm.Wanted{Networks: []vm.Network{nw}})
		if err := n.Served(nw); err != nil {
			t.Errorf("Served after the port became free: %v", err)
		}
		n.Close()
	}
}
