package dns

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"vmand/network/guard/linktest"
)

// An upstream is a resolver on the machine that runs the tests.
type upstream struct {
	address netip.AddrPort
	queries atomic.Int64
	streams atomic.Int64 // the queries by TCP
	delay   atomic.Int64 // of each answer
}

// newUpstream starts a resolver that answers 203.0.113.5 to every query. Exceptions are names
// that begin with "big" (100 addresses), "none" (no such name) and "forged" (forged answers
// come first).
func newUpstream(t testing.TB) *upstream {
	t.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{address: udp.LocalAddr().(*net.UDPAddr).AddrPort()}
	tcp, err := net.Listen("tcp", u.address.String())
	if err != nil {
		t.Fatal(err)
	}
	handler := func(stream bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			u.queries.Add(1)
			if stream {
				u.streams.Add(1)
			}
			if d := u.delay.Load(); d > 0 {
				<-time.After(time.Duration(d))
			}
			w.WriteMsg(u.answer(w, q, stream))
		}
	}
	for _, s := range []*dns.Server{
		{PacketConn: udp, Handler: handler(false)},
		{Listener: tcp, Handler: handler(true)},
	} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return u
}

func (u *upstream) answer(w dns.ResponseWriter, q *dns.Msg, stream bool) *dns.Msg {
	r := new(dns.Msg).SetReply(q)
	name := q.Question[0].Name
	switch {
	case strings.HasPrefix(name, "none"):
		r.Rcode = dns.RcodeNameError
		r.Ns = []dns.RR{&dns.SOA{Hdr: header("example.com.", dns.TypeSOA, 60), Ns: "a.", Mbox: "b.", Minttl: 60}}
		return r
	case strings.HasPrefix(name, "big"):
		for i := range 100 {
			a := &dns.A{Hdr: header(name, dns.TypeA, 60), A: net.IPv4(203, 0, 113, byte(i))}
			r.Answer = append(r.Answer, a)
		}
		if !stream {
			r.Truncate(512)
		}
		return r
	case strings.HasPrefix(name, "forged"):
		for _, spoil := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) { m.Question[0].Name = "other.example.com." },
			func(m *dns.Msg) { m.Response = false },
		} {
			forged := r.Copy()
			forged.Answer = []dns.RR{&dns.A{Hdr: header(name, dns.TypeA, 60), A: net.IPv4(6, 6, 6, 6)}}
			spoil(forged)
			w.WriteMsg(forged)
		}
	}
	r.Answer = []dns.RR{&dns.A{Hdr: header(name, dns.TypeA, 60), A: net.IPv4(203, 0, 113, 5)}}
	return r
}

