package test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"vmand/openapi"
)

// createWith makes a VM of the template "small" with more properties.
func (d *daemon) createWith(id string, more map[string]any) openapi.VM {
	d.t.Helper()
	body := map[string]any{"template_name": "small", "name": id}
	for k, v := range more {
		body[k] = v
	}
	return as[openapi.VM](d.call("POST", "/vms", body).want(201))
}

// up starts VMs together, waits until each has confirmed its address, and returns
// their shells.
func (d *daemon) up(ids ...string) []*shell {
	d.t.Helper()
	answers := make(chan error, len(ids))
	for _, id := range ids {
		go func() {
			a, err := d.try("POST", "/vms/"+id+"/actions/start?wait_for=ip", nil, wait)
			if err == nil && a.status != 200 {
				err = fmt.Errorf("start %s: %d %s", id, a.status, a.body)
			}
			answers <- err
		}()
	}
	for range ids {
		if err := <-answers; err != nil {
			d.t.Fatal(err)
		}
	}
	var shells []*shell
	for _, id := range ids {
		shells = append(shells, d.shell(id))
	}
	return shells
}

// forward leads a port of the host to one of a VM.
func (d *daemon) forward(id, protocol, address string, port, guest int) openapi.PortForward {
	d.t.Helper()
	return as[openapi.PortForward](d.call("POST", "/vms/"+id+"/port_forwards", map[string]any{
		"protocol": protocol, "host_address": address, "host_port": port, "guest_port": guest}).want(201))
}

func (d *daemon) network(name string) openapi.NetworkDetails {
	d.t.Helper()
	return as[openapi.NetworkDetails](d.call("GET", "/networks/"+name, nil).want(200))
}

// isolatedEnough is how many seconds a connection is tried that must not come about.
const isolatedEnough = 2

// reaches fails the test unless the guest's HTTP requests to an address arrive.
func (s *shell) reaches(address string) string {
	s.d.t.Helper()
	return s.run("timeout 15 wget -q -O - http://%s/ 2>&1", address)
}

// tries begins to reach an address that it must not, and returns what waits for
// that and fails the test if it does.
func (s *shell) tries(address string) func() {
	s.d.t.Helper()
	ended := s.start("timeout %[1]d wget -q -O - http://%[2]s/ 2>&1 || ping -c 1 -W %[1]d %[2]s", isolatedEnough, address)
	return func() {
		s.d.t.Helper()
		if out, err := ended(); err == nil {
			s.d.t.Errorf("guest %s reaches %s: %s", s.id, address, out)
		}
	}
}

