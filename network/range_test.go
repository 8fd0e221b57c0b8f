package network

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"

	"vmand/vm"
)

func TestIPv6ForwardPaths(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"fd00:64::/64", "2001:db8:64::/64"} { // masqueraded, and routed
		t.Run(prefix, func(t *testing.T) {
			n := newHost(t)
			outside := newOutside(t)
			nat := natNetwork()
			nat.IPv6 = netip.MustParsePrefix(prefix)
			up(t, n, nat)
			va := guest("a", nat, 10)
			va.Forwards = []vm.PortForward{
				{Protocol: vm.TCP, HostAddress: netip.IPv6Unspecified(), HostPort: 8080, GuestPort: 80},
				{Protocol: vm.TCP, HostAddress: addr("2001:db8:1::1"), HostPort: 8081, GuestPort: 80},
				{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8082, GuestPort: 80},
			}
			a, b := newGuest(t, n, va, nat), newGuest(t, n, guest("b", nat, 11), nat)
			a.serve("[::]:80")
			host := place{t, a.home, a.home}
			host.serve("[::1]:8080")
			gateway := nat.GatewayIPv6().String()
			checks := []pathCheck{
				{"the host reaches a guest", host, "[" + va.NICs[0].IPv6.String() + "]:80", gateway},
				{"the outside does not reach a guest", outside, "[" + va.NICs[0].IPv6.String() + "]:80", ""},
				{"the outside reaches a forwarded port", outside, "[2001:db8:1::1]:8080", "2001:db8:1::2"},
				{"the outside reaches a port forwarded on one address", outside, "[2001:db8:1::1]:8081", "2001:db8:1::2"},
				{"the host reaches a forwarded port", host, "[2001:db8:1::1]:8080", "2001:db8:1::1"},
				{"a program on ::1 keeps its connections", host, "[::1]:8080", "::1"},
				{"a guest reaches its own forwarded port", a, "[2001:db8:1::1]:8080", gateway},
				{"a neighbour reaches a forwarded port", b, "[2001:db8:1::1]:8080", gateway},
				{"a neighbour reaches a port forwarded on one address", b, "[2001:db8:1::1]:8081", gateway},
				{"an IPv4 forward is none of IPv6", outside, "[2001:db8:1::1]:8082", ""},
				{"an IPv6 forward is none of IPv4", outside, "203.0.113.1:8080", ""},
				{"the outside reaches an IPv4 forward", outside, "203.0.113.1:8082", "203.0.113.2"},
			}
			var running sync.WaitGroup
			for _, check := range checks {
				running.Go(func() {
					if got := check.run(); got != check.source {
						t.Errorf("%s: the source is %q, want %q", check.name, got, check.source)
					}
				})
			}
			running.Wait()
		})
	}
}

func TestPortRangeForwards(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	outside := newOutside(t)
	nw := natNetwork()
	up(t, n, nw)
	v := guest("a", nw, 10)
	v.Forwards = []vm.PortForward{
		{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8000, GuestPort: 80, Ports: 10},
		{Protocol: vm.TCP, HostAddress: netip.IPv6Unspecified(), HostPort: 8000, GuestPort: 80, Ports: 10},
	}
	a := newGuest(t, n, v, nw)
	for _, port := range []int{79, 80, 85, 89, 90} {
		a.serve(fmt.Sprintf("[::]:%d", port))
	}
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	check := func(when string) {
		t.Helper()
		var running sync.WaitGroup
		for host, source := range map[string]string{"203.0.113.1": "203.0.113.2", "[2001:db8:1::1]": "2001:db8:1::2"} {
			for port, want := range map[int]string{7999: "", 8000: source, 8005: source, 8009: source, 8010: "", 8004: ""} {
				c := pathCheck{from: outside, to: fmt.Sprintf("%s:%d", host, port), source: want}
				running.Go(func() {
					if got := c.run(); got != c.source {
						t.Errorf("%s: %s: the source is %q, want %q", when, c.to, got, c.source)
					}
				})
			}
		}
		running.Wait()
	}
	check("connected")
	settledPass(t, n, w)
	deleteTables(t)
	if d := reconcile(t, n, w, true); len(d) == 0 || !d[0].Repaired {
		t.Errorf("a pass after the deletion of the tables: %+v", d)
	}
	check("repaired")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = newNetworks(t, n.o)
	if d := reconcile(t, n, w, true); len(d) != 0 {
		t.Errorf("the next daemon finds drift: %+v", d)
	}
	check("after a restart of the daemon")
}

// deleteTables deletes vmand's tables, as another program may do.
func deleteTables(t testing.TB) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.DelTable(inetTable)
	c.DelTable(bridgeTable)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestMostForwardsOfOneVM sets and compares the largest set of forwards that a VM can have.
func TestMostForwardsOfOneVM(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	v := guest("a", nw, 10)
	for i := range vm.MaxVMPorts / vm.MaxPorts {
		v.Forwards = append(v.Forwards, vm.PortForward{
			Protocol: vm.TCP, HostAddress: netip.IPv6Unspecified(),
			HostPort: 1 + i*vm.MaxPorts, GuestPort: 1 + i*vm.MaxPorts, Ports: vm.MaxPorts,
		})
	}
	measure := func(what string, f func() error) {
		t.Helper()
		began := time.Now()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%s: %v", what, time.Since(began))
	}
	connect(t, n, v, nw)
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	settledPass(t, n, w)
	measure("remove", func() error { x := v; x.Forwards = nil; return n.setVMRules(x) })
	measure("add", func() error { return n.setVMRules(v) })
	measure("add one", func() error {
		x := v
		x.Forwards = append(slices.Clone(v.Forwards), vm.PortForward{Protocol: vm.UDP, HostAddress: netip.IPv6Unspecified(), HostPort: 1, GuestPort: 1})
		return n.setVMRules(x)
	})
	measure("read", func() error { n.firewall.verified = false; _, err := n.firewall.check(); return err })
	measure("rebuild", func() error { return n.firewall.rebuild() })
}
