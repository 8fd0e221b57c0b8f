package network

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

func TestDriftIsReportedAndRepaired(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	v := guest("web", nw, 10)
	up(t, n, nw)
	connect(t, n, v, nw)
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	settledPass(t, n, w)
	tap := tapName(v.UUID, 0)
	for change, spoil := range map[string]func() error{
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
		"a bridge down":    func() error { return netlink.LinkSetDown(link(t, "vman0")) },
		"a bridge removed": func() error { return netlink.LinkDel(link(t, "vman0")) },
		"an address removed": func() error {
			a, _ := netlink.ParseAddr("192.168.100.1/24")
			return netlink.AddrDel(link(t, "vman0"), a)
		},
		"a tap off its bridge": func() error { return netlink.LinkSetNoMaster(link(t, tap)) },
		"a tap down":           func() error { return netlink.LinkSetDown(link(t, tap)) },
		"forwarding disabled":  func() error { return setSysctl(forward4, "0") },
		"a server closed":      func() error { return n.serving[nw.Name].dns.Close() },
	} {
		if err := spoil(); err != nil {
			t.Fatalf("%s: %v", change, err)
		}
		if change == "a server closed" && n.serving[nw.Name].dns.Err() == nil {
			continue
		}
		if d := reconcile(t, n, w, false); len(d) == 0 || d[0].Repaired {
			t.Errorf("%s: a pass without repair reports %+v", change, d)
		}
		d := reconcile(t, n, w, true)
		if len(d) == 0 {
			t.Errorf("%s: not reported", change)
		}
		for _, d := range d {
			if !d.Repaired || d.Err != nil {
				t.Errorf("%s: not repaired: %+v", change, d)
			}
		}
		if d := reconcile(t, n, w, false); len(d) != 0 {
			t.Errorf("%s: drift after the repair: %+v", change, d)
		}
	}
}

// TestPassWithOldRecordsDoesNotReconnectAVM runs a pass with records from before the VM
// was disconnected.
func TestPassWithOldRecordsDoesNotReconnectAVM(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	v := guest("web", nw, 10)
	tap := connect(t, n, v, nw)
	old := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	reconcile(t, n, old, true)
	tap.Close() // as QEMU's end does
	if err := n.Disconnect(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	reconcile(t, n, old, true)
	if taps := n.firewall.taps(vmOwner(v.ID)); len(taps) != 0 {
		t.Errorf("the disconnected VM may send through %v again", taps)
	}
	reconcile(t, n, vm.Wanted{Networks: old.Networks}, true)
	if _, known := n.vmRevisions[v.ID]; known {
		t.Error("the revision of a disconnected VM is kept for ever")
	}
	connect(t, n, v, nw) // a new start
	reconcile(t, n, old, true)
	if taps := n.firewall.taps(vmOwner(v.ID)); len(taps) != 1 {
		t.Errorf("the VM that was started again may send through %v, want one tap", taps)
	}
}

// BenchmarkPassWithoutDrift measures a pass over a host of 50 VMs with a process, each
// with a rate limit and a port forward. Stopped VMs are not part of a pass.
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
		// A sub-benchmark runs on a thread of its own, so it needs its own namespace.
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

// runningVMs connects VMs to a network and returns the records of both.
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
