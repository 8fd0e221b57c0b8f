package network

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
	"vmand/test/harness"
)

// TestTheDefaultNetwork checks the network of the default configuration.
func TestTheDefaultNetwork(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	n := d.Network("vman0")
	if n.Mode != "nat" || *n.Subnet != "192.168.100.0/24" ||
		*n.Gateway != "192.168.100.1" || len(n.Problems) != 0 {
		t.Fatalf("the default network is %+v", n)
	}
	var before []openapi.VM
	for _, id := range []string{"a", "b"} {
		v := d.CreateVM(id)
		if v.LocalIP == nil || harness.Deref(v.LocalIPSource) != "assigned" || !v.ReachableFromHost || len(v.NICs) != 1 {
			t.Fatalf("the new VM is %+v, want one NIC with an assigned address", v)
		}
		before = append(before, v)
	}
	if *before[0].LocalIP != "192.168.100.2" || *before[1].LocalIP != "192.168.100.3" {
		t.Errorf("the addresses are %s and %s, want the lowest", *before[0].LocalIP, *before[1].LocalIP)
	}
	shells := d.StartAll("a", "b")
	a, b := shells[0], shells[1]
	ipA, ipB := *before[0].LocalIP, *before[1].LocalIP

	l.Run(d, "the guest has the address that was known before", func(t *testing.T) {
		for i, v := range before {
			got := d.Serial(v.ID).Expect(harness.DHCPLine.String())
			want := []string{"eth0", *v.LocalIP + "/24", "192.168.100.1", "192.168.100.1", "vman0.internal", v.ID}
			if !slices.Equal(got[1:7], want) {
				t.Errorf("DHCP configured guest %s with %q, want %q", v.ID, got[1:7], want)
			}
			if now := d.VM(v.ID); *now.LocalIP != *v.LocalIP {
				t.Errorf("VM %s has the address %s, want %s", v.ID, *now.LocalIP, *v.LocalIP)
			}
			if mac := shells[i].Run("cat /sys/class/net/eth0/address"); mac != v.NICs[0].MAC {
				t.Errorf("the MAC address of guest %s is %s, want %s", v.ID, mac, v.NICs[0].MAC)
			}
		}
	})
	l.Run(d, "leases", func(t *testing.T) {
		n := d.Network("vman0")
		if len(n.Leases) != 2 {
			t.Fatalf("the leases are %+v, want two", n.Leases)
		}
		for i, lease := range n.Leases {
			v := before[i]
			if *lease.IP != *v.LocalIP || lease.MAC != v.NICs[0].MAC || lease.VMID != v.ID ||
				lease.AckedAt == nil || lease.ExpiresAt == nil ||
				lease.ExpiresAt.Sub(lease.AckedAt.Time) < time.Hour {
				t.Errorf("the lease of VM %s is %+v, want %s for an hour or more", v.ID, lease, *v.LocalIP)
			}
		}
	})
	l.Run(d, "the boot's times are in their order", func(t *testing.T) { bootInOrder(t, d.VM("a"), false) })
	l.Run(d, "gateway and neighbour", func(t *testing.T) {
		a.Run("ping -c 1 -W 5 192.168.100.1")
		b.Run("ping -c 1 -W 5 %s", ipA)
		if got := a.Reaches(ipB); got != "b sees "+ipA {
			t.Errorf("guest b answers guest a with %q", got)
		}
		if got, err := l.Host.HTTPGet(ipB + ":80"); err != nil || got != "b sees 192.168.100.1" {
			t.Errorf("guest b answers the host with %q, %v", got, err)
		}
	})
	l.Run(d, "outside, by the host's address", func(t *testing.T) {
		if got := a.Reaches(harness.FarAddress); !strings.HasSuffix(got, "sees "+harness.HostAddress) {
			t.Errorf("outside answers the guest with %q, want the host's address", got)
		}
		a.Run("ping -c 1 -W 5 %s", harness.FarAddress)
		if conn, err := l.Other.Dial(net.JoinHostPort(ipA, "80")); err == nil {
			conn.Close()
			t.Error("another host reaches the guest without a port forward")
		}
	})
	l.Run(d, "names", func(t *testing.T) { namesResolve(t, l, a, ipA, ipB) })
	l.Run(d, "forwards", func(t *testing.T) { forwardsLead(t, l, d, a, b) })
	l.Run(d, "the address stays over a stop", func(t *testing.T) {
		d.ForceStop("a")
		v := harness.As[openapi.VM](d.Call("POST", "/vms/a/actions/start?wait_for=port:80", nil, harness.Wait).Want(200))
		if *v.LocalIP != ipA {
			t.Errorf("VM a has the address %s, want %s", *v.LocalIP, ipA)
		}
		if got, err := l.Host.HTTPGet(ipA + ":80"); err != nil {
			t.Errorf("after waiting for port 80, the guest answers %q, %v", got, err)
		}
		bootInOrder(t, d.VM("a"), true)
	})
}

