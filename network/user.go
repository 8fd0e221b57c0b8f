package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/vm"
)

// passtPatience is the longest wait for a new passt to serve.
const passtPatience = 5 * time.Second

// passtID is the user and group id that passt runs as if vmand runs as root.
const passtID = 65534

// maxPasstOutput is how much in bytes of what passt wrote to its log is read.
const maxPasstOutput = 16 << 10

// connectUser returns a port of a network of mode user: a connection to a new passt if
// passt is installed, else QEMU's own user-mode network. A network with restrict always
// uses the latter: passt cannot restrict guests to their forwards.
//
// With QEMU's own, a guest reaches every service on the host's 127.0.0.1 at the gateway's
// address. So loopback does not protect a service, and every listener there must ask for
// credentials. The API of vmand closes connections that come from QEMU or passt.
func (n *Networks) connectUser(ctx context.Context, v vm.VM, nic vm.NIC, nw vm.Network) (vm.Port, error) {
	p := vm.Port{
		NIC:      nic,
		Kind:     vm.PortUser,
		MTU:      nw.MTU,
		Subnet:   nw.Subnet,
		Gateway:  userGateway(nw),
		Domain:   nw.Domain,
		Restrict: nw.Restrict,
		Forwards: vm.ForwardsTo(v.Forwards, nic.Slot),
	}
	if nw.Restrict {
		return p, nil
	}
	program, err := host.LookPath(n.o.Passt)
	if err != nil {
		return p, nil
	}
	if len(nw.DNS) == 0 {
		nw.DNS = resolvers(resolvConf, resolvedConf)
	}
	args := passtArgs(p, nw)
	if !n.hasDefaultRoute() {
		args = append(args, passtOffline...)
	}
	f, err := n.startPasst(ctx, append([]string{program}, args...), v.ID, nic.Slot)
	if err != nil {
		return vm.Port{}, unavailable(err, "start passt for NIC %d of VM %s", nic.Slot, v.ID)
	}
	return vm.Port{NIC: nic, Kind: vm.PortStream, Files: []*os.File{f}, MTU: nw.MTU}, nil
}

// Files that list the host's resolvers. The second lists those behind the local stub of
// systemd-resolved(8).
const (
	resolvConf   = "/etc/resolv.conf"
	resolvedConf = "/run/systemd/resolve/resolv.conf"
)

// resolvers returns the IPv4 resolvers that a guest can reach by itself, from the first
// file that lists any. It leaves out resolvers on loopback.
func resolvers(files ...string) []netip.Addr {
	for _, file := range files {
		text, _ := os.ReadFile(file) // a missing file lists none
		var found []netip.Addr
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if a, err := netip.ParseAddr(fields[1]); err == nil && a.Is4() && !a.IsLoopback() {
				found = append(found, a)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// userGateway returns the gateway of a network: the recorded one, or the second address of
// the subnet, which is the default of libslirp.
func userGateway(nw vm.Network) netip.Addr {
	if nw.Gateway.IsValid() || !nw.Subnet.IsValid() {
		return nw.Gateway
	}
	return nw.Subnet.Addr().Next().Next()
}

// passtArgs returns the arguments of passt. The connection is file 3; passt ends when its
// other end is closed. It writes its pid to its standard output when it begins to serve.
func passtArgs(p vm.Port, nw vm.Network) []string {
	args := []string{
		"--foreground", "--quiet",
		"--fd", "3",
		"--pid", "/proc/self/fd/1",
		"--no-map-gw", "--ipv4-only",
		"--address", p.IP.String(),
		"--netmask", strconv.Itoa(p.Subnet.Bits()),
		"--gateway", p.Gateway.String(),
		"--mtu", strconv.Itoa(mtu(nw)),
	}
	if len(nw.DNS) == 0 {
		dns := p.Gateway.Next().String() // passt's own forwarder; old versions cannot forward to a resolver
		args = append(args, "--dns", dns, "--dns-forward", dns)
	}
	for _, a := range nw.DNS {
		args = append(args, "--dns", a.String())
	}
	if p.Domain != "" {
		args = append(args, "--search", p.Domain)
	}
	unused := map[vm.Protocol]bool{vm.TCP: true, vm.UDP: true}
	for _, f := range p.Forwards {
		unused[f.Protocol] = false
		ports := fmt.Sprintf("%d:%d", f.HostPort, f.GuestPort)
		if more := f.Count() - 1; more > 0 {
			ports = fmt.Sprintf("%d-%d:%d-%d", f.HostPort, f.HostPort+more, f.GuestPort, f.GuestPort+more)
		}
		if f.HostAddress.IsValid() && !f.HostAddress.IsUnspecified() {
			ports = f.HostAddress.String() + "/" + ports
		}
		args = append(args, "--"+string(f.Protocol)+"-ports", ports)
	}
	for _, proto := range []vm.Protocol{vm.TCP, vm.UDP} {
		if unused[proto] {
			args = append(args, "--"+string(proto)+"-ports", "none")
		}
	}
	return args
}

// passtOffline are the arguments that make passt start on a host without an IPv4 default route.
// By default it takes the guest's address, gateway and MAC address of the gateway from the
// interface of that route, and ends if there is none. vmand gives the first two in any case, and
// loopback, which every host has, lacks the third. passt binds no socket to the interface, so a
// route that the host gets later serves the guest. The MAC address is that of passt's local mode.
var passtOffline = []string{"--interface", "lo", "--mac-addr", "9a:55:9a:55:9a:55"}

// hasDefaultRoute reports whether the main routing table of the host has an IPv4 default route
// through an interface, or cannot be read.
func (n *Networks) hasDefaultRoute() bool {
	if n.links == nil {
		return true
	}
	routes, err := n.links.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_DST)
	return err != nil || slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.Type == unix.RTN_UNICAST && (r.LinkIndex > 0 || len(r.MultiPath) > 0)
	})
}

