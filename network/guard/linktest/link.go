// Package linktest creates two network namespaces for tests, with a cable between them: one
// is a host, and its interface stands for the bridge of a network; the other is a guest.
package linktest

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vmand/test/need"
	"vmand/vm"
)

// The interfaces at the ends of the cable.
const (
	HostInterface  = "vmtest0"
	GuestInterface = "eth0"
)

// GuestMAC is the address of the guest's interface.
var GuestMAC = net.HardwareAddr{0x52, 1, 2, 3, 4, 5}

// A Link is a host, a guest and the cable between them.
type Link struct {
	host, guest netns.NsHandle
}

// New creates a link for the duration of a test. The host has the addresses of the network's
// gateway and fe80::1, the guest only the link-local address fe80::2. New ends the test where
// network namespaces cannot be made or are left out.
func New(t testing.TB, nw vm.Network) *Link {
	t.Helper()
	need.Namespaces(t)
	l := &Link{host: -1, guest: -1}
	t.Cleanup(func() {
		for _, h := range []*netns.NsHandle{&l.host, &l.guest} {
			if h.IsOpen() {
				h.Close()
			}
		}
	})
	err := onThread(func() error { return l.build(nw) })
	need.Privilege(t, err)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// onThread runs f on an operating system thread of its own, which ends after f: f may
// change its namespace.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		result <- f()
	}()
	return <-result
}

func (l *Link) build(nw vm.Network) error {
	var err error
	if l.guest, err = namespace(); err != nil {
		return fmt.Errorf("create the guest's namespace: %w", err)
	}
	if l.host, err = namespace(); err != nil {
		return fmt.Errorf("create the host's namespace: %w", err)
	}
	cable := &netlink.Veth{
		LinkAttrs:        netlink.NewLinkAttrs(),
		PeerName:         GuestInterface,
		PeerHardwareAddr: GuestMAC,
		PeerNamespace:    netlink.NsFd(l.guest),
	}
	cable.Name = HostInterface
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("create the cable: %w", err)
	}
	addresses := []netip.Prefix{
		netip.PrefixFrom(nw.Gateway, nw.Subnet.Bits()),
		netip.MustParsePrefix("fe80::1/64"),
	}
	if a := nw.GatewayIPv6(); a.IsValid() {
		addresses = append(addresses, netip.PrefixFrom(a, nw.IPv6.Bits()))
	}
	if err := configure(HostInterface, addresses...); err != nil {
		return err
	}
	err = l.Guest(func() error { return configure(GuestInterface, netip.MustParsePrefix("fe80::2/64")) })
	return errors.Join(err, waitUp(HostInterface), l.Guest(func() error { return waitUp(GuestInterface) }))
}

// waitUp blocks until an interface has a carrier, for at most 10 s: the kernel drops earlier
// packets.
func waitUp(name string) error {
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("interface %s is not up after 10 s", name)
		}
	}
}

// namespace creates a namespace with interfaces that generate no addresses, and moves the
// thread into it.
func namespace() (netns.NsHandle, error) {
	h, err := netns.New()
	if err != nil {
		return h, err
	}
	err = os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("1"), 0)
	if err == nil {
		err = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_ra", []byte("0"), 0)
	}
	return h, err
}

func configure(name string, addresses ...netip.Prefix) error {
	for _, name := range []string{"lo", name} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	for _, a := range addresses {
		if err := addAddress(name, a); err != nil {
			return fmt.Errorf("add the address %v to %s: %w", a, name, err)
		}
	}
	return nil
}

func addAddress(name string, a netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	mask := net.CIDRMask(a.Bits(), a.Addr().BitLen())
	address := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: mask}}
	if a.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(link, address)
}

// Host runs f on a thread in the host's namespace. Sockets that f opens stay in it;
// goroutines that f starts do not.
func (l *Link) Host(f func() error) error { return in(l.host, f) }

// Guest runs f on a thread in the guest's namespace.
func (l *Link) Guest(f func() error) error { return in(l.guest, f) }

func in(h netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(h); err != nil {
			return err
		}
		return f()
	})
}

// GiveGuest adds an address to the guest's interface.
func (l *Link) GiveGuest(t testing.TB, a netip.Prefix) {
	t.Helper()
	if err := l.Guest(func() error { return addAddress(GuestInterface, a) }); err != nil {
		t.Fatal(err)
	}
}

// SetGuestMAC sets the Ethernet address of the guest's interface.
func (l *Link) SetGuestMAC(mac net.HardwareAddr) error {
	return l.Guest(func() error {
		link, err := netlink.LinkByName(GuestInterface)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(link, mac)
	})
}

// Cut removes the cable and both interfaces.
func (l *Link) Cut(t testing.TB) {
	t.Helper()
	err := l.Host(func() error {
		link, err := netlink.LinkByName(HostInterface)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A Log keeps the lines that its logger writes.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Logger returns a logger that writes to l.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Write appends b to the log.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// String returns the lines.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// AddRoute adds a route through an interface, in the namespace of the calling thread.
func AddRoute(name string, to netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	mask := net.CIDRMask(to.Bits(), to.Addr().BitLen())
	return netlink.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: to.Addr().AsSlice(), Mask: mask},
	})
}