// bootInOrder fails the test unless all times of a boot are set and in order. tcp says that
// the start has waited for a port.
func bootInOrder(t *testing.T, v openapi.VM, tcp bool) {
	t.Helper()
	times := []*openapi.Time{
		v.Boot.SpawnedAt,
		v.Boot.QMPReadyAt,
		v.Boot.FirstSerialAt,
		v.Boot.DHCPAckAt,
		v.Boot.FirstTCPAt,
	}
	if !tcp {
		if times[4] != nil {
			t.Errorf("the boot is %+v, want no time of a TCP connection", v.Boot)
		}
		times = times[:4]
	}
	last := v.StartedAt.Add(-time.Minute)
	for i, at := range times {
		if at == nil || at.Before(last) {
			t.Fatalf("time %d of the boot is missing or out of order: %+v", i, v.Boot)
		}
		last = at.Time
	}
}

// namesResolve checks the name server of the network, from the guest, the host and outside.
func namesResolve(t *testing.T, l *harness.Lab, a *harness.Shell, ipA, ipB string) {
	if got := a.Run("cat /etc/resolv.conf"); got != "search vman0.internal\nnameserver 192.168.100.1" {
		t.Errorf("resolv.conf in the guest is %q", got)
	}
	for _, name := range []string{"b", "b.vman0.internal", "www.example"} {
		a.Reaches(name)
	}
	a.RunFailing("nslookup nobody.vman0.internal")
	a.RunFailing("nslookup nothing.nowhere")
	reverse, err := dns.ReverseAddr(ipB)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct {
		name string
		kind uint16
		want string
	}{
		{"a.vman0.internal", dns.TypeA, ipA},
		{"b.vman0.internal", dns.TypeA, ipB},
		{reverse, dns.TypePTR, "b.vman0.internal."},
		{"www.example", dns.TypeA, harness.OutsideAddress},
	} {
		got, _, err := l.Host.QueryDNS("192.168.100.1", q.name, q.kind)
		if err != nil || !slices.Equal(got, []string{q.want}) {
			t.Errorf("%s resolves to %q, %v, want %s", q.name, got, err, q.want)
		}
	}
	if got := a.Run("nslookup %s", ipB); !strings.Contains(got, "b.vman0.internal") {
		t.Errorf("nslookup %s in the guest printed %q", ipB, got)
	}
	// The name server answers no host outside of the network, at no address.
	for _, server := range []string{harness.HostAddress, "192.168.100.1"} {
		if got, _, err := l.Other.QueryDNS(server, "www.example", dns.TypeA); err == nil && len(got) > 0 {
			t.Errorf("the name server at %s answers another host with %q", server, got)
		}
	}
}

// forwardsLead checks port forwards from other hosts, the host itself and guests.
func forwardsLead(t *testing.T, l *harness.Lab, d *harness.Daemon, a, b *harness.Shell) {
	f := d.CreatePortForward("a", "tcp", "0.0.0.0", 8080, 80)
	d.CreatePortForward("b", "udp", harness.HostAddress, 7007, 7)
	d.CreatePortForward("b", "tcp", "127.0.0.1", 8081, 80)
	if v := d.VM("a"); len(v.PortForwards) != 1 || v.PortForwards[0] != f {
		t.Errorf("the port forwards of VM a are %+v, want %+v", v.PortForwards, f)
	}
	if got := l.Other.WaitHTTP(harness.HostAddress + ":8080"); got != "a sees "+harness.OtherAddress {
		t.Errorf("guest a answers another host with %q", got)
	}
	for _, address := range []string{harness.HostAddress, "127.0.0.1", "192.168.100.1"} {
		got := l.Host.WaitHTTP(address + ":8080")
		if !strings.HasPrefix(got, "a sees 192.168.100.") && got != "a sees "+harness.HostAddress {
			t.Errorf("the host connects to %s and gets %q", address, got)
		}
	}
	if got := l.Host.WaitHTTP("127.0.0.1:8081"); !strings.HasPrefix(got, "b sees ") {
		t.Errorf("the host connects to its loopback address and gets %q", got)
	}
	if conn, err := l.Other.Dial(harness.HostAddress + ":8081"); err == nil {
		conn.Close()
		t.Error("a port forward on the loopback address is open to another host")
	}
	// Hairpin: guests connect to the host's address, also for their own port.
	for _, s := range []*harness.Shell{a, b} {
		if got := s.Reaches(harness.HostAddress + ":8080"); !strings.HasPrefix(got, "a sees ") {
			t.Errorf("guest %s gets %q through the host's address", s.VM, got)
		}
	}
	if got := echoUDP(t, l.Other, harness.HostAddress+":7007"); got != "hello" {
		t.Errorf("the UDP echo is %q, want hello", got)
	}
	d.Call("POST", "/vms/b/port_forwards", map[string]any{"host_port": 8080, "guest_port": 80}).Problem(409, "in-use")
	d.Call("DELETE", "/vms/a/port_forwards/"+f.ID, nil).Want(204)
	harness.Eventually(t, 5*time.Second, "the forward to end", func() error {
		if conn, err := l.Other.Dial(harness.HostAddress + ":8080"); err == nil {
			conn.Close()
			return harness.ErrNotYet
		}
		return nil
	})
}

