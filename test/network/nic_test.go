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

func TestNICHotplug(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateNetwork("blue", "nat", "10.50.0.0/24", nil)
	d.CreateVM("a")
	d.CreateVMWith("b", harness.OnNetworks("blue"))
	shells := d.StartAll("a", "b")
	a, g := shells[0], d.Serial("a")
	g.Expect(harness.DHCPLine.String())

	body := map[string]any{"network": "blue", "ip": "10.50.0.77"}
	nic := harness.As[openapi.NIC](d.Call("POST", "/vms/a/nics", body, harness.Wait).Want(201))
	if nic.Slot != 1 || *nic.IP != "10.50.0.77" || nic.State != "attached" {
		t.Errorf("the NIC is %+v, want slot 1 with 10.50.0.77", nic)
	}
	if added := g.Expect(`VMT: nic-add name=(\S+) mac=(\S+)`); added[1] != "eth1" || added[2] != nic.MAC {
		t.Errorf("the guest printed %q, want %+v", added, nic)
	}
	if said := g.Expect(harness.DHCPLine.String()); said[1] != "eth1" || said[2] != "10.50.0.77/24" {
		t.Errorf("DHCP configured eth1 with %q", said)
	}
	if got := a.Reaches(*d.VM("b").LocalIP); got != "b sees 10.50.0.77" {
		t.Errorf("guest b answers the second NIC with %q", got)
	}

	setLink := func(state, carrier string) {
		t.Helper()
		nic := harness.As[openapi.NIC](d.Call("PATCH", "/vms/a/nics/1", map[string]any{"link": state}).Want(200))
		if string(nic.Link) != state {
			t.Errorf("the link is %s, want %s", nic.Link, state)
		}
		harness.Eventually(t, 10*time.Second, "the guest to see its link "+state, func() error {
			if got := a.Run("cat /sys/class/net/eth1/carrier"); got != carrier {
				return fmt.Errorf("its carrier is %q", got)
			}
			return nil
		})
	}
	setLink("down", "0")
	a.StartUnreachable("10.50.0.1")()
	a.Reaches(harness.FarAddress) // through the other NIC
	setLink("up", "1")
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
		t.Errorf("the NICs are %+v, want one", v.NICs)
	}
	if after := d.Network("blue").Interfaces; len(after) != len(before)-1 {
		t.Errorf("the interfaces are %q, want one less than %q", after, before)
	}
	ofA := func(l openapi.Lease) bool { return l.VMID == "a" }
	if leases := d.Network("blue").Leases; slices.ContainsFunc(leases, ofA) {
		t.Errorf("the leases are %+v, want none of VM a", leases)
	}
	// The next NIC uses the same slot.
	d.Call("POST", "/vms/a/nics", map[string]any{"network": "blue"}, harness.Wait).Want(201)
	g.Expect(`VMT: nic-add name=eth1`)
	g.Expect(`VMT: ip name=eth1`)
}

// TestRateLimits compares the throughput of a guest with the limits of its NIC.
func TestRateLimits(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateVM("a")
	a := d.StartAll("a")[0]
	const limitIn, limitOut = 15000, 10000 // kbit/s
	// The kernel's limit for packets from the guest has a burst of 256 KiB and the bytes
	// of a second, so that more than the limit can pass in the measured three seconds.
	near := func(what string, got, limit float64) {
		t.Logf("%s: %.0f kbit/s, %.2f of the limit", what, got, got/limit)
		if got < 0.6*limit || got > 1.4*limit {
			t.Errorf("%s: %.0f kbit/s, want between 0.6 and 1.4 of %.0f kbit/s", what, got, limit)
		}
	}
	free := func(what string, got, limit float64) {
		t.Logf("%s: %.0f kbit/s without a limit", what, got)
		if got < 2*limit {
			t.Errorf("%s: %.0f kbit/s without a limit, want at least twice %.0f kbit/s", what, got, limit)
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
			t.Errorf("the host does not reach guest %s: %v", id, err)
		}
		if conn, err := l.Other.Dial(ip(id) + ":80"); err == nil {
			conn.Close()
			t.Errorf("another host reaches guest %s", id)
		}
		for _, other := range ids {
			if id != other && id+other != "de" && id+other != "ed" {
				apart = append(apart, shells[id].StartUnreachable(ip(other)))
			}
		}
	}
	apart = append(apart, shells["d"].StartUnreachable(harness.FarAddress))
	apart = append(apart, shells["d"].StartUnreachable(harness.OutsideAddress))
	for _, none := range apart {
		none()
	}
	for _, id := range []string{"r", "b"} {
		shells[id].Reaches(harness.FarAddress)
	}
	shells["d"].Reaches(ip("e"))
	d.Call("POST", "/vms/d/port_forwards", map[string]any{"host_port": 8080, "guest_port": 80}).Want(400)
}