// A bench is a server on the host of a link, with a guest and an upstream resolver.
type bench struct {
	*Server
	link *linktest.Link
	up   *upstream
	log  *linktest.Log
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{link: linktest.New(t, testNetwork), up: newUpstream(t), log: new(linktest.Log)}
	err := b.link.Host(func() (err error) {
		b.Server, err = New(Options{
			Interface: linktest.HostInterface,
			Network:   testNetwork,
			Directory: directory{},
			Upstreams: []netip.AddrPort{b.up.address},
			Log:       b.log.Logger(),
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	b.link.GiveGuest(t, netip.PrefixFrom(testLease.IP, 24))
	b.link.GiveGuest(t, netip.PrefixFrom(testLease.IPv6, 64))
	return b
}

// cached returns a number of the cache.
func (b *bench) cached(number func(*cache) int) int {
	b.cache.mu.Lock()
	defer b.cache.mu.Unlock()
	return number(b.cache)
}

// ask sends a query from the guest by "udp" or "tcp".
func (b *bench) ask(transport string, server netip.Addr, q *dns.Msg) (r *dns.Msg, err error) {
	err = b.link.Guest(func() error {
		c := dns.Client{Net: transport, Timeout: 8 * time.Second}
		r, _, err = c.Exchange(q, netip.AddrPortFrom(server, 53).String())
		return err
	})
	return r, err
}

func (b *bench) mustAsk(t testing.TB, transport string, server netip.Addr, q *dns.Msg) *dns.Msg {
	t.Helper()
	r, err := b.ask(transport, server, q)
	if err != nil {
		t.Fatalf("%s to %v: %v", transport, server, err)
	}
	return r
}

func addresses(m *dns.Msg) (a []string) {
	for _, rr := range m.Answer {
		if r, ok := rr.(*dns.A); ok {
			a = append(a, r.A.String())
		}
	}
	return a
}

func TestGuestsAreAnsweredByUDPAndTCPOverIPv4AndIPv6(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, transport := range []string{"udp", "tcp"} {
		for _, server := range []netip.Addr{testNetwork.Gateway, testNetwork.GatewayIPv6()} {
			r := b.mustAsk(t, transport, server, question("web.vm.internal.", dns.TypeA))
			if !slices.Equal(addresses(r), []string{"192.168.77.9"}) {
				t.Errorf("%s to %v: %v", transport, server, r)
			}
			r = b.mustAsk(t, transport, server, question("www.example.com.", dns.TypeA))
			if !slices.Equal(addresses(r), []string{"203.0.113.5"}) || !r.RecursionAvailable {
				t.Errorf("%s to %v: %v", transport, server, r)
			}
		}
	}
	r := b.mustAsk(t, "udp", testNetwork.Gateway, question("broken.vm.internal.", dns.TypeA))
	if r.Rcode != dns.RcodeServerFailure {
		t.Errorf("a name with a failing lookup: %v", r)
	}
}

func TestForwardedAnswersAreCachedVerifiedAndTruncated(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ask := func(transport, name string) *dns.Msg {
		t.Helper()
		return b.mustAsk(t, transport, testNetwork.Gateway, question(name, dns.TypeA))
	}
	asked := func() int64 { return b.up.queries.Swap(0) }
	for range 3 {
		ask("udp", "www.example.com.")
		ask("udp", "WWW.example.com.")
	}
	if n, hits := asked(), b.cached(func(c *cache) int { return c.hits }); n != 1 || hits != 5 {
		t.Errorf("the resolver got %d queries and the cache answered %d, want 1 and 5", n, hits)
	}
	for range 2 {
		if r := ask("udp", "none.example.com."); r.Rcode != dns.RcodeNameError || len(r.Ns) != 1 {
			t.Errorf("a name that does not exist: %v", r)
		}
	}
	if n := asked(); n != 1 {
		t.Errorf("the resolver got %d queries for a name that does not exist, want 1", n)
	}
	if r := ask("udp", "forged.example.com."); !slices.Equal(addresses(r), []string{"203.0.113.5"}) {
		t.Errorf("with forged answers: %v", r)
	}
	if r := ask("udp", "big.example.com."); !r.Truncated || b.up.streams.Load() != 1 {
		t.Errorf("a long answer by UDP: %d records, %d TCP queries", len(r.Answer), b.up.streams.Load())
	}
	if r := ask("tcp", "big.example.com."); r.Truncated || len(r.Answer) != 100 {
		t.Errorf("a long answer by TCP: %d records", len(r.Answer))
	}
	asked()
	q := question("www.example.org.", dns.TypeA)
	q.RecursionDesired = false
	if r := b.mustAsk(t, "udp", testNetwork.Gateway, q); r.Rcode != dns.RcodeRefused || asked() != 0 {
		t.Errorf("a query without recursion: %v", r)
	}
}

func TestClientsOutsideTheNetworkAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	stranger := netip.MustParsePrefix("198.51.100.9/24")
	b.link.GiveGuest(t, stranger)
	err := b.link.Host(func() error { return linktest.AddRoute(linktest.HostInterface, stranger.Masked()) })
	if err != nil {
		t.Fatal(err)
	}
	for _, transport := range []string{"udp", "tcp"} {
		err := b.link.Guest(func() error {
			dialer := &net.Dialer{LocalAddr: &net.UDPAddr{IP: stranger.Addr().AsSlice()}}
			if transport == "tcp" {
				dialer.LocalAddr = &net.TCPAddr{IP: stranger.Addr().AsSlice()}
			}
			c := dns.Client{Net: transport, Dialer: dialer, Timeout: 5 * time.Second}
			r, _, err := c.Exchange(question("www.example.com.", dns.TypeA), "192.168.77.1:53")
			switch {
			case transport == "udp" && (err != nil || r.Rcode != dns.RcodeRefused):
				return fmt.Errorf("answer %v, %v", r, err)
			case transport == "tcp" && err == nil:
				return fmt.Errorf("answer %v", r)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", transport, err)
		}
	}
	if n := b.up.queries.Load(); n != 0 {
		t.Errorf("the resolver got %d queries, want none", n)
	}
}

// TestAFloodOfQueriesChangesNothing measures the heap, so it must not run in parallel.
func TestAFloodOfQueriesChangesNothing(t *testing.T) {
	b := newBench(t)
	before := heap()
	const packets = 100_000
	if err := b.link.Guest(func() error { return flood(packets) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a guest gets an answer", func() bool {
		r, err := b.ask("tcp", testNetwork.Gateway, question("web.vm.internal.", dns.TypeA))
		return err == nil && len(r.Answer) == 1
	})
	grown := heap() - before
	t.Logf("after %d packets: heap %+d KiB, %d queries to the resolver, %d cache entries, %d bytes of log",
		packets, grown>>10, b.up.queries.Load(), b.cached(func(c *cache) int { return len(c.entries) }),
		len(b.log.String()))
	if grown > 16<<20 {
		t.Errorf("the heap has grown by %d bytes, want at most 16 MiB", grown)
	}
	if n := strings.Count(b.log.String(), "\n"); n > 30 {
		t.Errorf("%d lines in the log, want at most 30", n)
	}
	if err := b.Err(); err != nil {
		t.Error(err)
	}
}

// flood sends packets to the server: a third noise, a third queries with one wrong byte, a
// third good queries for unknown names.
func flood(packets int) error {
	conn, err := net.Dial("udp", "192.168.77.1:53")
	if err != nil {
		return err
	}
	defer conn.Close()
	random := rand.New(rand.NewPCG(1, 2))
	for i := range packets {
		var b []byte
		if i%3 == 0 {
			b = make([]byte, random.IntN(1400))
			for j := range b {
				b[j] = byte(random.Uint32())
			}
		} else if b, err = question(fmt.Sprintf("n%d.example.com.", i), dns.TypeA).Pack(); err != nil {
			return err
		} else if i%3 == 1 {
			b[random.IntN(len(b))] = byte(random.Uint32())
		}
		if _, err := conn.Write(b); err != nil && !errors.Is(err, unix.ENOBUFS) {
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

// eventually waits for a condition, for at most 20 s.
func eventually(t testing.TB, condition string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", condition)
		}
	}
}

func TestTCPConnectionsOfOneGuestAreLimited(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range 2 * maxStreamsClient {
		err := b.link.Guest(func() error {
			c, err := net.Dial("tcp", "192.168.77.1:53")
			if err == nil {
				conns = append(conns, c)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var refused atomic.Int64
	var reading sync.WaitGroup
	for _, c := range conns {
		reading.Go(func() {
			c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				refused.Add(1)
			}
		})
	}
	reading.Wait()
	if n := refused.Load(); n != maxStreamsClient {
		t.Errorf("%d of %d connections were closed, want %d", n, len(conns), maxStreamsClient)
	}
}

func TestUpstreamsAreThoseOfTheFileWithoutTheServerItself(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u := &upstreams{file: file}
	now := time.Now()
	servers := func(want ...string) (changed bool) {
		t.Helper()
		now = now.Add(checkEvery)
		got, changed := u.list(now, testNetwork.Gateway, testNetwork.GatewayIPv6())
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("servers %v, want %v", got, want)
		}
		return changed
	}
	servers()
	write("# comment\nnameserver 127.0.0.53\nnameserver 192.168.77.1\noptions edns0\n" +
		"nameserver nonsense\nnameserver fe80::1%eth0\n")
	servers("127.0.0.53:53", "[fe80::1%eth0]:53")
	u.answered(netip.MustParseAddrPort("[fe80::1%eth0]:53"))
	servers("[fe80::1%eth0]:53", "127.0.0.53:53")
	write("nameserver 9.9.9.9\n")
	if !servers("9.9.9.9:53") {
		t.Error("the change was not reported")
	}
	if servers("9.9.9.9:53") {
		t.Error("the change was reported twice")
	}
}

func TestErrReportsTheEndOfAServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.Err(); err != nil {
		t.Fatal(err)
	}
	b.link.Cut(t)
	if b.Err() == nil {
		t.Error("no error although the interface is gone")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

func TestAllLinkLocalAddressesShareOneLimit(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"fe80::1234", "fe80::5678", true}, {"fe80::1234", "fd00:77::1234", false},
		{"192.168.77.2", "192.168.77.3", false}, {"192.168.77.2", "192.168.77.2", true},
	} {
		a, b := limitKey(netip.MustParseAddr(c.a)), limitKey(netip.MustParseAddr(c.b))
		if got := a == b; got != c.same {
			t.Errorf("%s and %s share a limit: %v, want %v", c.a, c.b, got, c.same)
		}
	}
}