// TestTheDefaultNetwork is what a user has who configured nothing.
func TestTheDefaultNetwork(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	n := d.network("vman0")
	if n.Mode != "nat" || *n.Subnet != "192.168.100.0/24" || *n.Gateway != "192.168.100.1" || len(n.Problems) != 0 {
		t.Fatalf("the default network is %+v", n)
	}
	var before []openapi.VM
	for _, id := range []string{"a", "b"} {
		v := d.create(id)
		if v.LocalIP == nil || v.LocalIPSource == nil || *v.LocalIPSource != "assigned" || !v.ReachableFromHost || len(v.NICs) != 1 {
			t.Fatalf("created: %+v", v)
		}
		before = append(before, v)
	}
	if *before[0].LocalIP != "192.168.100.2" || *before[1].LocalIP != "192.168.100.3" {
		t.Errorf("the addresses are %s and %s, not the lowest", *before[0].LocalIP, *before[1].LocalIP)
	}
	shells := d.up("a", "b")
	a, b := shells[0], shells[1]
	ipA, ipB := *before[0].LocalIP, *before[1].LocalIP

	l.part(d, "the guest has the address that was known before", func(t *testing.T) {
		for i, v := range before {
			got := d.guest(v.ID).says(ipSaid.String())
			want := []string{"eth0", *v.LocalIP + "/24", "192.168.100.1", "192.168.100.1", "vman0.internal", v.ID}
			if !slices.Equal(got[1:7], want) {
				t.Errorf("DHCP told %s %q; want %q", v.ID, got[1:7], want)
			}
			if now := d.vm(v.ID); *now.LocalIP != *v.LocalIP {
				t.Errorf("%s has %s now", v.ID, *now.LocalIP)
			}
			if mac := shells[i].run("cat /sys/class/net/eth0/address"); mac != v.NICs[0].MAC {
				t.Errorf("the MAC of %s is %s; want %s", v.ID, mac, v.NICs[0].MAC)
			}
		}
	})
	l.part(d, "leases", func(t *testing.T) {
		n := d.network("vman0")
		if len(n.Leases) != 2 {
			t.Fatalf("the leases are %+v", n.Leases)
		}
		for i, lease := range n.Leases {
			v := before[i]
			if *lease.IP != *v.LocalIP || lease.MAC != v.NICs[0].MAC || lease.VMID != v.ID || lease.AckedAt == nil || lease.ExpiresAt == nil ||
				lease.ExpiresAt.Sub(lease.AckedAt.Time) < time.Hour {
				t.Errorf("the lease of %s is %+v", v.ID, lease)
			}
		}
	})
	l.part(d, "the boot's times are in their order", func(t *testing.T) { bootInOrder(t, d.vm("a"), false) })
	l.part(d, "gateway and neighbour", func(t *testing.T) {
		a.run("ping -c 1 -W 5 192.168.100.1")
		b.run("ping -c 1 -W 5 %s", ipA)
		if got := a.reaches(ipB); got != "b sees "+ipA {
			t.Errorf("a asks b and gets %q", got)
		}
		if got, err := l.host.get(ipB + ":80"); err != nil || got != "b sees 192.168.100.1" {
			t.Errorf("the host asks b and gets %q, %v", got, err)
		}
	})
	l.part(d, "outside, by the host's address", func(t *testing.T) {
		if got := a.reaches(farAddress); !strings.HasSuffix(got, "sees "+hostAddress) {
			t.Errorf("outside answers %q", got)
		}
		a.run("ping -c 1 -W 5 %s", farAddress)
		if conn, err := l.other.dial(net.JoinHostPort(ipA, "80")); err == nil {
			conn.Close()
			t.Error("another host reaches the guest without a forward")
		}
	})
	l.part(d, "names", func(t *testing.T) { namesResolve(t, l, d, a, ipA, ipB) })
	l.part(d, "forwards", func(t *testing.T) { forwardsLead(t, l, d, a, b) })
	l.part(d, "the address stays over a stop", func(t *testing.T) {
		d.call("POST", "/vms/a/actions/stop", map[string]any{"force": true}, wait).want(200)
		v := as[openapi.VM](d.call("POST", "/vms/a/actions/start?wait_for=port:80", nil, wait).want(200))
		if *v.LocalIP != ipA {
			t.Errorf("a had %s and has %s", ipA, *v.LocalIP)
		}
		if got, err := l.host.get(ipA + ":80"); err != nil {
			t.Errorf("port 80 was waited for and says %q, %v", got, err)
		}
		bootInOrder(t, d.vm("a"), true)
	})
}

// bootInOrder fails the test unless the times of a boot that was waited for are
// all there, one after the other.
func bootInOrder(t *testing.T, v openapi.VM, tcp bool) {
	t.Helper()
	times := []*openapi.Time{v.Boot.SpawnedAt, v.Boot.QMPReadyAt, v.Boot.FirstSerialAt, v.Boot.DHCPAckAt, v.Boot.FirstTCPAt}
	if !tcp {
		if times[4] != nil {
			t.Errorf("nobody waited for a port, and %+v has it", v.Boot)
		}
		times = times[:4]
	}
	last := v.StartedAt.Add(-time.Minute)
	for i, at := range times {
		if at == nil || at.Before(last) {
			t.Fatalf("time %d of the boot is missing or before the one before: %+v", i, v.Boot)
		}
		last = at.Time
	}
}