func TestIsolatedGuestsReachOnlyOtherNetworks(t *testing.T) {
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
		t.Errorf("without isolation, guest b answers guest a with %q", got)
	}
	d.Call("PATCH", "/networks/flats", map[string]any{"isolate_vms": true}).Want(200)
	apart()
}

// TestIPv6 configures guests by router advertisements and DHCPv6.
func TestIPv6(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateNetwork("six", "nat", "10.6.0.0/24", map[string]any{"ipv6_subnet": "fd00:6::/64"})
	d.CreateVMWith("a", harness.OnNetworks("six"))
	d.CreateVMWith("b", harness.OnNetworks("six"))
	shells := d.StartAll("a", "b")
	for _, s := range shells {
		want := *d.VM(s.VM).NICs[0].IPv6
		// Linux uses an address after a second of duplicate address detection.
		usable := "until ip -6 addr show dev eth0 | grep %s/ | grep -qv tentative; do usleep 50000; done"
		s.Run(usable, newStation(t, d.VM(s.VM).NICs[0].MAC, *d.VM(s.VM).LocalIP).link)
		got := s.Run("vmt dhcp6 eth0")
		if lines := strings.Split(got, "\n"); lines[0] != "address="+want || !slices.Contains(lines, "dns=fd00:6::1") {
			t.Errorf("DHCPv6 configured guest %s with %q, want %s", s.VM, got, want)
		}
		s.Run("ip -6 addr add %s/128 dev eth0", want)
		s.Run(usable, want)
		routes := s.Run("ip -6 route")
		if !strings.Contains(routes, "default via fe80::") || !strings.Contains(routes, "fd00:6::/64") {
			t.Errorf("the routes of guest %s are %q", s.VM, routes)
		}
		s.Run("ping -6 -c 1 -W 5 fd00:6::1")
	}
	ipB := *d.VM("b").NICs[0].IPv6
	shells[0].Run("ping -6 -c 1 -W 5 %s", ipB)
	if got := shells[0].Run("nslookup -type=aaaa b.six.internal"); !strings.Contains(got, ipB) {
		t.Errorf("the AAAA record of b is %q, want %s", got, ipB)
	}
	if got := shells[0].Run("nslookup %s", ipB); !strings.Contains(got, "b.six.internal") {
		t.Errorf("the PTR record of %s is %q, want b.six.internal", ipB, got)
	}
	forwardsOfARangeLead(t, l, d, shells[0], shells[1])
}

