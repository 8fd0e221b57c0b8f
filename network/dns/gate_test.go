package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func newGate(inTotal, perClient, waitingInTotal, waitingPerClient int) *gate {
	return &gate{
		inTotal: inTotal, perClient: perClient,
		waitingInTotal: waitingInTotal, waitingPerClient: waitingPerClient,
		clients: map[netip.Addr]*queue{},
	}
}

func TestWaitingQueriesOfAllClientsGetTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 2, 100, 100)
		busy, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		var order []netip.Addr
		enter := func(client netip.Addr) {
			place, ok := g.join(client)
			if !ok {
				t.Fatalf("a query of %s does not wait", client)
			}
			go func() {
				defer place.leave()
				if !place.wait(t.Context()) {
					t.Errorf("a query of %s was not admitted", client)
				}
				g.mu.Lock()
				order = append(order, client)
				g.mu.Unlock()
				time.Sleep(time.Second) // of the bubble: the upstream's time
			}()
			synctest.Wait()
		}
		for range 10 {
			enter(busy)
		}
		for range 2 {
			enter(other)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(order) != 12 || g.running != 0 || g.waiting != 0 || len(g.clients) != 0 || len(g.turns) != 0 {
			t.Fatalf("%d of 12 queries were admitted, the gate is %+v", len(order), g)
		}
		if last := slices.Index(order[4:], other); last < 0 && slices.Index(order[:4], other) < 0 {
			t.Errorf("order %v", order)
		}
		if i := lastIndex(order, other); i > 6 {
			t.Errorf("the last query of the client with few was number %d of %v", i, order)
		}
	})
}

func lastIndex(all []netip.Addr, a netip.Addr) int {
	for i := len(all) - 1; i >= 0; i-- {
		if all[i] == a {
			return i
		}
	}
	return -1
}

func TestAQueryThatWaitsTooLongOrFindsNoRoomGivesUp(t *testing.T) {
	g := newGate(1, 1, 2, 1)
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	first, _ := g.join(a)
	second, ok := g.join(a)
	if !ok {
		t.Fatal("a query does not wait")
	}
	if _, ok := g.join(a); ok {
		t.Error("a client has more waiting queries than it may")
	}
	third, ok := g.join(b)
	if !ok {
		t.Fatal("a query of another client does not wait")
	}
	if _, ok := g.join(c); ok {
		t.Error("more queries wait than may")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if second.wait(ctx) {
		t.Error("a query was admitted after its time")
	}
	second.leave()
	first.leave()
	if !third.wait(t.Context()) {
		t.Error("the next query was not admitted")
	}
	third.leave()
	if len(g.clients) != 0 || g.running != 0 || g.waiting != 0 {
		t.Errorf("the gate is %+v", g)
	}
}

func TestAThousandLookupsOfOneGuestAtOnceAreAllAnswered(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.up.delay.Store(int64(20 * time.Millisecond))
	const lookups = 1000
	var conns []net.Conn
	err := b.link.Guest(func() error {
		for i := range lookups {
			c, err := net.Dial("udp", "192.168.77.1:53")
			if err != nil {
				return err
			}
			conns = append(conns, c)
			q, err := question(fmt.Sprintf("n%d.example.com.", i), dns.TypeA).Pack()
			if err != nil {
				return err
			}
			if _, err := c.Write(q); err != nil {
				return err
			}
		}
		return nil
	})
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]int{}
	deadline := time.Now().Add(10 * time.Second)
	for _, c := range conns {
		buffer := make([]byte, 512)
		c.SetReadDeadline(deadline)
		n, err := c.Read(buffer)
		m := new(dns.Msg)
		if err != nil || m.Unpack(buffer[:n]) != nil {
			codes["no answer"]++
			continue
		}
		codes[dns.RcodeToString[m.Rcode]]++
	}
	if codes["NOERROR"] != lookups {
		t.Errorf("%d lookups at once: %v", lookups, codes)
	}
	if clients, total := b.LimitedSince(time.Time{}); total != 0 {
		t.Errorf("%d queries met a limit: %v", total, clients)
	}
}

func TestQueriesThatMeetALimitAreCounted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	began := time.Now()
	if err := b.link.Guest(func() error { return flood(20_000) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "queries are counted", func() bool {
		clients, total := b.LimitedSince(began)
		return len(clients) == 1 && clients[0].Client == testLease.IP && clients[0].Count == total && total > 100
	})
	if clients, _ := b.LimitedSince(time.Now().Add(time.Hour)); len(clients) != 0 {
		t.Errorf("clients that met no limit since: %v", clients)
	}
	l := limited{clients: map[netip.Addr]Limited{}}
	a := netip.MustParseAddr("10.0.0.0")
	for range 10_000 {
		a = a.Next()
		l.note(a, time.Now())
	}
	if len(l.clients) != maxLimited || l.total != 10_000 {
		t.Errorf("%d clients and %d queries are counted, want %d and 10000", len(l.clients), l.total, maxLimited)
	}
}
