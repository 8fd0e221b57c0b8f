package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
)

// on is the property of a new VM that has a NIC on each network.
func on(networks ...string) map[string]any {
	nics := []any{}
	for _, n := range networks {
		nics = append(nics, map[string]any{"network": n})
	}
	return map[string]any{"nics": nics}
}

func (d *daemon) createNetwork(name, mode, subnet string, more map[string]any) openapi.Network {
	d.t.Helper()
	body := map[string]any{"name": name, "mode": mode, "subnet": subnet}
	for k, v := range more {
		body[k] = v
	}
	return as[openapi.Network](d.call("POST", "/networks", body).want(201))
}

func TestNICsComeAndGoWhileTheGuestRuns(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	d.createNetwork("blue", "nat", "10.50.0.0/24", nil)
	d.create("a")
	d.createWith("b", on("blue"))
	shells := d.up("a", "b")
	a, g := shells[0], d.guest("a")
	g.says(ipSaid.String())

	nic := as[openapi.NIC](d.call("POST", "/vms/a/nics", map[string]any{"network": "blue", "ip": "10.50.0.77"}, wait).want(201))
	if nic.Slot != 1 || *nic.IP != "10.50.0.77" || nic.State != "attached" {
		t.Errorf("attached: %+v", nic)
	}
	if added := g.says(`VMT: nic-add name=(\S+) mac=(\S+)`); added[1] != "eth1" || added[2] != nic.MAC {
		t.Errorf("the guest sees %q; want %+v", added, nic)
	}
	if said := g.says(ipSaid.String()); said[1] != "eth1" || said[2] != "10.50.0.77/24" {
		t.Errorf("DHCP told eth1 %q", said)
	}
	if got := a.reaches(*d.vm("b").LocalIP); got != "b sees 10.50.0.77" {
		t.Errorf("by its second NIC the guest gets %q", got)
	}

	cable := func(state string, carrier string) {
		t.Helper()
		if nic := as[openapi.NIC](d.call("PATCH", "/vms/a/nics/1", map[string]any{"link": state}).want(200)); string(nic.Link) != state {
			t.Errorf("the cable is %s; want %s", nic.Link, state)
		}
		eventually(t, 10*time.Second, "the guest to see its cable "+state, func() error {
			if got := a.run("cat /sys/class/net/eth1/carrier"); got != carrier {
				return fmt.Errorf("its carrier is %q", got)
			}
			return nil
		})
	}
	cable("down", "0")
	a.tries("10.50.0.1")()
	a.reaches(farAddress) // by the other NIC
	cable("up", "1")
	eventually(t, 20*time.Second, "the second NIC to work again", func() error {
		_, code, err := a.try("", "ping -c 1 -W 1 10.50.0.1")
		if err == nil && code != 0 {
			err = errNotYet
		}
		return err
	})

	before := d.network("blue").Interfaces
	d.call("DELETE", "/vms/a/nics/1", nil, wait).want(204)
	g.says("VMT: nic-remove name=eth1")
	if v := d.vm("a"); len(v.NICs) != 1 {
		t.Errorf("the NICs are %+v", v.NICs)
	}
	if after := d.network("blue").Interfaces; len(after) != len(before)-1 {
		t.Errorf("the interfaces were %q and are %q", before, after)
	}
	if leases := d.network("blue").Leases; slices.ContainsFunc(leases, func(l openapi.Lease) bool { return l.VMID == "a" }) {
		t.Errorf("the address is not free: %+v", leases)
	}
	// And once more, in the same place.
	d.call("POST", "/vms/a/nics", map[string]any{"network": "blue"}, wait).want(201)
	g.says(`VMT: nic-add name=eth1`)
	g.says(`VMT: ip name=eth1`)
}

// TestRateLimits compares what passes with what may pass.
func TestRateLimits(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	d.create("a")
	a := d.up("a")[0]
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
		d.call("PATCH", "/vms/a/nics/0", map[string]any{"rate_in": limits.in, "rate_out": limits.out}).want(200)
		check := map[bool]func(string, float64, float64){true: near, false: free}
		check[limits.in > 0]("in", a.number("vmt pull -for 2s %s:19", farAddress), limitIn)
		check[limits.out > 0]("out", a.number("vmt push -for 3s %s:9", farAddress), limitOut)
	}
}