// startPasst starts a passt and returns vmand's end of its connection once passt
// serves. passt survives vmand and ends with QEMU.
func (n *Networks) startPasst(ctx context.Context, argv []string, id string, slot int) (_ *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	vmandEnd, qemuEnd := os.NewFile(uintptr(fds[0]), "passt"), os.NewFile(uintptr(fds[1]), "qemu")
	defer qemuEnd.Close()
	defer func() {
		if err != nil {
			vmandEnd.Close() // which ends a passt that runs
		}
	}()
	log, err := n.passtLog(id, slot)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	pid, stdout, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer pid.Close()
	defer stdout.Close()
	account := passtAccount()
	if err := stdout.Chown(account.UID, account.GID); err != nil { // passt opens it by name
		return nil, err
	}
	passt := host.Program{
		Argv:    argv,
		Files:   []*os.File{nil, stdout, log, qemuEnd},
		Account: account,
		Nice:    n.o.Nice,
	}
	if _, err := passt.Start(); err != nil {
		return nil, err
	}
	stdout.Close() // so that the end of passt ends the pipe
	if err := serves(ctx, pid); err != nil {
		return nil, errors.Join(err, lastError(log))
	}
	return vmandEnd, nil
}

// PasstUID returns the user that passt runs as.
func PasstUID() int { return passtAccount().UID }

// passtAccount returns the account that passt runs as.
func passtAccount() host.Account {
	if os.Geteuid() == 0 {
		return host.Account{UID: passtID, GID: passtID}
	}
	return host.Account{UID: os.Geteuid(), GID: os.Getegid()}
}

// passtLog opens the file for the standard error of a passt. A pipe would break when vmand
// ends, and passt would end with it.
func (n *Networks) passtLog(id string, slot int) (*os.File, error) {
	name := filepath.Join(n.o.RuntimeDir, fmt.Sprintf("passt-%s-%d.log", id, slot))
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
}

func (n *Networks) removePasstLogs(id string) error {
	names, err := filepath.Glob(filepath.Join(n.o.RuntimeDir, "passt-"+id+"-[0-9].log"))
	for _, name := range names {
		if e := os.Remove(name); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// serves blocks until passt has written its pid, for at most passtPatience.
func serves(ctx context.Context, pid *os.File) error {
	deadline := time.Now().Add(passtPatience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := pid.SetReadDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { pid.SetReadDeadline(time.Now()) })
	defer stop()
	_, err := bufio.NewReader(pid).ReadString('\n')
	if errors.Is(err, io.EOF) {
		return errors.New("passt ended")
	}
	return err
}

// lastError returns the last line that passt wrote to its log, as an error.
func lastError(log *os.File) error {
	if line := host.LastLines(host.Tail(log, maxPasstOutput), 1); line != "" {
		return errors.New(line)
	}
	return nil
}
