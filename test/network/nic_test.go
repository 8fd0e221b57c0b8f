package network

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

func TestNICsComeAndGoWhileTheGuestRuns(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateNetwork("blue", "nat", "10.50.0.0/24", nil)
	d.CreateVM("a")
	d.CreateVMWith("b", harness.OnNetworks("blue"))
	shells := d.StartAll("a", "b")
	a, g := shells[0], d.Serial("a")
	g.Expect(harness.DHCPLine.String())

	nic := harness.As[openapi.NIC](d.Call("POST", "/vms/a/nics", map[string]any{"network": "blue", "ip": "10.50.0.77"}, harness.Wait).Want(201))
	if nic.Slot != 1 || *nic.IP != "10.50.0.77" || nic.State != "attached" {
		t.Errorf("attached: %+v", nic)
	}
	if added := g.Expect(`VMT: nic-add name=(\S+) mac=(\S+)`); added[1] != "eth1" || added[2] != nic.MAC {
		t.Errorf("the guest sees %q; want %+v", added, nic)
	}
	if said := g.Expect(harness.DHCPLine.String()); said[1] != "eth1" || said[2] != "10.50.0.77/24" {
		t.Errorf("DHCP told eth1 %q", said)
	}
	if got := a.Reaches(*d.VM("b").LocalIP); got != "b sees 10.50.0.77" {
		t.Errorf("by its second NIC the guest gets %q", got)
	}

	cable := func(state string, carrier string) {
		t.Helper()
		if nic := harness.As[openapi.NIC](d.Call("PATCH", "/vms/a/nics/1", map[string]any{"link": state}).Want(200)); string(nic.Link) != state {
			t.Errorf("the cable is %s; want %s", nic.Link, state)
		}
		harness.Eventually(t, 10*time.Second, "the guest to see its cable "+state, func() error {
			if got := a.Run("cat /sys/class/net/eth1/carrier"); got != carrier {
				return fmt.Errorf("its carrier is %q", got)
			}
			return nil
		})
	}
	cable("down", "0")
	a.StartUnreachable("10.50.0.1")()
	a.Reaches(harness.FarAddress) // by the other NIC
	cable("up", "1")
	harness.Eventually(t, 20*time.Second, "the second NIC to work again", func() error {
		_, code, err := a.Try("", "ping -c 1 -W 1 10.50.0.1")
		if err == nil && code != 0 {
			err = harness.ErrNotYet
		}
		return err
	})

	before := d.Network("blue").Interfaces
	d.Call("DELETE", "/vms/a/nics/1", nil, harness.Wait).Want(204)
	g.Expect("VMT: nic-remove name=eth1")
	if v := d.VM("a"); len(v.NICs) != 1 {
		t.Errorf("the NICs are %+v", v.NICs)
	}
	if after := d.Network("blue").Interfaces; len(after) != len(before)-1 {
		t.Errorf("the interfaces were %q and are %q", before, after)
	}
	if leases := d.Network("blue").Leases; slices.ContainsFunc(leases, func(l openapi.Lease) bool { return l.VMID == "a" }) {
		t.Errorf("the address is not free: %+v", leases)
	}
	// And once more, in the same place.
	d.Call("POST", "/vms/a/nics", map[string]any{"network": "blue"}, harness.Wait).Want(201)
	g.Expect(`VMT: nic-add name=eth1`)
	g.Expect(`VMT: ip name=eth1`)
}

// TestRateLimits compares what passes with what may pass.
func TestRateLimits(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateVM("a")
	a := d.StartAll("a")[0]
	const limitIn, limitOut = 15000, 10000 // kbit/s
	// The kernel's limit on what leaves the guest lets a second's bytes and 256 KiB
	// pass at once, of the three seconds that are measured.
	near := func(what string, got, limit float64) {
		t.Logf("%s: %.0f kbit/s, %.2f of the limit", what, got, got/limit)
		if got < 0.6*limit || got > 1.4*limit {
			t.Errorf("%s is %.0f kbit/s with a limit of %.0f", what, got, limit)
		}
	}
	free := func(what string, got, limit float64) {
		t.Logf("%s: %.0f kbit/s without a limit", what, got)
		if got < 2*limit {
			t.Errorf("%s is %.0f kbit/s without a limit: no more than with %.0f", what, got, limit)
		}
	}
	for _, limits := range []struct{ in, out int }{{0, 0}, {limitIn, 0}, {0, limitOut}, {limitIn, limitOut}, {0, 0}} {
		d.Call("PATCH", "/vms/a/nics/0", map[string]any{"rate_in": limits.in, "rate_out": limits.out}).Want(200)
		check := map[bool]func(string, float64, float64){true: near, false: free}
		check[limits.in > 0]("in", a.RunNumber("vmt pull -for 2s %s:19", harness.FarAddress), limitIn)
		check[limits.out > 0]("out", a.RunNumber("vmt push -for 3s %s:9", harness.FarAddress), limitOut)
	}
}

