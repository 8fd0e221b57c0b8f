package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/test/need"
	"vmand/vm"
)

func userNetwork() vm.Network {
	return vm.Network{Name: "user0", Mode: vm.NetworkUser, Domain: "vm.internal", Revision: 1,
		Subnet: netip.MustParsePrefix("10.0.2.0/24"), Gateway: addr("10.0.2.2")}
}

func userGuest(forwards ...vm.PortForward) vm.VM {
	v := guest("u", userNetwork(), 15)
	v.NICs[0].IP = addr("10.0.2.15")
	v.Forwards = forwards
	return v
}

func userNetworks(t *testing.T, passt string) *Networks {
	t.Helper()
	return newNetworks(t, Options{Mode: ModeUser, RuntimeDir: t.TempDir(), Passt: passt})
}

func TestWithoutPasstAUserModeNICUsesQEMUsNetwork(t *testing.T) {
	n := userNetworks(t, "/nonexistent/passt")
	f := vm.PortForward{Slot: 0, Protocol: vm.TCP, HostAddress: addr("127.0.0.1"), HostPort: 2222, GuestPort: 22}
	v := userGuest(f, vm.PortForward{Slot: 3, Protocol: vm.TCP, HostPort: 1})
	nw := userNetwork()
	ports, err := n.Connect(t.Context(), v, v.NICs, map[string]vm.Network{nw.Name: nw})
	if err != nil {
		t.Fatal(err)
	}
	p := ports[0]
	if p.Kind != vm.PortUser || p.Gateway != nw.Gateway || p.Subnet != nw.Subnet || p.Domain != nw.Domain ||
		!slices.Equal(p.Forwards, []vm.PortForward{f}) {
		t.Errorf("port %+v", p)
	}
	if s := n.Status(t.Context(), nw); len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Fix, "passt") {
		t.Errorf("status %+v", s)
	}
	nw.Restrict = true
	if s := n.Status(t.Context(), nw); len(s.Problems) != 0 {
		t.Errorf("status of a network with restrict %+v", s)
	}
}

func TestUserModeHasNoBridges(t *testing.T) {
	n := userNetworks(t, "")
	nw := natNetwork()
	for method, err := range map[string]error{
		"Check": n.Check(vm.NetworkNAT),
		"Up":    n.Up(t.Context(), nw),
		"Admit": n.Admit(t.Context(), nw),
	} {
		if codeOf(err) != vm.CodeNetworkUnavailable || !strings.Contains(err.Error(), "network.mode is user") {
			t.Errorf("%s: %v", method, err)
		}
	}
	if err := n.Check(vm.NetworkUser); err != nil {
		t.Error(err)
	}
	d := reconcile(t, n, vm.Wanted{Networks: []vm.Network{nw, userNetwork()}}, true)
	if len(d) != 1 || d[0].Err == nil {
		t.Errorf("Reconcile reports %+v", d)
	}
}

func TestPasstArgumentsFollowTheRecord(t *testing.T) {
	nw := userNetwork()
	nw.DNS = []netip.Addr{addr("9.9.9.9")}
	p := vm.Port{
		NIC:     userGuest().NICs[0],
		Subnet:  nw.Subnet,
		Gateway: nw.Gateway,
		Domain:  nw.Domain,
		Forwards: []vm.PortForward{
			{Protocol: vm.TCP, HostAddress: addr("127.0.0.1"), HostPort: 2222, GuestPort: 22},
			{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 8080, GuestPort: 80},
			{Protocol: vm.TCP, HostAddress: addr("127.0.0.1"), HostPort: 9000, GuestPort: 90, Ports: 10},
		},
	}
	got := strings.Join(passtArgs(p, nw), " ")
	want := "--foreground --quiet --fd 3 --pid /proc/self/fd/1 --no-map-gw --ipv4-only" +
		" --address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --mtu 1500" +
		" --dns 9.9.9.9 --search vm.internal" +
		" --tcp-ports 127.0.0.1/2222:22 --tcp-ports 8080:80 --tcp-ports 127.0.0.1/9000-9009:90-99 --udp-ports none"
	if got != want {
		t.Errorf("arguments\n%s\nwant\n%s", got, want)
	}
}

