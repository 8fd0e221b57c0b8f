package qemu

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmand/vm"
)

// forwardTo returns a forward from a loopback address.
func forwardTo(hostPort, guestPort int) vm.PortForward {
	return vm.PortForward{ID: "pf-x", Protocol: vm.TCP, HostAddress: netip.MustParseAddr("127.0.0.1"), HostPort: hostPort, GuestPort: guestPort}
}

// freePorts returns TCP ports on which no program listens.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// freeRange returns the first of n consecutive TCP ports on which no program listens. They are below
// those that the kernel chooses for clients.
func freeRange(t *testing.T, n int) int {
	t.Helper()
	for first := 20000; first < 32000; first += n {
		free := true
		for port := first; free && port < first+n; port++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if free = err == nil; free {
				l.Close()
			}
		}
		if free {
			return first
		}
	}
	t.Fatalf("no %d consecutive ports are free", n)
	return 0
}

// listens reports whether a program listens on a port.
func listens(port int) bool {
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func TestPortRangesAreForwardedPortByPort(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	first := freeRange(t, 5)
	one := forwardTo(first, 80)
	one.Ports = 3
	s.Ports[0].Forwards = []vm.PortForward{one}
	h.startSpec(s)
	check := func(when string, want ...int) {
		t.Helper()
		present, ok := parseForwards(h.human("web", "info usernet"), nicNetdev(0))
		var got []int
		for _, f := range present {
			got = append(got, f.HostPort-first, f.GuestPort)
		}
		if slices.Sort(got); !ok || !slices.Equal(got, want) {
			t.Errorf("%s: QEMU forwards %v, want %v", when, got, want)
		}
	}
	check("at the start", 0, 1, 2, 80, 81, 82)
	longer := one
	longer.Ports = 5
	must(t, h.SetForwards(t.Context(), "web", 0, s.Ports[0].Forwards, []vm.PortForward{longer}))
	check("longer", 0, 1, 2, 3, 4, 80, 81, 82, 83, 84)
	must(t, h.SetForwards(t.Context(), "web", 0, []vm.PortForward{longer}, nil))
	check("removed")
	most := forwardTo(freeRange(t, vm.MaxUserPorts), 80)
	most.Ports = vm.MaxUserPorts
	must(t, h.SetForwards(t.Context(), "web", 0, nil, []vm.PortForward{most}))
	if present, _ := parseForwards(h.human("web", "info usernet"), nicNetdev(0)); len(present) != vm.MaxUserPorts {
		t.Errorf("QEMU forwards %d ports, want %d", len(present), vm.MaxUserPorts)
	}
}

func TestForwardsChangeWhileTheVMRuns(t *testing.T) {
	h := newHost(t)
	ports := freePorts(t, 4)
	s := h.create("web", guestDeaf)
	old := []vm.PortForward{forwardTo(ports[0], 80), forwardTo(ports[1], 81)}
	s.Ports[0].Forwards = old
	h.startSpec(s)
	check := func(when string, want ...bool) {
		t.Helper()
		for i, port := range ports {
			if listens(port) != want[i] {
				t.Errorf("%s: port %d of %d listens: %v\n%s", when, i, len(ports), !want[i], h.human("web", "info usernet"))
			}
		}
	}
	check("at the start", true, true, false, false)
	want := []vm.PortForward{forwardTo(ports[1], 8081), forwardTo(ports[2], 82), // one leads to another port of the guest
		{Protocol: vm.UDP, HostAddress: netip.IPv4Unspecified(), HostPort: ports[2], GuestPort: 53}}
	for range 2 { // the second time there is nothing to do
		must(t, h.SetForwards(t.Context(), "web", 0, old, want))
		check("changed", false, true, true, false)
	}
	sess, err := h.live("web")
	must(t, err)
	there, err := sess.forwards(t.Context(), 0)
	must(t, err)
	for _, f := range want {
		if !contains(there, f) || len(there) != len(want) {
			t.Errorf("the forwards are %v; want %v", there, want)
		}
	}

	l, err := net.Listen("tcp", forwardAddress(ports[3]))
	must(t, err)
	taken := []vm.PortForward{forwardTo(ports[0], 80), forwardTo(ports[3], 83)}
	err = h.SetForwards(t.Context(), "web", 0, want, taken)
	if codeOf(err) != vm.CodeInUse || !strings.Contains(err.Error(), forwardAddress(ports[3])) {
		t.Errorf("a port that is in use: %v", err)
	}
	l.Close()
	check("all unchanged", false, true, true, false)
	must(t, h.SetForwards(t.Context(), "web", 0, want, nil))
	check("none", false, false, false, false)
	bad := forwardTo(ports[0], 80)
	bad.Protocol = "tcp:127.0.0.1:1-:1 "
	mustFail(t, h.SetForwards(t.Context(), "web", 0, nil, []vm.PortForward{bad}), vm.CodeInvalid)
}

func forwardAddress(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

func TestForwardsOfAStreamNICApplyAtTheNextStart(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	p, _ := streamPort(t, 1)
	must(t, h.AttachNIC(t.Context(), "web", p))
	err := h.SetForwards(t.Context(), "web", 1, nil, []vm.PortForward{forwardTo(8080, 80)})
	mustFail(t, err, vm.CodeState)
	if p := vm.ProblemOf(err); !strings.Contains(p.Hint, "next start") {
		t.Errorf("the hint is %q", p.Hint)
	}
}

func TestForwardsAreParsed(t *testing.T) {
	const said = "Hub -1 (net-1):\r\n" +
		"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
		"  TCP[HOST_FORWARD]  12       127.0.0.1  8080       10.0.2.15    80     0     0\r\n" +
		"Hub -1 (net-10):\r\n" +
		"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
		"  TCP[ESTABLISHED]   14       127.0.0.1  8081       10.0.2.15    81     0     0\r\n" +
		"  UDP[HOST_FORWARD]   9               *  5353       10.0.2.15    53     0     0\r\n" +
		"  UDP[236 sec]       10       10.0.2.15 48370         1.1.1.1    53     0     0\r\n" +
		"  ICMP[9 sec]        10       10.0.2.15     1         1.1.1.1     0     0     0\r\n"
	for netdev, want := range map[string][]vm.PortForward{
		"net-1":  {{Protocol: vm.TCP, HostAddress: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, GuestPort: 80}},
		"net-10": {{Protocol: vm.UDP, HostAddress: netip.IPv4Unspecified(), HostPort: 5353, GuestPort: 53}},
	} {
		if got, ok := parseForwards(said, netdev); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v; want %v", netdev, got, ok, want)
		}
	}
	if got, ok := parseForwards(said, "net-0"); ok || got != nil {
		t.Errorf("of an unknown network: %v", got)
	}
}
