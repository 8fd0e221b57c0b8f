package network

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// A place is a network namespace in which a test listens, and from which it connects.
type place struct {
	t    testing.TB
	ns   netns.NsHandle
	home netns.NsHandle // of the test's thread
}

// newPlace returns a new namespace. The test's thread stays where it is.
func newPlace(t testing.TB) place {
	t.Helper()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close(); home.Close() })
	p := place{t, ns, home}
	p.do(func() {
		if err := netlink.LinkSetUp(link(t, "lo")); err != nil {
			t.Fatal(err)
		}
	})
	if err := netns.Set(home); err != nil {
		t.Fatal(err)
	}
	return p
}

// do runs f in the namespace.
func (p place) do(f func()) {
	p.t.Helper()
	if err := netns.Set(p.ns); err != nil {
		p.t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(p.home); err != nil {
			p.t.Error(err)
		}
	}()
	f()
}

// configure sets the address of an interface of the namespace, and its default route if
// gateway is not empty.
func (p place) configure(name, address, gateway string) {
	p.t.Helper()
	p.do(func() {
		l := link(p.t, name)
		a, err := netlink.ParseAddr(address)
		if err == nil {
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			err = netlink.AddrAdd(l, a)
		}
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err == nil && gateway != "" {
			err = netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP(gateway)})
		}
		if err != nil {
			p.t.Fatal(err)
		}
	})
}

// serve answers each connection with its source address.
func (p place) serve(address string) {
	p.t.Helper()
	p.do(func() {
		l, err := net.Listen("tcp", address)
		if err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
	})
}

// reach connects to address from a thread of its own, and returns the source address that
// a place serving there sees. It returns "" if the connection fails.
func (p place) reach(address string) (source string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		if err := netns.Set(p.ns); err != nil {
			p.t.Error(err)
			return
		}
		c, err := net.DialTimeout("tcp", address, 700*time.Millisecond)
		if err != nil {
			return
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			p.t.Error(err)
			return
		}
		s := bufio.NewScanner(c)
		s.Scan()
		source = s.Text()
	}()
	<-done
	return source
}