func TestNetworksDoNotReachOneAnother(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateNetwork("red", "nat", "10.1.0.0/24", nil)
	d.CreateNetwork("blue", "nat", "10.2.0.0/24", nil)
	d.CreateNetwork("dark", "isolated", "10.3.0.0/24", nil)
	for id, network := range map[string]string{"r": "red", "b": "blue", "d": "dark", "e": "dark"} {
		d.CreateVMWith(id, harness.OnNetworks(network))
	}
	ids := []string{"r", "b", "d", "e"}
	shells := map[string]*harness.Shell{}
	for _, s := range d.StartAll(ids...) {
		shells[s.VM] = s
	}
	ip := func(id string) string { return *d.VM(id).LocalIP }
	var apart []func()
	for _, id := range ids {
		shells[id].Run("ping -c 1 -W 5 %s", *d.Network(d.VM(id).NICs[0].Network).Gateway)
		if _, err := l.Host.HTTPGet(ip(id) + ":80"); err != nil {
			t.Errorf("the host does not reach %s: %v", id, err)
		}
		if conn, err := l.Other.Dial(ip(id) + ":80"); err == nil {
			conn.Close()
			t.Errorf("another host reaches %s", id)
		}
		for _, other := range ids {
			if id != other && id+other != "de" && id+other != "ed" {
				apart = append(apart, shells[id].StartUnreachable(ip(other)))
			}
		}
	}
	apart = append(apart, shells["d"].StartUnreachable(harness.FarAddress), shells["d"].StartUnreachable(harness.OutsideAddress))
	for _, none := range apart {
		none()
	}
	for _, id := range []string{"r", "b"} {
		shells[id].Reaches(harness.FarAddress)
	}
	shells["d"].Reaches(ip("e"))
	d.Call("POST", "/vms/d/port_forwards", map[string]any{"host_port": 8080, "guest_port": 80}).Want(400)
}

func TestGuestsThatAreIsolatedReachOnlyOut(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateNetwork("flats", "nat", "10.9.0.0/24", map[string]any{"isolate_vms": true})
	d.CreateVMWith("a", harness.OnNetworks("flats"))
	d.CreateVMWith("b", harness.OnNetworks("flats"))
	shells := d.StartAll("a", "b")
	a, b, ipA, ipB := shells[0], shells[1], *d.VM("a").LocalIP, *d.VM("b").LocalIP
	apart := func() {
		t.Helper()
		none := []func(){a.StartUnreachable(ipB), b.StartUnreachable(ipA)}
		none[0]()
		none[1]()
		a.Reaches(harness.FarAddress)
		a.Reaches("www.example")
		a.Run("ping -c 1 -W 5 10.9.0.1")
	}
	apart()
	d.Call("PATCH", "/networks/flats", map[string]any{"isolate_vms": false}).Want(200)
	if got := a.Reaches(ipB); got != "b sees "+ipA {
		t.Errorf("after all a asks b and gets %q", got)
	}
	d.Call("PATCH", "/networks/flats", map[string]any{"isolate_vms": true}).Want(200)
	apart()
}

// TestIPv6 has a guest that asks for an address as DHCPv6 clients do, on the word
// of a router advertisement.
func TestIPv6(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateNetwork("six", "nat", "10.6.0.0/24", map[string]any{"ipv6_subnet": "fd00:6::/64"})
	d.CreateVMWith("a", harness.OnNetworks("six"))
	d.CreateVMWith("b", harness.OnNetworks("six"))
	shells := d.StartAll("a", "b")
	for _, s := range shells {
		want := *d.VM(s.VM).NICs[0].IPv6
		// Linux looks for a second whether an address is free before it uses it.
		usable := "until ip -6 addr show dev eth0 | grep %s/ | grep -qv tentative; do usleep 50000; done"
		s.Run(usable, newStation(t, d.VM(s.VM).NICs[0].MAC, *d.VM(s.VM).LocalIP).link)
		got := s.Run("vmt dhcp6 eth0")
		if lines := strings.Split(got, "\n"); lines[0] != "address="+want || !slices.Contains(lines, "dns=fd00:6::1") {
			t.Errorf("DHCPv6 told %s %q; want %s", s.VM, got, want)
		}
		s.Run("ip -6 addr add %s/128 dev eth0", want)
		s.Run(usable, want)
		if routes := s.Run("ip -6 route"); !strings.Contains(routes, "default via fe80::") || !strings.Contains(routes, "fd00:6::/64") {
			t.Errorf("the routes of %s are %q", s.VM, routes)
		}
		s.Run("ping -6 -c 1 -W 5 fd00:6::1")
	}
	ipB := *d.VM("b").NICs[0].IPv6
	shells[0].Run("ping -6 -c 1 -W 5 %s", ipB)
	if got := shells[0].Run("nslookup -type=aaaa b.six.internal"); !strings.Contains(got, ipB) {
		t.Errorf("the AAAA of b is %q; want %s", got, ipB)
	}
	if got := shells[0].Run("nslookup %s", ipB); !strings.Contains(got, "b.six.internal") {
		t.Errorf("the PTR of %s is %q", ipB, got)
	}
}
