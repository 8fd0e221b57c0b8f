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

// A directory holds leases in memory.
type directory struct {
	mu      sync.Mutex
	leases  map[string]vm.Lease
	err     error
	lookups atomic.Int64
}

func (d *directory) LeaseByMAC(_ context.Context, networkName, mac string) (vm.Lease, error) {
	d.lookups.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return vm.Lease{}, d.err
	}
	l, ok := d.leases[mac]
	if !ok || networkName != l.Network {
		return vm.Lease{}, vm.NotFound("lease", mac)
	}
	return l, nil
}

// A bench is a server on the host of a link.
type bench struct {
	*Server
	link  *linktest.Link
	dir   *directory
	acked chan vm.Lease
	log   *linktest.Log
}

func newBench(t testing.TB, nw vm.Network) *bench {
	t.Helper()
	b := &bench{
		link:  linktest.New(t, nw),
		dir:   &directory{leases: map[string]vm.Lease{testLease.MAC: testLease}},
		acked: make(chan vm.Lease, 100),
		log:   new(linktest.Log),
	}
	err := b.link.Host(func() (err error) {
		b.Server, err = New(Options{
			Interface: linktest.HostInterface,
			Network:   nw,
			Directory: b.dir,
			Log:       b.log.Logger(),
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

// exchange requests a lease with DHCPv4.
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

func TestAGuestGetsRenewsAndReleasesItsAddress(t *testing.T) {
	t.Parallel()
	b := newBench(t, testNetwork)
	l := b.exchange(t)
	if !l.ACK.YourIPAddr.Equal(testLease.IP.AsSlice()) || l.ACK.HostName() != "web" {
		t.Fatalf("the acknowledgement is %v", l.ACK.Summary())
	}
	acked := <-b.acked
	if acked.VMID != "web" || acked.Expires.Sub(acked.Acked) != 24*time.Hour {
		t.Errorf("Acked is called with %+v", acked)
	}
	if got, ok := b.Leases()[testLease.MAC]; !ok || got != acked {
		t.Errorf("leases %+v", b.Leases())
	}

	// A client renews from its address, by unicast.
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
	if again := <-b.acked; !again.Acked.After(acked.Acked) {
		t.Errorf("the renewal was confirmed at %v, the lease at %v", again.Acked, acked.Acked)
	}
	release := message4(t, dhcpv4.MessageTypeRelease, has(testLease.IP.String()), to(testNetwork.Gateway.String()))
	if _, err := udp.WriteTo(release.ToBytes(), server); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the released lease is not listed", func() bool { return len(b.Leases()) == 0 })
}

func TestDeclinedAddressIsNotOffered(t *testing.T) {
	t.Parallel()
	b := newBench(t, testNetwork)
	b.exchange(t)
	<-b.acked
	ip := testLease.IP.String()
	b.link.GiveGuest(t, netip.PrefixFrom(testLease.IP, 24))
	err := b.link.Guest(func() error {
		udp, err := net.ListenPacket("udp4", ip+":68")
		if err != nil {
			return err
		}
		defer udp.Close()
		decline := message4(t, dhcpv4.MessageTypeDecline, asks(ip), to(testNetwork.Gateway.String()))
		_, err = udp.WriteTo(decline.ToBytes(), &net.UDPAddr{IP: testNetwork.Gateway.AsSlice(), Port: 67})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the conflict is listed", func() bool { return len(b.Conflicts()) == 1 })
	c := b.Conflicts()
	if c[0].IP != testLease.IP || c[0].Lease.VMID != "web" || c[0].Until.Sub(c[0].At) != conflictTime {
		t.Fatalf("the conflicts are %+v, want one of %s", c, ip)
	}
	if len(b.Leases()) != 0 {
		t.Errorf("the leases are %+v, want none", b.Leases())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if l, err := b.client(t).Request(ctx); err == nil {
		t.Errorf("the declined address was offered again: %v", l.ACK.Summary())
	}
	b.ForgetConflicts(testLease.MAC)
	if c := b.Conflicts(); len(c) != 0 {
		t.Errorf("after ForgetConflicts, the conflicts are %+v, want none", c)
	}
	b.exchange(t)
}

func TestConflictsEnd(t *testing.T) {
	c, now := newConflicts(), time.Now()
	c.note(testLease, testLease.IP, now)
	if l := c.without(testLease, now.Add(conflictTime-1)); l.IP.IsValid() || l.IPv6 != testLease.IPv6 {
		t.Errorf("before the end, the lease is %+v, want it without %s", l, testLease.IP)
	}
	if l := c.without(testLease, now.Add(conflictTime)); l != testLease {
		t.Errorf("after the end, the lease is %+v, want %+v", l, testLease)
	}
	if all := c.all(now.Add(conflictTime)); len(all) != 0 {
		t.Errorf("after the end, the conflicts are %+v, want none", all)
	}
}

// eventually waits for a condition, for at most 10 s.
func eventually(t testing.TB, condition string, holds func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10 s: %s", condition)
		}
	}
}

func TestNoOfferWithoutARecordOrWithAFailingDirectory(t *testing.T) {
	t.Parallel()
	b := newBench(t, testNetwork)
	ask := func(o ...nclient4.ClientOpt) error {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		_, err := b.client(t, o...).DiscoverOffer(ctx)
		return err
	}
	other := testLease
	other.MAC = "52:09:09:09:09:09"
	b.dir.mu.Lock()
	delete(b.dir.leases, testLease.MAC)
	b.dir.leases[other.MAC] = other
	b.dir.mu.Unlock()
	if err := ask(); err == nil {
		t.Error("an unknown MAC got an offer")
	}
	if err := ask(nclient4.WithHWAddr(net.HardwareAddr{0x52, 9, 9, 9, 9, 9})); err == nil {
		t.Error("an unknown MAC got the offer of the MAC in its request")
	}
	b.dir.mu.Lock()
	b.dir.err = errors.New("the disk is full")
	b.dir.mu.Unlock()
	if err := ask(); err == nil {
		t.Error("there is an offer although the directory fails")
	}
	if !strings.Contains(b.log.String(), "the disk is full") {
		t.Errorf("the log lacks the reason: %s", b.log)
	}
}

func TestADHCPv6ClientIsIdentifiedByItsFramesOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t, testNetwork)
	exchange := func() (reply *dhcpv6.Message, err error) {
		err = b.link.Guest(func() error {
			local := &net.UDPAddr{IP: net.ParseIP("fe80::2"), Zone: linktest.GuestInterface, Port: 546}
			udp, err := net.ListenUDP("udp6", local)
			if err != nil {
				return err
			}
			servers := &net.UDPAddr{
				IP:   dhcpv6.AllDHCPRelayAgentsAndServers,
				Zone: linktest.GuestInterface,
				Port: 547,
			}
			// The client sends the identifier of another machine, as a clone does.
			c, err := nclient6.NewWithConn(udp, net.HardwareAddr{2, 7, 7, 7, 7, 7},
				nclient6.WithTimeout(time.Second), nclient6.WithBroadcastAddr(servers))
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
		t.Errorf("the reply gives %q, want %s", got, testLease.IPv6)
	}
	eventually(t, "the lease is listed", func() bool { return len(b.Leases()) == 1 })

	without := testNetwork
	without.IPv6 = netip.Prefix{}
	if err := b.link.Host(func() error { b.Update(without); b.Update(testNetwork); return b.Err() }); err != nil {
		t.Fatal(err)
	}
	if reply, err = exchange(); err != nil || given(reply) != testLease.IPv6.String() {
		t.Errorf("after IPv6 was removed and added again: %v, %v", reply, err)
	}
}

// TestAFloodOfGarbageChangesNothing measures the heap, so it must not run in parallel.
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
	t.Logf("after %d packets: heap %+d KiB, %d lookups, %d clients, %d bytes of log",
		packets, grown>>10, b.dir.lookups.Load(), b.clients.Len(), len(b.log.String()))
	if grown > 8<<20 {
		t.Errorf("the heap has grown by %d bytes, want at most 8 MiB", grown)
	}
	if n := strings.Count(b.log.String(), "\n"); n > 30 {
		t.Errorf("%d lines in the log, want at most 30", n)
	}
	if err := b.Err(); err != nil {
		t.Error(err)
	}
}

// flood sends packets to the ports of DHCPv4 and DHCPv6: a third noise, a third requests
// with one wrong byte, a third good requests from unknown MACs.
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
	err = errors.Join(
		unix.SetsockoptInt(fd4, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		unix.BindToDevice(fd4, linktest.GuestInterface),
		unix.BindToDevice(fd, linktest.GuestInterface),
	)
	if err != nil {
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
			for j := 29; j < 34; j++ { // of chaddr
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

// heap returns the size of all reachable objects in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestErrReportsAMissingInterface(t *testing.T) {
	t.Parallel()
	b := newBench(t, testNetwork)
	if err := b.Err(); err != nil {
		t.Fatal(err)
	}
	b.link.Cut(t)
	if err := b.Err(); err == nil {
		t.Error("no error although the interface is gone")
	}
}

func TestErrReportsThatTheServerWasClosed(t *testing.T) {
	t.Parallel()
	b := newBench(t, testNetwork)
	b.Close()
	if err := b.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
	b.Server = newServerAgain(t, b)
}

// newServerAgain starts a second server on the ports of a closed one.
func newServerAgain(t *testing.T, b *bench) *Server {
	t.Helper()
	var s *Server
	err := b.link.Host(func() (err error) {
		s, err = New(Options{
			Interface: linktest.HostInterface,
			Network:   testNetwork,
			Directory: b.dir,
			Log:       b.log.Logger(),
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// BenchmarkExchange measures DISCOVER, OFFER, REQUEST and ACK over real sockets, each time
// from another guest.
func BenchmarkExchange(b *testing.B) {
	bench := newBench(b, testNetwork)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		mac := net.HardwareAddr{0x52, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
		l := testLease
		l.MAC = mac.String()
		bench.dir.mu.Lock()
		bench.dir.leases[l.MAC] = l
		bench.dir.mu.Unlock()
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