// newGuest returns a namespace that stands for a VM on the network: its interface eth0 is
// the other end of the VM's tap.
func newGuest(t testing.TB, n *Networks, v vm.VM, nw vm.Network) place {
	t.Helper()
	outer := connect(t, n, v, nw)
	p := newPlace(t)
	p.do(func() {
		inner, err := openTap("eth0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { inner.Close() })
		mac, err := net.ParseMAC(v.NICs[0].MAC)
		if err == nil {
			err = netlink.LinkSetHardwareAddr(link(t, "eth0"), mac)
		}
		if err != nil {
			t.Fatal(err)
		}
		go pump(inner, outer)
		go pump(outer, inner)
	})
	p.configure("eth0", v.NICs[0].IP.String()+"/24", nw.Gateway.String())
	if nw.IPv6.IsValid() {
		p.configure("eth0", v.NICs[0].IPv6.String()+"/64", nw.GatewayIPv6().String())
	}
	return p
}

func pump(to, from *os.File) {
	buf := make([]byte, 70<<10)
	for {
		k, err := from.Read(buf)
		if err == nil {
			_, err = to.Write(buf[:k])
		}
		if errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// newOutside returns a namespace that the host reaches through its interface up0.
func newOutside(t testing.TB) place {
	t.Helper()
	p := newPlace(t)
	a := netlink.NewLinkAttrs()
	a.Name = "up0"
	pair := &netlink.Veth{LinkAttrs: a, PeerName: "out0", PeerNamespace: netlink.NsFd(int(p.ns))}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	host := place{t, p.home, p.home}
	host.configure("up0", "203.0.113.1/24", "")
	host.configure("up0", "2001:db8:1::1/64", "")
	p.configure("out0", "203.0.113.2/24", "203.0.113.1")
	p.configure("out0", "2001:db8:1::2/64", "2001:db8:1::1")
	return p
}

// A pathCheck is a connection and the source address that its server must see.
type pathCheck struct {
	name   string
	from   place
	to     string
	source string // empty: the connection must fail
}

// run makes the connection, twice if the first one fails unexpectedly: a busy host may be
// slow. It returns the source address that the server sees.
func (c pathCheck) run() string {
	source := c.from.reach(c.to)
	if source == "" && c.source != "" {
		source = c.from.reach(c.to)
	}
	return source
}

func TestAllowedAndForbiddenPaths(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	outside := newOutside(t)
	outside.serve("203.0.113.2:80")
	nat := natNetwork()
	other := vm.Network{Name: "other", Mode: vm.NetworkNAT, Bridge: "other", Revision: 1,
		Subnet: netip.MustParsePrefix("192.168.101.0/24"), Gateway: addr("192.168.101.1")}
	lonely := vm.Network{Name: "lonely", Mode: vm.NetworkIsolated, Bridge: "lonely", Revision: 1,
		Subnet: netip.MustParsePrefix("192.168.102.0/24"), Gateway: addr("192.168.102.1")}
	for _, nw := range []vm.Network{nat, other, lonely} {
		up(t, n, nw)
	}
	va := guest("a", nat, 10)
	va.Forwards = []vm.PortForward{
		{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80},
		{Protocol: vm.TCP, HostAddress: addr("203.0.113.1"), HostPort: 8081, GuestPort: 80},
	}
	a, b := newGuest(t, n, va, nat), newGuest(t, n, guest("b", nat, 11), nat)
	c, d := newGuest(t, n, guest("c", other, 10), other), newGuest(t, n, guest("d", lonely, 10), lonely)
	a.serve("0.0.0.0:80")
	host := place{t, a.home, a.home}
	host.serve("192.168.100.1:9998")
	host.serve("192.168.102.1:9998")
	checks := []pathCheck{
		{"a guest reaches the outside as the host", a, "203.0.113.2:80", "203.0.113.1"},
		{"a guest reaches its neighbour", b, "192.168.100.10:80", "192.168.100.11"},
		{"a guest reaches the gateway", a, "192.168.100.1:9998", "192.168.100.10"},
		{"a guest of an isolated network reaches the gateway", d, "192.168.102.1:9998", "192.168.102.10"},
		{"a guest of an isolated network does not reach the outside", d, "203.0.113.2:80", ""},
		{"a guest does not reach another network", c, "192.168.100.10:80", ""},
		{"a guest of an isolated network does not reach another network", d, "192.168.100.10:80", ""},
		{"the host reaches a guest", host, "192.168.100.10:80", "192.168.100.1"},
		{"the outside does not reach a guest", outside, "192.168.100.10:80", ""},
		{"the outside reaches a forwarded port", outside, "203.0.113.1:8080", "203.0.113.2"},
		{"the outside reaches a port forwarded on one address", outside, "203.0.113.1:8081", "203.0.113.2"},
		{"the host reaches a forwarded port", host, "203.0.113.1:8080", "203.0.113.1"},
		{"the host reaches a forwarded port by loopback", host, "127.0.0.1:8080", "192.168.100.1"},
		{"a guest reaches its own forwarded port", a, "203.0.113.1:8080", "192.168.100.1"},
		{"a neighbour reaches a forwarded port", b, "203.0.113.1:8080", "192.168.100.1"},
		{"a guest of another network reaches a forwarded port", c, "203.0.113.1:8080", "192.168.100.1"},
		{"a guest of an isolated network does not reach a forwarded port", d, "203.0.113.1:8080", ""},
		{"a port forwarded on one address is not forwarded on another", host, "127.0.0.1:8081", ""},
	}
	for _, bridged := range []string{"0", "1"} {
		err := setSysctl("bridge/bridge-nf-call-iptables", bridged)
		if errors.Is(err, os.ErrNotExist) {
			if bridged == "1" {
				t.Log("this kernel lacks br_netfilter")
				break
			}
		} else if err != nil {
			t.Fatal(err)
		}
		var running sync.WaitGroup
		for _, check := range checks {
			running.Go(func() {
				if got := check.run(); got != check.source {
					t.Errorf("bridge-nf-call-iptables=%s, %s: the source is %q, want %q",
						bridged, check.name, got, check.source)
				}
			})
		}
		running.Wait()
	}
	if err := n.Probe(t.Context(), va, 80); err != nil {
		t.Errorf("Probe of a port that answers: %v", err)
	}
	if err := n.Probe(t.Context(), va, 81); codeOf(err) != vm.CodeNetworkUnavailable {
		t.Errorf("Probe of a port that does not answer: %v", err)
	}
}

func TestGuestsDoNotReachTheHostsLoopback(t *testing.T) {
	t.Parallel()
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	a := plug(t, n, guest("a", nw, 10), nw)
	listen := func(address string) net.PacketConn {
		c, err := net.ListenPacket("udp4", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	loopback, gateway := listen("127.0.0.1:9999"), listen("192.168.100.1:9998")
	send := func(to string, port uint16) {
		f := ipv4(a.mac, a.ip, addr(to), 17, udp(4000, port, []byte("hello")))
		copy(f, bridgeMAC("vman0"))
		a.send(f)
	}
	receives := func(c net.PacketConn, within time.Duration) bool {
		if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		_, _, err := c.ReadFrom(make([]byte, 64))
		return err == nil
	}
	send("127.0.0.1", 9999)
	send("192.168.100.1", 9998)
	if !receives(gateway, 5*time.Second) {
		t.Fatal("the gateway has not received the later packet")
	}
	if receives(loopback, time.Millisecond) {
		t.Error("a packet of a guest has reached the host's 127.0.0.1")
	}
}

// A stream is a client outside that sends datagrams from one port to one forward, and the
// server in a guest.
type stream struct {
	t      testing.TB
	client net.PacketConn
	server net.PacketConn
	to     netip.AddrPort
}

// newStream listens on UDP port 7 of a guest, and sends from outside.
func newStream(t testing.TB, from, to place, forward string) stream {
	t.Helper()
	s := stream{t: t, to: netip.MustParseAddrPort(forward)}
	var err error
	family := "udp4"
	if s.to.Addr().Is6() {
		family = "udp6"
	}
	to.do(func() { s.server, err = net.ListenPacket(family, ":7") })
	if err == nil {
		from.do(func() { s.client, err = net.ListenPacket(family, ":4000") })
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.server.Close(); s.client.Close() })
	return s
}

// arrives sends a datagram and reports whether it arrives.
func (s stream) arrives(within time.Duration) bool {
	s.t.Helper()
	if _, err := s.client.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(s.to)); err != nil {
		s.t.Fatal(err)
	}
	if err := s.server.SetReadDeadline(time.Now().Add(within)); err != nil {
		s.t.Fatal(err)
	}
	_, _, err := s.server.ReadFrom(make([]byte, 16))
	return err == nil
}

func TestDatagramsOfOneClientFollowTheForwards(t *testing.T) {
	for _, c := range []struct {
		hostAddress, to string
		first, ports    int // of the guest
	}{
		{"0.0.0.0", "203.0.113.1", 7, 1},
		{"203.0.113.1", "203.0.113.1", 7, 1},
		{"::", "2001:db8:1::1", 7, 1},
		{"2001:db8:1::1", "2001:db8:1::1", 7, 1},
		{"0.0.0.0", "203.0.113.1", 5, 5},
		{"2001:db8:1::1", "2001:db8:1::1", 1, 1000},
	} {
		t.Run(fmt.Sprint(c.hostAddress, " ", c.ports), func(t *testing.T) {
			n := newHost(t)
			outside := newOutside(t)
			nw := natNetwork()
			up(t, n, nw)
			v := guest("a", nw, 10)
			forwards := []vm.PortForward{
				{
					Protocol: vm.UDP, HostAddress: addr(c.hostAddress),
					HostPort: 5000 + c.first - 7, GuestPort: c.first, Ports: c.ports,
				},
			}
			networks := map[string]vm.Network{nw.Name: nw}
			s := newStream(t, outside, newGuest(t, n, v, nw), netip.AddrPortFrom(addr(c.to), 5000).String())
			update := func(f []vm.PortForward) {
				t.Helper()
				v.Forwards, v.Revision = f, v.Revision+1
				if err := n.Update(t.Context(), v, networks); err != nil {
					t.Fatal(err)
				}
			}
			if s.arrives(200 * time.Millisecond) {
				t.Fatal("a datagram arrives without a forward")
			}
			update(forwards)
			if !s.arrives(5 * time.Second) {
				t.Fatal("a client that sent before the forward existed does not reach the guest")
			}
			update(nil)
			if s.arrives(200 * time.Millisecond) {
				t.Error("a flow continues after the removal of its forward")
			}
			update(forwards)
			if !s.arrives(5 * time.Second) {
				t.Error("the same client does not reach the guest through the forward that was added again")
			}
			if err := n.Disconnect(t.Context(), v.ID); err != nil {
				t.Fatal(err)
			}
			if s.arrives(200 * time.Millisecond) {
				t.Error("a flow continues after the VM was disconnected")
			}
			if err := n.setVMRules(v); err != nil { // as the next start does
				t.Fatal(err)
			}
			if !s.arrives(5 * time.Second) {
				t.Error("the same client does not reach the guest after its next start")
			}
		})
	}
}

// TestDatagramsFollowTheRulesAfterARepair deletes the tables, as some firewalls do when they
// start, while datagrams flow in both directions.
func TestDatagramsFollowTheRulesAfterARepair(t *testing.T) {
	n := newHost(t)
	outside := newOutside(t)
	nw := natNetwork()
	up(t, n, nw)
	f := newForeignTable(t, nftables.TableFamilyIPv4, "nat") // another program translates addresses, too
	for _, hook := range []*nftables.ChainHook{nftables.ChainHookPrerouting, nftables.ChainHookPostrouting} {
		f.conn.AddChain(&nftables.Chain{
			Table: f.Table, Name: fmt.Sprint("hook-", *hook), Type: nftables.ChainTypeNAT,
			Hooknum: hook, Priority: nftables.ChainPriorityNATSource,
		})
	}
	// The kernel forgets all connections when no rule needs them.
	f.rule(f.base("INPUT", nftables.ChainHookInput, nftables.ChainPolicyAccept), established(), accept())
	f.flush()
	v := guest("a", nw, 10)
	v.Forwards = []vm.PortForward{
		{Protocol: vm.UDP, HostAddress: netip.IPv4Unspecified(), HostPort: 5000, GuestPort: 7},
	}
	a := newGuest(t, n, v, nw)
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	settledPass(t, n, w)
	s := newStream(t, outside, a, "203.0.113.1:5000")
	var outward, far net.PacketConn
	var err error
	a.do(func() { outward, err = net.ListenPacket("udp4", ":5001") })
	if err == nil {
		outside.do(func() { far, err = net.ListenPacket("udp4", "203.0.113.2:9000") })
	}
	if err != nil {
		t.Fatal(err)
	}
	defer outward.Close()
	defer far.Close()
	sent := func() (from string) {
		t.Helper()
		to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.2:9000"))
		if _, err := outward.WriteTo([]byte("hello"), to); err != nil {
			t.Fatal(err)
		}
		if err := far.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, source, err := far.ReadFrom(make([]byte, 16))
		if err != nil {
			t.Fatal(err)
		}
		return source.(*net.UDPAddr).IP.String()
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.DelTable(inetTable)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if s.arrives(200*time.Millisecond) || sent() != v.NICs[0].IP.String() {
		t.Fatal("the rules have an effect although they were deleted")
	}
	reconcile(t, n, w, true)
	if !s.arrives(5 * time.Second) {
		t.Error("after the repair, the client does not reach the guest")
	}
	if from := sent(); from != "203.0.113.1" {
		t.Errorf("after the repair, the guest's datagrams leave the host from %s", from)
	}
}

func TestAConnectionSurvivesTheDaemonAndARebuildOfTheRules(t *testing.T) {
	t.Parallel()
	enterNamespace(t)
	o := options(t)
	n := newNetworks(t, o)
	outside := newOutside(t)
	nw := natNetwork()
	up(t, n, nw)
	v := guest("a", nw, 10)
	v.Forwards = []vm.PortForward{
		{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 7},
	}
	a := newGuest(t, n, v, nw)
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	settledPass(t, n, w)
	var server, client net.Conn
	var l net.Listener
	var err error
	a.do(func() { l, err = net.Listen("tcp4", "0.0.0.0:7") })
	if err != nil {
		t.Fatal(err)
	}
	outside.do(func() { client, err = net.DialTimeout("tcp4", "203.0.113.1:8080", 2*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	talk := func(when string) {
		t.Helper()
		if _, err := fmt.Fprintln(client, when); err != nil {
			t.Fatal(err)
		}
		if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(server).ReadString('\n'); err != nil || got != when+"\n" {
			t.Fatalf("%s: %q, %v", when, got, err)
		}
	}
	talk("at first")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	talk("without a daemon")
	next := newNetworks(t, o)
	settledPass(t, next, w)
	talk("with the next daemon")
	if err := next.firewall.rebuild(); err != nil {
		t.Fatal(err)
	}
	talk("after a rebuild")
}
