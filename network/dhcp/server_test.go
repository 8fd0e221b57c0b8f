package dhcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"golang.org/x/sys/unix"

	"vmand/network/guard/linktest"
	"vmand/vm"
)

// book is a directory in memory.
type book struct {
	mu      sync.Mutex
	leases  map[string]vm.Lease
	err     error
	lookups atomic.Int64
}

func (b *book) LeaseByMAC(_ context.Context, network, mac string) (vm.Lease, error) {
	b.lookups.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return vm.Lease{}, b.err
	}
	l, ok := b.leases[mac]
	if !ok || network != l.Network {
		return vm.Lease{}, vm.NotFound("lease", mac)
	}
	return l, nil
}

// bench is a server on a link.
type bench struct {
	*Server
	link  *linktest.Link
	book  *book
	acked chan vm.Lease
	log   *linktest.Log
}

func newBench(t testing.TB, n vm.Network) *bench {
	t.Helper()
	b := &bench{
		link:  linktest.New(t, n),
		book:  &book{leases: map[string]vm.Lease{testLease.MAC: testLease}},
		acked: make(chan vm.Lease, 100),
		log:   new(linktest.Log),
	}
	err := b.link.Host(func() (err error) {
		b.Server, err = New(Options{
			Interface: linktest.HostInterface, Network: n, Directory: b.book, Log: b.log.Logger(),
			Acked: func(l vm.Lease) {
				select {
				case b.acked <- l:
				default:
				}
			},
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// client returns a DHCPv4 client on the guest's interface.
func (b *bench) client(t testing.TB, o ...nclient4.ClientOpt) *nclient4.Client {
	t.Helper()
	var c *nclient4.Client
	err := b.link.Guest(func() (err error) {
		c, err = nclient4.New(linktest.GuestInterface, o...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (b *bench) exchange(t testing.TB) *nclient4.Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	l, err := b.client(t).Request(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAGuestGetsItsAddressRenewsItAndGivesItBack(t *testing.T) {
	b := newBench(t, testNetwork)
	l := b.exchange(t)
	if !l.ACK.YourIPAddr.Equal(testLease.IP.AsSlice()) || l.ACK.HostName() != "web" {
		t.Fatalf("got %v", l.ACK.Summary())
	}
	heard := <-b.acked
	if heard.VMID != "web" || heard.Expires.Sub(heard.Acked) != 24*time.Hour {
		t.Errorf("heard of %+v", heard)
	}
	if got, ok := b.Leases()[testLease.MAC]; !ok || got != heard {
		t.Errorf("leases %+v", b.Leases())
	}

	// Now with an address, by unicast, as clients renew.
	b.link.GiveGuest(t, netip.PrefixFrom(testLease.IP, 24))
	var udp net.PacketConn
	err := b.link.Guest(func() (err error) {
		udp, err = net.ListenPacket("udp4", testLease.IP.String()+":68")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	udp.SetDeadline(time.Now().Add(10 * time.Second))
	server := &net.UDPAddr{IP: testNetwork.Gateway.AsSlice(), Port: 67}
	renew := message4(t, dhcpv4.MessageTypeRequest, has(testLease.IP.String()))
	if _, err := udp.WriteTo(renew.ToBytes(), server); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1500)
	n, _, err := udp.ReadFrom(buffer)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := dhcpv4.FromBytes(buffer[:n]); err != nil || r.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatalf("renewal: %v, %v", r, err)
	}
	if again := <-b.acked; !again.Acked.After(heard.Acked) {
		t.Errorf("the renewal was confirmed at %v, the lease at %v", again.Acked, heard.Acked)
	}
	release := message4(t, dhcpv4.MessageTypeRelease, has(testLease.IP.String()), to(testNetwork.Gateway.String()))
	if _, err := udp.WriteTo(release.ToBytes(), server); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lease is forgotten", func() bool { return len(b.Leases()) == 0 })
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestNobodyUnknownGetsAnAnswerNorAnybodyWhenTheDirectoryFails(t *testing.T) {
	b := newBench(t, testNetwork)
	ask := func(o ...nclient4.ClientOpt) error {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		_, err := b.client(t, o...).DiscoverOffer(ctx)
		return err
	}
	other := testLease
	other.MAC = "52:09:09:09:09:09"
	b.book.mu.Lock()
	delete(b.book.leases, testLease.MAC)
	b.book.leases[other.MAC] = other
	b.book.mu.Unlock()
	if err := ask(); err == nil {
		t.Error("a stranger got an offer")
	}
	if err := ask(nclient4.WithHWAddr(net.HardwareAddr{0x52, 9, 9, 9, 9, 9})); err == nil {
		t.Error("a stranger got an offer that is another machine's")
	}
	b.book.mu.Lock()
	b.book.err = errors.New("the disk is full")
	b.book.mu.Unlock()
	if err := ask(); err == nil {
		t.Error("there is an offer though the directory fails")
	}
	if !strings.Contains(b.log.String(), "the disk is full") {
		t.Errorf("the log does not say why: %s", b.log)
	}
}

func TestAGuestGetsItsAddressByDHCPv6KnownByItsFramesAlone(t *testing.T) {
	b := newBench(t, testNetwork)
	exchange := func() (reply *dhcpv6.Message, err error) {
		err = b.link.Guest(func() error {
			udp, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.ParseIP("fe80::2"), Zone: linktest.GuestInterface, Port: 546})
			if err != nil {
				return err
			}
			// The identifier is that of another machine, as a clone's is.
			c, err := nclient6.NewWithConn(udp, net.HardwareAddr{2, 7, 7, 7, 7, 7}, nclient6.WithTimeout(time.Second),
				nclient6.WithBroadcastAddr(&net.UDPAddr{IP: dhcpv6.AllDHCPRelayAgentsAndServers, Zone: linktest.GuestInterface, Port: 547}))
			if err != nil {
				return errors.Join(err, udp.Close())
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			advertise, err := c.Solicit(ctx)
			if err == nil {
				reply, err = c.Request(ctx, advertise)
			}
			return err
		})
		return reply, err
	}
	reply, err := exchange()
	if err != nil {
		t.Fatal(err)
	}
	if got := given(reply); got != testLease.IPv6.String() {
		t.Errorf("got %q", got)
	}
	eventually(t, "the lease is listed", func() bool { return len(b.Leases()) == 1 })

	without := testNetwork
	without.IPv6 = netip.Prefix{}
	if err := b.link.Host(func() error { b.Update(without); b.Update(testNetwork); return b.Err() }); err != nil {
		t.Fatal(err)
	}
	if reply, err = exchange(); err != nil || given(reply) != testLease.IPv6.String() {
		t.Errorf("after IPv6 went and came: %v, %v", reply, err)
	}
}

func TestAFloodOfGarbageChangesNothing(t *testing.T) {
	b := newBench(t, testNetwork)
	before := heap()
	const packets = 100_000
	err := b.link.Guest(func() error { return flood(packets) })
	if err != nil {
		t.Fatal(err)
	}
	b.exchange(t)
	grown := heap() - before
	t.Logf("after %d packets: heap %+d KiB, %d lookups, %d clients, %d bytes of log", packets, grown>>10, b.book.lookups.Load(), b.clients.Len(), len(b.log.String()))
	if grown > 8<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	if n := strings.Count(b.log.String(), "\n"); n > 30 {
		t.Errorf("%d lines in the log", n)
	}
	if err := b.Err(); err != nil {
		t.Error(err)
	}
}

// flood sends packets to the ports of both DHCPs from the guest: a third noise, a
// third requests spoilt in one byte, a third good ones from MACs that nobody has.
func flood(packets int) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fd4, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd4)
	if err := errors.Join(unix.SetsockoptInt(fd4, unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(fd4, linktest.GuestInterface),
		unix.BindToDevice(fd, linktest.GuestInterface)); err != nil {
		return err
	}
	to4 := &unix.SockaddrInet4{Port: 67, Addr: [4]byte{255, 255, 255, 255}}
	to6 := &unix.SockaddrInet6{Port: 547, Addr: [16]byte(dhcpv6.AllDHCPRelayAgentsAndServers)}
	random := rand.New(rand.NewPCG(1, 2))
	discover, err := dhcpv4.NewDiscovery(linktest.GuestMAC)
	if err != nil {
		return err
	}
	good := discover.ToBytes()
	for i := range packets {
		var b []byte
		switch i % 3 {
		case 0:
			b = make([]byte, random.IntN(1400))
			for j := range b {
				b[j] = byte(random.Uint32())
			}
		case 1:
			b = slices.Clone(good)
			b[random.IntN(len(b))] = byte(random.Uint32())
		default:
			b = slices.Clone(good)
			for j := 29; j < 34; j++ { // in chaddr
				b[j] = byte(random.Uint32())
			}
		}
		if i%4 == 0 {
			err = unix.Sendto(fd, b, 0, to6)
		} else {
			err = unix.Sendto(fd4, b, 0, to4)
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ENETUNREACH) {
			return fmt.Errorf("send packet %d: %w", i, err)
		}
	}
	return nil
}

// heap returns the bytes of reachable objects.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestAServerWhoseInterfaceIsGoneSaysSo(t *testing.T) {
	b := newBench(t, testNetwork)
	if err := b.Err(); err != nil {
		t.Fatal(err)
	}
	b.link.Cut(t)
	if err := b.Err(); err == nil {
		t.Error("no error though the interface is gone")
	}
}

func TestAClosedServerSaysSo(t *testing.T) {
	b := newBench(t, testNetwork)
	b.Close()
	if err := b.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
	b.Server = newServerAgain(t, b)
}

// newServerAgain shows that the ports of a closed server are free.
func newServerAgain(t *testing.T, b *bench) *Server {
	t.Helper()
	var s *Server
	err := b.link.Host(func() (err error) {
		s, err = New(Options{Interface: linktest.HostInterface, Network: testNetwork, Directory: b.book, Log: b.log.Logger()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// BenchmarkExchange measures DISCOVER, OFFER, REQUEST and ACK over real sockets,
// each by another guest.
func BenchmarkExchange(b *testing.B) {
	bench := newBench(b, testNetwork)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		mac := net.HardwareAddr{0x52, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
		l := testLease
		l.MAC = mac.String()
		bench.book.mu.Lock()
		bench.book.leases[l.MAC] = l
		bench.book.mu.Unlock()
		if err := bench.link.SetGuestMAC(mac); err != nil {
			b.Fatal(err)
		}
		c := bench.client(b, nclient4.WithHWAddr(mac))
		start := time.Now()
		if _, err := c.Request(context.Background()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
		c.Close()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