func namesResolve(t *testing.T, l *lab, d *daemon, a *shell, ipA, ipB string) {
	if got := a.run("cat /etc/resolv.conf"); got != "search vman0.internal\nnameserver 192.168.100.1" {
		t.Errorf("resolv.conf is %q", got)
	}
	for _, name := range []string{"b", "b.vman0.internal", "www.example"} {
		a.reaches(name)
	}
	a.fails("nslookup nobody.vman0.internal")
	a.fails("nslookup nothing.nowhere")
	reverse, err := dns.ReverseAddr(ipB)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct {
		name string
		kind uint16
		want string
	}{{"a.vman0.internal", dns.TypeA, ipA}, {"b.vman0.internal", dns.TypeA, ipB}, {reverse, dns.TypePTR, "b.vman0.internal."}, {"www.example", dns.TypeA, outsideAddress}} {
		if got, _, err := l.host.ask("192.168.100.1", q.name, q.kind); err != nil || !slices.Equal(got, []string{q.want}) {
			t.Errorf("%s is %q, %v; want %s", q.name, got, err, q.want)
		}
	}
	if got := a.run("nslookup %s", ipB); !strings.Contains(got, "b.vman0.internal") {
		t.Errorf("the guest asks who %s is and gets %q", ipB, got)
	}
	// From outside nobody is served, whichever address of the host is asked.
	for _, server := range []string{hostAddress, "192.168.100.1"} {
		if got, _, err := l.other.ask(server, "www.example", dns.TypeA); err == nil && len(got) > 0 {
			t.Errorf("%s answers another host %q", server, got)
		}
	}
	_ = d
}

func forwardsLead(t *testing.T, l *lab, d *daemon, a, b *shell) {
	f := d.forward("a", "tcp", "0.0.0.0", 8080, 80)
	d.forward("b", "udp", hostAddress, 7007, 7)
	d.forward("b", "tcp", "127.0.0.1", 8081, 80)
	if v := d.vm("a"); len(v.PortForwards) != 1 || v.PortForwards[0] != f {
		t.Errorf("the forwards of a are %+v; want %+v", v.PortForwards, f)
	}
	if got := l.other.answers(hostAddress + ":8080"); got != "a sees "+otherAddress {
		t.Errorf("another host gets %q", got)
	}
	for _, address := range []string{hostAddress, "127.0.0.1", "192.168.100.1"} {
		if got := l.host.answers(address + ":8080"); !strings.HasPrefix(got, "a sees 192.168.100.") && got != "a sees "+hostAddress {
			t.Errorf("the host asks %s and gets %q", address, got)
		}
	}
	if got := l.host.answers("127.0.0.1:8081"); !strings.HasPrefix(got, "b sees ") {
		t.Errorf("the host gets %q on its loopback", got)
	}
	if conn, err := l.other.dial(hostAddress + ":8081"); err == nil {
		conn.Close()
		t.Error("a forward on the loopback is open to another host")
	}
	// Hairpin: a guest by the host's address, another's and its own port.
	for _, s := range []*shell{a, b} {
		if got := s.reaches(hostAddress + ":8080"); !strings.HasPrefix(got, "a sees ") {
			t.Errorf("%s gets %q through the host's address", s.id, got)
		}
	}
	if got := echoUDP(t, l.other, hostAddress+":7007"); got != "hello" {
		t.Errorf("the echo by UDP is %q", got)
	}
	d.call("POST", "/vms/b/port_forwards", map[string]any{"host_port": 8080, "guest_port": 80}).problem(409, "in-use")
	d.call("DELETE", "/vms/a/port_forwards/"+f.ID, nil).want(204)
	eventually(t, 5*time.Second, "the forward to end", func() error {
		if conn, err := l.other.dial(hostAddress + ":8080"); err == nil {
			conn.Close()
			return errNotYet
		}
		return nil
	})
}

