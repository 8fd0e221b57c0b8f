package network

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"vmand/test/need"
	"vmand/vm"
)

// needRoot ends a test where network namespaces cannot be made or are left out.
func needRoot(t testing.TB) {
	t.Helper()
	need.Namespaces(t)
	need.NoError(t, privileged())
}

// enterNamespace gives the test a network namespace of its own, which is that of
// its thread alone: nothing in it may be made by another goroutine.
func enterNamespace(t testing.TB) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	own, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		own.Close()
		if err := netns.Set(before); err != nil {
			return // the thread ends with the goroutine
		}
		before.Close()
		runtime.UnlockOSThread()
	})
	for _, name := range []string{forward4, forward6} { // a new namespace may have the host's
		if err := setSysctl(name, "0"); err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
}

// records is a Directory of no leases.
type records struct{}

func (records) LeaseByMAC(_ context.Context, _, mac string) (vm.Lease, error) {
	return vm.Lease{}, vm.NotFound("lease", mac)
}
func (records) LeaseByName(_ context.Context, _, name string) (vm.Lease, error) {
	return vm.Lease{}, vm.NotFound("lease", name)
}
func (records) LeaseByIP(_ context.Context, _ string, ip netip.Addr) (vm.Lease, error) {
	return vm.Lease{}, vm.NotFound("lease", ip.String())
}

func options(t testing.TB) Options {
	return Options{Mode: ModeBridge, RuntimeDir: t.TempDir(), Directory: records{}}
}

// newHost returns networks in a namespace of their own.
func newHost(t testing.TB) *Networks {
	t.Helper()
	enterNamespace(t)
	return newNetworks(t, options(t))
}

func newNetworks(t testing.TB, o Options) *Networks {
	t.Helper()
	n, err := New(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// natNetwork is a network as the records have it.
func natNetwork() vm.Network {
	return vm.Network{Name: "vman0", Mode: vm.NetworkNAT, Bridge: "vman0", Domain: "vm.internal", Revision: 1,
		Subnet: netip.MustParsePrefix("192.168.100.0/24"), Gateway: netip.MustParseAddr("192.168.100.1"),
		IPv6: netip.MustParsePrefix("fd00:64::/64")}
}

// guest returns a VM with one NIC on a network, whose address ends in host.
func guest(id string, nw vm.Network, host byte) vm.VM {
	nic := vm.NIC{Network: nw.Name, Mode: nw.Mode, MAC: vm.MACOf(id, 0), Model: vm.NICVirtio, State: vm.NICAttached}
	if nw.Mode.Managed() {
		a := nw.Subnet.Addr().As4()
		a[3] = host
		nic.IP = netip.AddrFrom4(a)
		nic.IPv6 = nw.AddressIPv6(nic.IP)
	}
	return vm.VM{ID: id, UUID: id, Revision: 1, NICs: []vm.NIC{nic}}
}

func up(t testing.TB, n *Networks, nw vm.Network) {
	t.Helper()
	if err := n.Up(t.Context(), nw); err != nil {
		t.Fatal(err)
	}
}

// connect returns the tap of a VM's only NIC.
func connect(t testing.TB, n *Networks, v vm.VM, nw vm.Network) *os.File {
	t.Helper()
	ports, err := n.Connect(t.Context(), v, v.NICs, map[string]vm.Network{nw.Name: nw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.ClosePorts(ports) })
	return ports[0].Files[0]
}

// reconcile returns the drift that a pass has found.
func reconcile(t testing.TB, n *Networks, w vm.Wanted, repair bool) []vm.Drift {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := n.Reconcile(ctx, w, repair)
	if err != nil {
		t.Fatal(err)
	}
	return s.Drift
}

// settledPass makes the host so and fails the test if a second pass still finds
// something.
func settledPass(t testing.TB, n *Networks, w vm.Wanted) {
	t.Helper()
	for _, d := range reconcile(t, n, w, true) {
		if d.Err != nil {
			t.Fatalf("%s: %s: %v", d.Resource, d.Details, d.Err)
		}
	}
	if d := reconcile(t, n, w, true); len(d) != 0 {
		t.Fatalf("a pass after a repair finds %+v", d)
	}
}