func TestPasstGivesGuestsOnlyResolversTheyCanReach(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	plain := file("plain", "search a.example\nnameserver 192.0.2.1\n# nameserver 192.0.2.9\n"+
		"nameserver 2001:db8::1\nnameserver 192.0.2.2")
	stub := file("stub", "nameserver 127.0.0.53\nnameserver\nnameserver nonsense\n")
	for _, c := range []struct {
		files []string
		want  []netip.Addr
	}{
		{[]string{plain, stub}, []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}},
		{[]string{stub, plain}, []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}},
		{[]string{stub, filepath.Join(dir, "missing")}, nil},
	} {
		if got := resolvers(c.files...); !slices.Equal(got, c.want) {
			t.Errorf("resolvers of %q: %v, want %v", c.files, got, c.want)
		}
	}
}

// freePort returns a TCP port that is not in use.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestDefaultRouteIsFound tests what decides the arguments of passt. That passt starts with them is
// tested in test/network, with a daemon in a namespace.
func TestDefaultRouteIsFound(t *testing.T) {
	enterNamespace(t)
	n := userNetworks(t, "")
	if n.hasDefaultRoute() {
		t.Error("a new namespace has a default route")
	}
	newOutside(t)
	if n.hasDefaultRoute() {
		t.Error("an interface is taken for a default route")
	}
	_, far, err := net.ParseCIDR("0.0.0.0/0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: far, Type: unix.RTN_BLACKHOLE}); err != nil {
		t.Fatal(err)
	}
	if n.hasDefaultRoute() {
		t.Error("a blackhole is taken for a default route")
	}
	if err := netlink.RouteReplace(&netlink.Route{Dst: far, Gw: net.ParseIP("203.0.113.2")}); err != nil {
		t.Fatal(err)
	}
	if !n.hasDefaultRoute() {
		t.Error("the default route is not found")
	}
}

func TestPasstServesAndEndsWithQEMU(t *testing.T) {
	need.Programs(t, "passt")
	n := userNetworks(t, "")
	port := freePort(t)
	forward := vm.PortForward{
		Protocol: vm.TCP, HostAddress: addr("127.0.0.1"), HostPort: port, GuestPort: 80,
	}
	v := userGuest(forward)
	nw := userNetwork()
	ports, err := n.Connect(t.Context(), v, v.NICs, map[string]vm.Network{nw.Name: nw})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.ClosePorts(ports)
	if ports[0].Kind != vm.PortStream {
		t.Fatalf("port %+v", ports[0])
	}
	if err := n.CheckHostPorts(t.Context(), v.Forwards[0]); codeOf(err) != vm.CodeInUse {
		t.Errorf("passt does not listen on the forwarded port: %v", err)
	}
	// passt asks the guest for its MAC address before it forwards anything.
	f := arp(mustMAC(t, v), mustMAC(t, v), 1, v.NICs[0].IP, nil)
	copy(f[38:], []byte{10, 0, 2, 2})
	if _, err := ports[0].Files[0].Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)); err != nil {
		t.Fatal(err)
	}
	if err := ports[0].Files[0].SetReadDeadline(time.Now().Add(5 * time.Second)); err == nil {
		head := make([]byte, 4)
		if _, err := io.ReadFull(ports[0].Files[0], head); err != nil {
			t.Errorf("passt does not answer: %v", err)
		}
	}
	vm.ClosePorts(ports)
	until(t, "passt still listens after the end of its guest", func() bool {
		return n.CheckHostPorts(t.Context(), v.Forwards[0]) == nil
	})
	if err := n.Disconnect(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if logs, _ := filepath.Glob(filepath.Join(n.o.RuntimeDir, "*.log")); len(logs) != 0 {
		t.Errorf("logs are left: %v", logs)
	}
}