// echoUDP says hello until there is an echo.
func echoUDP(t *testing.T, n *namespace, address string) string {
	t.Helper()
	var got string
	eventually(t, 10*time.Second, "an echo of "+address, func() error {
		return n.try(func() error {
			conn, err := net.Dial("udp", address)
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("hello")); err != nil {
				return err
			}
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			buf := make([]byte, 100)
			n, err := conn.Read(buf)
			got = string(buf[:n])
			return err
		})
	})
	return got
}

// TestGuestsThatSayTheyAreTheSameHaveTwoAddresses has two copies of one image,
// which share the id that a DHCP client makes of /etc/machine-id.
func TestGuestsThatSayTheyAreTheSameHaveTwoAddresses(t *testing.T) {
	d := newLab(t).daemon(t, bootDisk("clones"))
	d.create("a")
	d.create("b")
	for i, s := range d.up("a", "b") {
		want := fmt.Sprintf("192.168.100.%d/24", 2+i)
		if got := d.guest(s.id).says(ipSaid.String())[2]; got != want {
			t.Errorf("%s has %s; want %s", s.id, got, want)
		}
	}
}

func TestFiftyVMsHaveFiftyAddresses(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	answers := make(chan answer, 50)
	for i := range 50 {
		go func() {
			a, err := d.try("POST", "/vms", map[string]any{"template_name": "small", "name": fmt.Sprintf("vm-%d", i)})
			if err != nil {
				a = answer{t: t, what: err.Error()}
			}
			answers <- a
		}()
	}
	addresses, macs := map[string]bool{}, map[string]bool{}
	for range 50 {
		v := as[openapi.VM]((<-answers).want(201))
		ip := netip.MustParseAddr(*v.LocalIP)
		if !netip.MustParsePrefix("192.168.100.0/24").Contains(ip) {
			t.Errorf("%s has %s", v.ID, ip)
		}
		addresses[*v.LocalIP], macs[v.NICs[0].MAC] = true, true
	}
	if len(addresses) != 50 || len(macs) != 50 {
		t.Errorf("there are %d addresses and %d MACs", len(addresses), len(macs))
	}
	for _, s := range d.up("vm-0", "vm-17", "vm-49") {
		if got := d.guest(s.id).says(ipSaid.String())[2]; got != *d.vm(s.id).LocalIP+"/24" {
			t.Errorf("%s was told %s; want %s", s.id, got, *d.vm(s.id).LocalIP)
		}
	}
}

func TestANetworkRunsOutOfAddresses(t *testing.T) {
	d := newLab(t).daemon(t)
	d.call("POST", "/networks", map[string]any{"name": "tiny", "mode": "nat", "subnet": "10.77.0.0/29"}).want(201)
	on := map[string]any{"nics": []any{map[string]any{"network": "tiny"}}}
	for i := range 5 { // of eight: not the network's, the gateway's, the broadcast
		v := d.createWith(fmt.Sprintf("vm-%d", i), on)
		if want := fmt.Sprintf("10.77.0.%d", 2+i); *v.LocalIP != want {
			t.Errorf("%s has %s; want %s", v.ID, *v.LocalIP, want)
		}
	}
	d.call("POST", "/vms", map[string]any{"template_name": "small", "name": "more", "nics": on["nics"]}).problem(409, "addresses-exhausted", "tiny")
	d.call("GET", "/vms/more", nil).want(404)
	d.call("POST", "/vms", map[string]any{"template_name": "small", "name": "more",
		"nics": []any{map[string]any{"network": "tiny", "ip": "10.77.0.4"}}}).problem(409, "in-use", "10.77.0.4")
	d.call("DELETE", "/vms/vm-2", nil).want(204)
	if v := d.createWith("more", on); *v.LocalIP != "10.77.0.4" {
		t.Errorf("the one that is free again is not given: %s", *v.LocalIP)
	}
}