// forwardsOfARangeLead forwards three ports of both families to guest a, the second of which to its
// port 80.
func forwardsOfARangeLead(t *testing.T, l *harness.Lab, d *harness.Daemon, a, b *harness.Shell) {
	t.Helper()
	var ids []string
	for _, address := range []string{"0.0.0.0", "::"} {
		body := map[string]any{"host_address": address, "host_port": 8000, "guest_port": 79, "ports": 3}
		f := harness.As[openapi.PortForward](d.Call("POST", "/vms/a/port_forwards", body).Want(201))
		if f.Ports != 3 || f.HostAddress != address {
			t.Errorf("the port forward is %+v", f)
		}
		ids = append(ids, f.ID)
	}
	const host6 = "[2001:db8::1]"
	for host, source := range map[string]string{harness.HostAddress: harness.OtherAddress, host6: "2001:db8::3"} {
		if got := l.Other.WaitHTTP(host + ":8001"); got != "a sees "+source {
			t.Errorf("guest a answers another host at %s with %q", host, got)
		}
		if got := l.Host.WaitHTTP(host + ":8001"); !strings.HasPrefix(got, "a sees ") {
			t.Errorf("the host connects to %s and gets %q", host, got)
		}
		for _, s := range []*harness.Shell{a, b} { // hairpin
			if got := s.Reaches(host + ":8001"); !strings.HasPrefix(got, "a sees ") {
				t.Errorf("guest %s gets %q through %s", s.VM, got, host)
			}
		}
		if conn, err := l.Other.Dial(host + ":8000"); err == nil {
			conn.Close()
			t.Errorf("port 8000 of %s leads to a port of the guest without a server", host)
		}
	}
	for _, id := range ids {
		d.Call("DELETE", "/vms/a/port_forwards/"+id, nil).Want(204)
	}
	for _, host := range []string{harness.HostAddress, host6} {
		if conn, err := l.Other.Dial(host + ":8001"); err == nil {
			conn.Close()
			t.Errorf("a deleted port forward of %s is open", host)
		}
	}
}

// TestExtraAddressMovesBetweenGuests gives two guests the same extra address, as VRRP does.
func TestExtraAddressMovesBetweenGuests(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	const extra = "192.168.100.200"
	d.CreateVM("a")
	d.CreateVMWith("b", map[string]any{"nics": []any{map[string]any{"extra_addresses": []string{extra}}}})
	shells := d.StartAll("a", "b")
	a, b := shells[0], shells[1]
	get := func(s *harness.Shell) string {
		out, _, _ := s.Try("", "timeout 2 wget -q -O - http://"+extra+"/ 2>&1")
		return strings.TrimSpace(out)
	}
	a.Run("ip addr add %s/32 dev eth0", extra)
	if got := get(b); strings.Contains(got, "sees") {
		t.Errorf("guest a uses the address without a permission: b gets %q", got)
	}
	if why := d.Call("GET", "/vms/a/why", nil).Want(200); !strings.Contains(string(why.Body), "uses "+extra+" on its NIC 0") {
		t.Errorf("the reason is not explained: %s", why.Body)
	}
	n := harness.As[openapi.NIC](d.Call("PATCH", "/vms/a/nics/0", map[string]any{"extra_addresses": []string{extra}}).Want(200))
	if !slices.Equal(n.ExtraAddresses, []string{extra + "/32"}) {
		t.Errorf("the NIC is %+v", n)
	}
	reaches := func(s *harness.Shell, want string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, "guest "+want+" to answer guest "+s.VM+" at "+extra, func() error {
			if got := get(s); !strings.HasPrefix(got, want+" sees ") {
				return fmt.Errorf("got %q", got)
			}
			return nil
		})
	}
	reaches(b, "a")
	if got := l.Host.WaitHTTP(extra + ":80"); !strings.HasPrefix(got, "a sees ") {
		t.Errorf("the host gets %q", got)
	}
	// The address moves, and keeps working without the daemon.
	a.Run("ip addr del %s/32 dev eth0", extra)
	b.Run("ip addr add %s/32 dev eth0", extra)
	d.Kill()
	reaches(a, "b")
	d.Start()
	d.Call("PATCH", "/vms/b/nics/0", map[string]any{"extra_addresses": []string{*d.VM("a").LocalIP}}).Problem(409, "in-use")
	d.Call("POST", "/vms/b/nics", map[string]any{"ip": extra}).Problem(409, "in-use")
	d.Call("PATCH", "/vms/b/nics/0", map[string]any{"extra_addresses": []string{}}).Want(200)
	a.Run("ip neigh flush dev eth0")
	if got := get(a); strings.Contains(got, "sees") {
		t.Errorf("guest b uses the address after its removal: a gets %q", got)
	}
}
