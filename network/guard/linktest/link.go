// Package linktest makes, for tests, two network namespaces with a cable between
// them: one is a host with a network's bridge, the other a guest.
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

// New makes a link that lives until the test ends; the host has the addresses of
// the network's gateway and fe80::1, the guest has only the link-local address
// fe80::2. Where network namespaces cannot be made or are left out, it ends the test.
func New(t testing.TB, n vm.Network) *Link {
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
	err := onThread(func() error { return l.build(n) })
	need.Privilege(t, err)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// onThread runs f on an operating system thread that ends with it, whatever
// namespace f has taken it to.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		result <- f()
	}()
	return <-result
}

func (l *Link) build(n vm.Network) error {
	var err error
	if l.guest, err = namespace(); err != nil {
		return fmt.Errorf("make the guest's namespace: %w", err)
	}
	if l.host, err = namespace(); err != nil {
		return fmt.Errorf("make the host's namespace: %w", err)
	}
	cable := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: GuestInterface, PeerHardwareAddr: GuestMAC, PeerNamespace: netlink.NsFd(l.guest)}
	cable.Name = HostInterface
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("make a cable: %w", err)
	}
	addresses := []netip.Prefix{netip.PrefixFrom(n.Gateway, n.Subnet.Bits()), netip.MustParsePrefix("fe80::1/64")}
	if a := n.GatewayIPv6(); a.IsValid() {
		addresses = append(addresses, netip.PrefixFrom(a, n.IPv6.Bits()))
	}
	if err := configure(HostInterface, addresses...); err != nil {
		return err
	}
	err = l.Guest(func() error { return configure(GuestInterface, netip.MustParsePrefix("fe80::2/64")) })
	return errors.Join(err, waitUp(HostInterface), l.Guest(func() error { return waitUp(GuestInterface) }))
}

// waitUp waits until the kernel has seen that an interface has a carrier: what is
// sent before is lost.
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

// namespace makes a namespace whose interfaces make no addresses of their own,
// and takes the thread there.
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
			return fmt.Errorf("give %s the address %v: %w", name, a, err)
		}
	}
	return nil
}

func addAddress(name string, a netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
	if a.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(link, address)
}

// Host runs f on a thread in the host's namespace. Goroutines that f starts are
// elsewhere; sockets that f makes stay there.
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

// GiveGuest gives the guest an address.
func (l *Link) GiveGuest(t testing.TB, a netip.Prefix) {
	t.Helper()
	if err := l.Guest(func() error { return addAddress(GuestInterface, a) }); err != nil {
		t.Fatal(err)
	}
}

// SetGuestMAC gives the guest's interface another address.
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

// A Log remembers what was logged.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Logger returns a logger that writes to l.
func (l *Log) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// String returns what was logged.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// AddRoute adds a route through an interface, in the namespace of the thread.
func AddRoute(name string, to netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index,
		Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}})
}