func TestNetworksDoNotReachOneAnother(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	d.createNetwork("red", "nat", "10.1.0.0/24", nil)
	d.createNetwork("blue", "nat", "10.2.0.0/24", nil)
	d.createNetwork("dark", "isolated", "10.3.0.0/24", nil)
	for id, network := range map[string]string{"r": "red", "b": "blue", "d": "dark", "e": "dark"} {
		d.createWith(id, on(network))
	}
	ids := []string{"r", "b", "d", "e"}
	shells := map[string]*shell{}
	for _, s := range d.up(ids...) {
		shells[s.id] = s
	}
	ip := func(id string) string { return *d.vm(id).LocalIP }
	var apart []func()
	for _, id := range ids {
		shells[id].run("ping -c 1 -W 5 %s", *d.network(d.vm(id).NICs[0].Network).Gateway)
		if _, err := l.host.get(ip(id) + ":80"); err != nil {
			t.Errorf("the host does not reach %s: %v", id, err)
		}
		if conn, err := l.other.dial(ip(id) + ":80"); err == nil {
			conn.Close()
			t.Errorf("another host reaches %s", id)
		}
		for _, other := range ids {
			if id != other && id+other != "de" && id+other != "ed" {
				apart = append(apart, shells[id].tries(ip(other)))
			}
		}
	}
	apart = append(apart, shells["d"].tries(farAddress), shells["d"].tries(outsideAddress))
	for _, none := range apart {
		none()
	}
	for _, id := range []string{"r", "b"} {
		shells[id].reaches(farAddress)
	}
	shells["d"].reaches(ip("e"))
	d.call("POST", "/vms/d/port_forwards", map[string]any{"host_port": 8080, "guest_port": 80}).want(400)
}

func TestGuestsThatAreIsolatedReachOnlyOut(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	d.createNetwork("flats", "nat", "10.9.0.0/24", map[string]any{"isolate_vms": true})
	d.createWith("a", on("flats"))
	d.createWith("b", on("flats"))
	shells := d.up("a", "b")
	a, b, ipA, ipB := shells[0], shells[1], *d.vm("a").LocalIP, *d.vm("b").LocalIP
	apart := func() {
		t.Helper()
		none := []func(){a.tries(ipB), b.tries(ipA)}
		none[0]()
		none[1]()
		a.reaches(farAddress)
		a.reaches("www.example")
		a.run("ping -c 1 -W 5 10.9.0.1")
	}
	apart()
	d.call("PATCH", "/networks/flats", map[string]any{"isolate_vms": false}).want(200)
	if got := a.reaches(ipB); got != "b sees "+ipA {
		t.Errorf("after all a asks b and gets %q", got)
	}
	d.call("PATCH", "/networks/flats", map[string]any{"isolate_vms": true}).want(200)
	apart()
}

// TestIPv6 has a guest that asks for an address as DHCPv6 clients do, on the word
// of a router advertisement.
func TestIPv6(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	d.createNetwork("six", "nat", "10.6.0.0/24", map[string]any{"ipv6_subnet": "fd00:6::/64"})
	d.createWith("a", on("six"))
	d.createWith("b", on("six"))
	shells := d.up("a", "b")
	for _, s := range shells {
		want := *d.vm(s.id).NICs[0].IPv6
		// Linux looks for a second whether an address is free before it uses it.
		usable := "until ip -6 addr show dev eth0 | grep %s/ | grep -qv tentative; do usleep 50000; done"
		s.run(usable, newStation(t, d.vm(s.id).NICs[0].MAC, *d.vm(s.id).LocalIP).link)
		got := s.run("vmt dhcp6 eth0")
		if lines := strings.Split(got, "\n"); lines[0] != "address="+want || !slices.Contains(lines, "dns=fd00:6::1") {
			t.Errorf("DHCPv6 told %s %q; want %s", s.id, got, want)
		}
		s.run("ip -6 addr add %s/128 dev eth0", want)
		s.run(usable, want)
		if routes := s.run("ip -6 route"); !strings.Contains(routes, "default via fe80::") || !strings.Contains(routes, "fd00:6::/64") {
			t.Errorf("the routes of %s are %q", s.id, routes)
		}
		s.run("ping -6 -c 1 -W 5 fd00:6::1")
	}
	ipB := *d.vm("b").NICs[0].IPv6
	shells[0].run("ping -6 -c 1 -W 5 %s", ipB)
	if got := shells[0].run("nslookup -type=aaaa b.six.internal"); !strings.Contains(got, ipB) {
		t.Errorf("the AAAA of b is %q; want %s", got, ipB)
	}
	if got := shells[0].run("nslookup %s", ipB); !strings.Contains(got, "b.six.internal") {
		t.Errorf("the PTR of %s is %q", ipB, got)
	}
}