// echoUDP sends hello to an address until an echo arrives, and returns the echo.
func echoUDP(t *testing.T, n *harness.Namespace, address string) string {
	t.Helper()
	var got string
	harness.Eventually(t, 10*time.Second, "an echo of "+address, func() error {
		return n.Try(func() error {
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

// TestGuestsWithEqualClientIDsHaveTwoAddresses boots two copies of an image, which send
// the same DHCP client id, because it is derived from /etc/machine-id.
func TestGuestsWithEqualClientIDsHaveTwoAddresses(t *testing.T) {
	d := harness.NewLab(t).StartDaemon(t, harness.BootDisk("clones"))
	d.CreateVM("a")
	d.CreateVM("b")
	for i, s := range d.StartAll("a", "b") {
		want := fmt.Sprintf("192.168.100.%d/24", 2+i)
		if got := d.Serial(s.VM).Expect(harness.DHCPLine.String())[2]; got != want {
			t.Errorf("guest %s has the address %s, want %s", s.VM, got, want)
		}
	}
}

func TestFiftyVMsHaveFiftyAddresses(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	answers := make(chan harness.Answer, 50)
	for i := range 50 {
		go func() {
			a, err := d.Try("POST", "/vms", map[string]any{"template_name": "small", "name": fmt.Sprintf("vm-%d", i)})
			if err != nil {
				a = harness.Answer{T: t, Request: err.Error()}
			}
			answers <- a
		}()
	}
	addresses, macs := map[string]bool{}, map[string]bool{}
	for range 50 {
		v := harness.As[openapi.VM]((<-answers).Want(201))
		ip := netip.MustParseAddr(*v.LocalIP)
		if !netip.MustParsePrefix("192.168.100.0/24").Contains(ip) {
			t.Errorf("VM %s has the address %s, which is not in the network", v.ID, ip)
		}
		addresses[*v.LocalIP], macs[v.NICs[0].MAC] = true, true
	}
	if len(addresses) != 50 || len(macs) != 50 {
		t.Errorf("50 VMs have %d different addresses and %d MAC addresses", len(addresses), len(macs))
	}
	for _, s := range d.StartAll("vm-0", "vm-17", "vm-49") {
		if got := d.Serial(s.VM).Expect(harness.DHCPLine.String())[2]; got != *d.VM(s.VM).LocalIP+"/24" {
			t.Errorf("DHCP gave guest %s the address %s, want %s", s.VM, got, *d.VM(s.VM).LocalIP)
		}
	}
}

func TestAddressExhaustion(t *testing.T) {
	d := harness.NewLab(t).StartDaemon(t)
	d.Call("POST", "/networks", map[string]any{"name": "tiny", "mode": "nat", "subnet": "10.77.0.0/29"}).Want(201)
	on := map[string]any{"nics": []any{map[string]any{"network": "tiny"}}}
	for i := range 5 { // 8 less the network, the gateway and the broadcast address
		v := d.CreateVMWith(fmt.Sprintf("vm-%d", i), on)
		if want := fmt.Sprintf("10.77.0.%d", 2+i); *v.LocalIP != want {
			t.Errorf("VM %s has the address %s, want %s", v.ID, *v.LocalIP, want)
		}
	}
	more := map[string]any{"template_name": "small", "name": "more", "nics": on["nics"]}
	d.Call("POST", "/vms", more).Problem(409, "addresses-exhausted", "tiny")
	d.Call("GET", "/vms/more", nil).Want(404)
	more["nics"] = []any{map[string]any{"network": "tiny", "ip": "10.77.0.4"}}
	d.Call("POST", "/vms", more).Problem(409, "in-use", "10.77.0.4")
	d.Call("DELETE", "/vms/vm-2", nil).Want(204)
	if v := d.CreateVMWith("more", on); *v.LocalIP != "10.77.0.4" {
		t.Errorf("VM more has the address %s, want the freed 10.77.0.4", *v.LocalIP)
	}
}
