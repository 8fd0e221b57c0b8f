package ndp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv6"

	"vmand/network/guard/linktest"
	"vmand/vm"
)

var testNetwork = vm.Network{
	Name: "net0", Mode: vm.NetworkNAT, Bridge: linktest.HostInterface,
	Subnet: netip.MustParsePrefix("192.168.77.0/24"), Gateway: netip.MustParseAddr("192.168.77.1"),
	IPv6: netip.MustParsePrefix("fd00:77::/64"), Domain: "vm.internal", MTU: 1400,
}

func TestAnAdvertisementFollowsTheRFCs(t *testing.T) {
	link := net.HardwareAddr{0x52, 1, 2, 3, 4, 5}
	want := "\x86\x00\x00\x00" + // type, code, checksum
		"\x40\xc0\x23\x28" + strings.Repeat("\x00", 8) + // hop limit, M and O, lifetime
		"\x01\x01\x52\x01\x02\x03\x04\x05" + // source link-layer address
		"\x05\x01\x00\x00\x00\x00\x05\x78" + // MTU
		"\x03\x04\x40\x80\x00\x01\x51\x80\x00\x01\x51\x80\x00\x00\x00\x00" + // prefix: flags and lifetimes
		"\xfd\x00\x00\x77" + strings.Repeat("\x00", 12) + // prefix: address
		"\x19\x03\x00\x00\x00\x01\x51\x80\xfd\x00\x00\x77" + strings.Repeat("\x00", 11) + "\x01" + // RDNSS
		"\x1f\x03\x00\x00\x00\x01\x51\x80\x02vm\x08internal\x00\x00\x00\x00" // DNSSL
	if got := advertisement(testNetwork, link, false); string(got) != want {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	lifetimes := func(b []byte) (router uint16, prefix, server uint32) {
		return binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint32(b[16+8+8+4:]), binary.BigEndian.Uint32(b[16+8+8+32+4:])
	}
	if r, p, s := lifetimes(advertisement(testNetwork, link, true)); r != 0 || p != 0 || s != 0 {
		t.Errorf("withdrawn: lifetimes %d, %d, %d", r, p, s)
	}
	nw := testNetwork
	nw.Mode = vm.NetworkIsolated
	if r, p, s := lifetimes(advertisement(nw, link, false)); r != 0 || p != 86400 || s != 86400 {
		t.Errorf("isolated: lifetimes %d, %d, %d", r, p, s)
	}
	search := testNetwork
	search.SearchDomains = []string{"corp.example", "x"}
	const list = "\x1f\x05\x00\x00\x00\x01\x51\x80\x02vm\x08internal\x00\x04corp\x07example\x00\x01x\x00\x00\x00"
	if got := advertisement(search, link, false); !bytes.HasSuffix(got, []byte(list)) || len(got)%8 != 0 {
		t.Errorf("with search domains: got %x, want it to end with %x", got, list)
	}
	nw.DNS = []netip.Addr{netip.MustParseAddr("9.9.9.9")}
	b := advertisement(nw, link, false)
	if len(b) != len(want)-24 || bytes.Contains(b, []byte{optionDNSServers, 3}) {
		t.Errorf("with an IPv4 server only: %x", b)
	}
}

func TestOnlySolicitationsOfNeighboursAreValid(t *testing.T) {
	good := []byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}
	option := func(b ...byte) []byte { return append(bytes.Clone(good), b...) }
	lla := option(optionSourceLinkAddress, 1, 1, 2, 3, 4, 5, 6)
	near, none := netip.MustParseAddr("fe80::2"), netip.IPv6Unspecified()
	for name, c := range map[string]struct {
		b      []byte
		source netip.Addr
		hops   int
		want   bool
	}{
		"good":                               {good, near, 255, true},
		"with a link-layer address":          {lla, near, 255, true},
		"from ::":                            {good, none, 255, true},
		"from ::, with a link-layer address": {lla, none, 255, false},
		"through a router":                   {good, near, 254, false},
		"from a global address":              {good, netip.MustParseAddr("fd00::2"), 255, false},
		"too short":                          {good[:7], near, 255, false},
		"an advertisement":                   {append([]byte{typeAdvertisement}, good[1:]...), near, 255, false},
		"with a code":                        {append([]byte{typeSolicitation, 1}, good[2:]...), near, 255, false},
		"with an option of length 0":         {option(1, 0, 0, 0, 0, 0, 0, 0), near, 255, false},
		"with an option too long":            {option(1, 2, 0, 0, 0, 0, 0, 0), near, 255, false},
		"with half an option":                {option(1), near, 255, false},
	} {
		if got := validSolicitation(c.b, c.source, c.hops); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func FuzzRouterSolicitation(f *testing.F) {
	good := []byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6}
	f.Add(good, netip.MustParseAddr("fe80::2").AsSlice(), 255)
	f.Add([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16), 255)
	f.Fuzz(func(t *testing.T, b, from []byte, hops int) {
		source, _ := netip.AddrFromSlice(from)
		if validSolicitation(b, source, hops) && (len(b) < 8 || len(b)%8 != 0 || hops != 255) {
			t.Fatalf("%x from %v with the hop limit %d is accepted", b, source, hops)
		}
	})
}

// A guest receives advertisements and solicits them.
type guest struct {
	*ipv6.PacketConn
	raw net.PacketConn
}

func newBench(t *testing.T, nw vm.Network) (*Advertiser, *guest, *linktest.Link, *linktest.Log) {
	t.Helper()
	l, log, g := linktest.New(t, nw), new(linktest.Log), new(guest)
	err := l.Guest(func() (err error) {
		if g.raw, err = net.ListenPacket("ip6:ipv6-icmp", "fe80::2%"+linktest.GuestInterface); err != nil {
			return err
		}
		g.PacketConn = ipv6.NewPacketConn(g.raw)
		ifc, err := net.InterfaceByName(linktest.GuestInterface)
		if err != nil {
			return err
		}
		var filter ipv6.ICMPFilter
		filter.SetAll(true)
		filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
		return errors.Join(g.SetICMPFilter(&filter), g.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagDst, true),
			g.SetMulticastInterface(ifc), g.SetMulticastHopLimit(255), g.SetHopLimit(255),
			// The socket is bound to an address, so it must join the group.
			g.JoinGroup(ifc, &net.IPAddr{IP: allNodes.AsSlice()}))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.raw.Close() })
	var a *Advertiser
	err = l.Host(func() (err error) {
		a, err = New(Options{Interface: linktest.HostInterface, Network: nw, Log: log.Logger()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a, g, l, log
}

// solicit sends a message from the guest's link-local address to all routers.
func (g *guest) solicit(b []byte) error {
	_, err := g.WriteTo(b, nil, &net.IPAddr{IP: allRouters.AsSlice()})
	return err
}

// receive returns the next advertisement and its destination.
func (g *guest) receive(t *testing.T) ([]byte, net.IP) {
	t.Helper()
	g.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 1500)
	n, control, from, err := g.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	if from, ok := from.(*net.IPAddr); !ok || !from.IP.Equal(routerAddress.AsSlice()) || control.HopLimit != 255 {
		t.Errorf("an advertisement from %v with the hop limit %d", from, control.HopLimit)
	}
	return b[:n], control.Dst
}

func TestAdvertisementsFollowSolicitationsAndChangesAtOnce(t *testing.T) {
	t.Parallel()
	a, g, l, _ := newBench(t, testNetwork)
	if err := g.solicit([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	var b []byte
	for to := net.IP(nil); !to.Equal(net.ParseIP("fe80::2")); { // the first may be to all nodes
		b, to = g.receive(t)
	}
	var link net.HardwareAddr
	err := l.Host(func() error {
		ifc, err := net.InterfaceByName(linktest.HostInterface)
		if err == nil {
			link = ifc.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := advertisement(testNetwork, link, false)
	copy(want[2:4], b[2:4]) // the checksum
	if !bytes.Equal(b, want) {
		t.Errorf("received %x\nwant     %x", b, want)
	}
	a.Update(testNetwork) // changes nothing
	search := testNetwork
	search.SearchDomains = []string{"corp.example"}
	a.Update(search)
	list := func(lifetime, domains string) []byte { return []byte(lifetime + domains) }
	const day, ended, both = "\x00\x01\x51\x80", "\x00\x00\x00\x00", "\x02vm\x08internal\x00\x04corp\x07example\x00"
	if b, _ := g.receive(t); !bytes.Contains(b, list(day, both)) {
		t.Errorf("after a new search domain: %x", b)
	}
	a.Update(testNetwork)
	if b, to := g.receive(t); !bytes.HasSuffix(b, list(ended, "\x04corp\x07example\x00\x00\x00")) || bytes.Equal(b[6:8], []byte{0, 0}) ||
		!to.Equal(allNodes.AsSlice()) {
		t.Errorf("after the removal of a search domain: %x to %v", b, to)
	}
	if b, _ := g.receive(t); !bytes.HasSuffix(b, list(day, "\x02vm\x08internal\x00\x00\x00\x00")) {
		t.Errorf("after the withdrawal: %x", b)
	}
	none := testNetwork
	none.IPv6 = netip.Prefix{}
	a.Update(none)
	if b, to := g.receive(t); !bytes.Equal(b[6:8], []byte{0, 0}) || !to.Equal(allNodes.AsSlice()) {
		t.Errorf("after the removal of the IPv6 prefix: %x to %v", b, to)
	}
	a.Update(testNetwork)
	if b, to := g.receive(t); bytes.Equal(b[6:8], []byte{0, 0}) || !to.Equal(allNodes.AsSlice()) {
		t.Errorf("after a new IPv6 prefix: %x to %v", b, to)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	g.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, _, _, err := g.ReadFrom(make([]byte, 1500)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("received %d bytes after Close, %v", n, err)
	}
	if err := a.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

func TestAFloodOfSolicitationsGetsFewReplies(t *testing.T) {
	t.Parallel()
	a, g, l, log := newBench(t, testNetwork)
	g.receive(t) // the first one, to all nodes
	before := heap()
	random := rand.New(rand.NewPCG(1, 2))
	const packets = 100_000
	for i := range packets {
		b := []byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}
		if i%2 == 0 {
			b = append(b, byte(random.Uint32()), byte(random.Uint32()), 0, 0, 0, 0, 0, 0)
		}
		if err := g.solicit(b); err != nil && !strings.Contains(err.Error(), "no buffer space") {
			t.Fatal(err)
		}
	}
	replies := 0
	for g.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); ; replies++ {
		if _, _, _, err := g.ReadFrom(make([]byte, 1500)); err != nil {
			break
		}
	}
	grown := heap() - before
	t.Logf("%d solicitations: %d replies, heap %+d KiB, %d bytes of log",
		packets, replies, grown>>10, len(log.String()))
	if replies > 60 || replies == 0 {
		t.Errorf("%d replies, want 1 to 60", replies)
	}
	if grown > 4<<20 {
		t.Errorf("the heap has grown by %d bytes, want at most 4 MiB", grown)
	}
	l.Cut(t)
	if a.Err() == nil {
		t.Error("no error although the interface is gone")
	}
}

// heap returns the size of all reachable objects in bytes.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