func mustMAC(t *testing.T, v vm.VM) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(v.NICs[0].MAC)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// until waits for a condition, and fails the test with a message after 5 s.
func until(t *testing.T, message string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatal(message)
		case <-tick.C:
		}
	}
}

// failingPasst returns a program that writes a message, which a shell expands, to its
// standard error and fails.
func failingPasst(t *testing.T, message string) string {
	t.Helper()
	passt := filepath.Join(t.TempDir(), "passt")
	script := "#!/bin/sh\necho " + message + " >&2\nexit 1\n"
	if err := os.WriteFile(passt, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(passt); dir != "/" && os.Geteuid() == 0; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&1 == 0 && strings.HasPrefix(dir, os.TempDir()+"/") {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return passt
}

func TestErrorOfAFailedPasstIsReported(t *testing.T) {
	n := userNetworks(t, failingPasst(t, "no room for me"))
	v, nw := userGuest(), userNetwork()
	_, err := n.Connect(t.Context(), v, v.NICs, map[string]vm.Network{nw.Name: nw})
	if codeOf(err) != vm.CodeNetworkUnavailable || !strings.Contains(err.Error(), "no room for me") {
		t.Errorf("Connect: %v", err)
	}
}

func TestPasstHasALowerPriorityThanVmand(t *testing.T) {
	n := userNetworks(t, failingPasst(t, "its nice value is $(nice)."))
	v, nw := userGuest(), userNetwork()
	for _, nice := range []int{18, 19} {
		n.o.Nice = nice
		want := fmt.Sprintf("its nice value is %d.", nice)
		_, err := n.Connect(t.Context(), v, v.NICs, map[string]vm.Network{nw.Name: nw})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Connect: %v, want %q", err, want)
		}
	}
}

func TestAHostPortInUseIsReported(t *testing.T) {
	n := userNetworks(t, "")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for _, c := range []struct {
		address string
		port    int
		want    vm.Code
	}{
		{"127.0.0.1", port, vm.CodeInUse},
		{"0.0.0.0", port, vm.CodeInUse},
		{"192.0.2.77", port, vm.CodeInvalid},
		{"127.0.0.1", freePort(t), ""},
	} {
		f := vm.PortForward{Protocol: vm.TCP, HostAddress: addr(c.address), HostPort: c.port}
		err := n.CheckHostPorts(t.Context(), f)
		if codeOf(err) != c.want || c.want == "" && err != nil {
			t.Errorf("%s port %d: %v, want %q", c.address, c.port, err, c.want)
		}
	}
}

func TestProbeIgnoresAConnectionClosedAtOnce(t *testing.T) {
	t.Parallel()
	n := userNetworks(t, "")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hold := make(chan bool, 1) // whether the next connection stays open
	go func() {
		var held []net.Conn // a connection without a reference would be closed
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				for _, c := range held {
					c.Close()
				}
				return
			}
			switch {
			case err != nil:
			case <-hold:
				held = append(held, c)
			default:
				c.Close()
			}
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	v := userGuest(vm.PortForward{
		Protocol:    vm.TCP,
		HostAddress: netip.IPv4Unspecified(),
		HostPort:    port,
		GuestPort:   22,
	})
	hold <- false
	if err := n.Probe(t.Context(), v, 22); codeOf(err) != vm.CodeNetworkUnavailable {
		t.Errorf("Probe of a port that refuses: %v", err)
	}
	hold <- true
	if err := n.Probe(t.Context(), v, 22); err != nil {
		t.Errorf("Probe of a port that answers: %v", err)
	}
	if err := n.Probe(t.Context(), v, 23); codeOf(err) != vm.CodeInvalid {
		t.Errorf("Probe of a port without a forward: %v", err)
	}
}

func TestNewRefusesAnUnknownMode(t *testing.T) {
	_, err := New(Options{Mode: "tunnel"}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), strconv.Quote("tunnel")) {
		t.Errorf("New: %v", err)
	}
}
