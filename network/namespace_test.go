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
	need.NoError(t, checkPrivileges())
}

// enterNamespace moves the test into a network namespace of its own. Only the thread of
// the test is in it: code that depends on the namespace must not run on other goroutines,
// which includes sub-tests and sub-benchmarks.
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
			return // still locked, the thread ends with the goroutine
		}
		before.Close()
		runtime.UnlockOSThread()
	})
	for _, name := range []string{forward4, forward6} { // a new namespace may inherit the host's values
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

// noLeases is a Directory without leases.
type noLeases struct{}

func (noLeases) LeaseByMAC(_ context.Context, _, mac string) (vm.Lease, error) {
	return vm.Lease{}, vm.NotFound("lease", mac)
}
func (noLeases) LeaseByName(_ context.Context, _, name string) (vm.Lease, error) {
	return vm.Lease{}, vm.NotFound("lease", name)
}
func (noLeases) LeaseByIP(_ context.Context, _ string, ip netip.Addr) (vm.Lease, error) {
	return vm.Lease{}, vm.NotFound("lease", ip.String())
}

func options(t testing.TB) Options {
	return Options{Mode: ModeBridge, RuntimeDir: t.TempDir(), Directory: noLeases{}}
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

// natNetwork returns the record of a network of mode nat.
func natNetwork() vm.Network {
	return vm.Network{
		Name: "vman0", Mode: vm.NetworkNAT, Bridge: "vman0", Domain: "vm.internal", Revision: 1,
		Subnet: netip.MustParsePrefix("192.168.100.0/24"), Gateway: netip.MustParseAddr("192.168.100.1"),
		IPv6: netip.MustParsePrefix("fd00:64::/64"),
	}
}

// guest returns a VM with one NIC on a network. host is the last byte of its address.
func guest(id string, nw vm.Network, host byte) vm.VM {
	nic := vm.NIC{
		Network: nw.Name, Mode: nw.Mode, MAC: vm.MACOf(id, 0),
		Model: vm.NICVirtio, State: vm.NICAttached,
	}
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

// reconcile runs a pass and returns its drift.
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

// settledPass runs a pass that repairs, and fails the test if a second pass still finds
// drift.
func settledPass(t testing.TB, n *Networks, w vm.Wanted) {
	t.Helper()
	for _, d := range reconcile(t, n, w, true) {
		if d.Err != nil {
			t.Fatalf("%s: %s: %v", d.Resource, d.Details, d.Err)
		}
	}
	if d := reconcile(t, n, w, true); len(d) != 0 {
		t.Fatalf("drift after a repair: %+v", d)
	}
}
