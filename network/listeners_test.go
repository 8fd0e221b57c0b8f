package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// listenUDP listens in the namespace of the test's thread.
func listenOn(t testing.TB, network, address string, v6only bool) func() {
	t.Helper()
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		if !strings.HasSuffix(network, "6") {
			return nil
		}
		value := 0
		if v6only {
			value = 1
		}
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, value)
		})
		if err == nil {
			err = failed
		}
		return err
	}}
	if strings.HasPrefix(network, "udp") {
		l, err := c.ListenPacket(context.Background(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		return func() { l.Close() }
	}
	l, err := c.Listen(context.Background(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	return func() { l.Close() }
}

func TestAProgramThatStartsAfterAForwardIsReported(t *testing.T) {
	n := newHost(t)
	newOutside(t)
	nw := natNetwork()
	up(t, n, nw)
	v := guest("web", nw, 10)
	v.Forwards = []vm.PortForward{
		{ID: "pf-1", Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80},
		{ID: "pf-2", Protocol: vm.UDP, HostAddress: addr("203.0.113.1"), HostPort: 5000, GuestPort: 7},
		{ID: "pf-3", Protocol: vm.TCP, HostAddress: netip.IPv6Unspecified(), HostPort: 9000, GuestPort: 90, Ports: 10},
	}
	connect(t, n, v, nw)
	w := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	problems := func() []vm.NetworkProblem {
		t.Helper()
		s, err := n.Reconcile(t.Context(), w, true)
		if err != nil {
			t.Fatal(err)
		}
		return s.Problems
	}
	if p := problems(); len(p) != 0 {
		t.Fatalf("problems at first: %+v", p)
	}
	for _, c := range []struct {
		network, address string
		v6only           bool
		forward          string // that shadows the program; empty: none
	}{
		{"tcp4", "0.0.0.0:8080", false, "pf-1"},
		{"tcp4", "127.0.0.1:8080", false, "pf-1"},
		{"tcp4", "203.0.113.1:8080", false, "pf-1"},
		{"tcp6", "[::]:8080", false, "pf-1"},
		{"tcp6", "[::]:8080", true, ""},
		{"tcp4", "0.0.0.0:8081", false, ""},
		{"udp4", "0.0.0.0:8080", false, ""},
		{"udp4", "0.0.0.0:5000", false, "pf-2"},
		{"udp4", "203.0.113.1:5000", false, "pf-2"},
		{"udp4", "127.0.0.1:5000", false, ""},
		{"tcp6", "[2001:db8:1::1]:9009", false, "pf-3"},
		{"tcp6", "[::]:9000", true, "pf-3"},
		{"tcp6", "[::]:9010", false, ""},
		{"tcp6", "[::1]:9005", false, ""},
		{"tcp4", "0.0.0.0:9005", false, ""},
	} {
		end := listenOn(t, c.network, c.address, c.v6only)
		got := problems()
		end()
		name := fmt.Sprint(c.network, " ", c.address, " ", c.v6only)
		if c.forward == "" {
			if len(got) != 0 {
				t.Errorf("%s: problems %+v, want none", name, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Kind != vm.ProblemForward || got[0].Resource != vm.VMResource("web") ||
			!strings.Contains(got[0].Detail, "takes the connections of vmand itself") ||
			!strings.Contains(got[0].Fix, "/vms/web/port_forwards/"+c.forward) {
			t.Errorf("%s: problems %+v, want one for the forward %s", name, got, c.forward)
		}
	}
	if p := problems(); len(p) != 0 {
		t.Errorf("problems after the programs have ended: %+v", p)
	}
	up0 := link(t, "up0")
	addrs, err := n.links.AddrList(up0, unix.AF_INET)
	if err != nil || len(addrs) != 1 {
		t.Fatal(addrs, err)
	}
	if err := n.links.AddrDel(up0, &addrs[0]); err != nil {
		t.Fatal(err)
	}
	if p := problems(); len(p) != 1 || !strings.Contains(p[0].Detail, "the host has no address 203.0.113.1") {
		t.Errorf("problems after the address has left: %+v", p)
	}
}

func TestTheProgramOfAPortIsNamed(t *testing.T) {
	n := newHost(t)
	newOutside(t)
	nw := natNetwork()
	up(t, n, nw)
	forward := func(protocol vm.Protocol, address string, port int) vm.PortForward {
		return vm.PortForward{Protocol: protocol, HostAddress: addr(address), HostPort: port, GuestPort: 1}
	}
	ranged := func(f vm.PortForward, ports int) vm.PortForward {
		f.Ports = ports
		return f
	}
	for _, c := range []struct {
		forward    vm.PortForward
		code       vm.Code
		says, hint string
	}{
		{forward(vm.UDP, "0.0.0.0", 53), vm.CodeInUse, "vmand itself, which serves DHCP and DNS to guests", "host_address"},
		{forward(vm.TCP, "0.0.0.0", 53), vm.CodeInUse, "vmand itself, which serves DHCP and DNS to guests", "host_address"},
		{forward(vm.UDP, "0.0.0.0", 67), vm.CodeInUse, "vmand itself, which serves DHCP and DNS to guests", "another host port"},
		{forward(vm.UDP, "::", 53), vm.CodeInUse, "vmand itself, which serves DHCP and DNS to guests", "host_address"},
		{ranged(forward(vm.UDP, "0.0.0.0", 60), 10), vm.CodeInUse, "udp port 67 is in use by vmand itself", ""},
		{ranged(forward(vm.TCP, "0.0.0.0", 60), 10), "", "", ""},
		{forward(vm.TCP, "2001:db8:1::1", 80), "", "", ""},
		{forward(vm.TCP, "2001:db8:1::9", 80), vm.CodeInvalid, "the host has no address 2001:db8:1::9", ""},
		{forward(vm.UDP, "203.0.113.1", 53), "", "", ""},
		{forward(vm.TCP, "203.0.113.255", 80), vm.CodeInvalid, "the host has no address 203.0.113.255", ""},
		{forward(vm.UDP, "203.0.113.0", 80), vm.CodeInvalid, "the host has no address 203.0.113.0", ""},
		{forward(vm.UDP, "203.0.113.9", 80), vm.CodeInvalid, "the host has no address 203.0.113.9", ""},
		{forward(vm.UDP, "127.0.0.1", 80), "", "", ""},
	} {
		err := n.CheckHostPorts(t.Context(), c.forward)
		f, _ := err.(*vm.Fault)
		if codeOf(err) != c.code || f != nil && (!strings.Contains(f.Detail, c.says) || !strings.Contains(f.Hint, c.hint)) {
			t.Errorf("%+v: %v, want %s, %s", c.forward, err, c.code, c.says)
		}
	}
	if got := programOf(1); !strings.Contains(got, "(process 1)") {
		t.Errorf("process 1 is %q", got)
	}
	if got := programOf(os.Getpid()); got != "vmand itself" {
		t.Errorf("this process is %q", got)
	}
}
