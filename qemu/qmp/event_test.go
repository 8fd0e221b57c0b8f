package qmp_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
)

// number is the data of a numbered event.
func number(n int) map[string]any { return map[string]any{"n": n} }

// ping runs a command. When it returns, all earlier messages of the server were read.
func ping(t *testing.T, c *qmp.Conn) {
	t.Helper()
	if err := c.Execute(patient(t), "ping", nil, nil); err != nil {
		t.Fatal(err)
	}
}

// collect reads the events that are queued and returns their numbers.
func collect(s *qmp.Subscription) (numbers []int) {
	for {
		select {
		case e, ok := <-s.C():
			if !ok {
				return numbers
			}
			n, _ := e.Data["n"].(float64)
			numbers = append(numbers, int(n))
		default:
			return numbers
		}
	}
}

func TestEventsBeforeTheFirstSubscriptionAreKept(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		sent, buffer, kept int
		lost               uint64
	}{
		"in the requested buffer":           {3, 16, 3, 0},
		"in a larger buffer than requested": {3, 0, 3, 0},
		"up to the capacity of the backlog": {70, 16, 64, 6},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := scripted(t, func(p *qmptest.Peer) {
				for n := range tt.sent {
					p.Event("E", number(n))
				}
				p.Reply(p.Expect("ping"), nil)
			})
			ping(t, c)
			sub, second := c.Subscribe(tt.buffer), c.Subscribe(tt.buffer)
			got := collect(sub)
			if len(got) != tt.kept || !slices.IsSorted(got) || sub.Lost() != tt.lost {
				t.Errorf("got events %v, want the first %d, and %d lost", got, tt.kept, tt.lost)
			}
			if got := collect(second); len(got) != 0 || second.Lost() != 0 {
				t.Errorf("the second subscription begins with %v, want no event", got)
			}
		})
	}
}

func TestAFullSubscriptionCountsLostEvents(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		for range 2 {
			cmd := p.Expect("ping")
			for n := range 10 {
				p.Event("E", number(n))
			}
			p.Reply(cmd, nil)
		}
		p.Event("E", number(10))
	})
	slow, fast := c.Subscribe(4), c.Subscribe(100)
	ping(t, c) // the reply comes although slow is full
	if got := collect(slow); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("the full queue has %v, want the first four", got)
	}
	if n := slow.Lost(); n != 6 {
		t.Errorf("%d lost, want 6", n)
	}
	if n := slow.Lost(); n != 0 {
		t.Errorf("%d lost at the second call, want 0", n)
	}
	if got := collect(fast); len(got) != 10 || fast.Lost() != 0 {
		t.Errorf("the large queue has %v, want all ten", got)
	}
	ping(t, c)
	slow.Close()
	slow.Close()
	for range 11 { // the eleventh event must not reach the closed queue
		<-fast.C()
	}
	if got := collect(slow); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("the closed queue has %v, want the four events before Close", got)
	}
}

func TestSubscriptionEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		p.Expect("ping")
		p.Event("E", number(1))
		p.Close()
	})
	early := c.Subscribe(4)
	if err := c.Execute(patient(t), "ping", nil, nil); err == nil {
		t.Error("ping was answered")
	}
	var got int
	for range early.C() { // until the channel is closed
		got++
	}
	if got != 1 {
		t.Errorf("%d events, want 1", got)
	}
	if _, ok := <-c.Subscribe(4).C(); ok {
		t.Error("an event from a connection that has ended")
	}
	early.Close()
}

func TestASubscriptionAfterTheEndHasTheBacklog(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		p.Event("SHUTDOWN", nil)
		p.Close()
	})
	wait(t, c.Done(), "the end of the connection")
	sub := c.Subscribe(1)
	if e := <-sub.C(); e.Event != "SHUTDOWN" {
		t.Errorf("got %+v, want SHUTDOWN", e)
	}
	if _, ok := <-sub.C(); ok {
		t.Error("a second event")
	}
}

// deleted matches DEVICE_DELETED of the device with an id.
func deleted(id string) func(qmp.Event) bool {
	return func(e qmp.Event) bool { return e.Event == "DEVICE_DELETED" && e.Data["device"] == id }
}

func TestAnExpectedEventIsNotMissedInAFlood(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		cmd := p.Expect("device_del")
		for n := range 500 {
			p.Event("E", number(n))
		}
		p.Event("DEVICE_DELETED", map[string]string{"path": "/machine/peripheral/disk0/virtio-backend"})
		p.Event("DEVICE_DELETED", map[string]string{"device": "disk1", "path": "/machine/peripheral/disk1"})
		p.Event("DEVICE_DELETED", map[string]string{"device": "disk0", "path": "first"})
		p.Event("DEVICE_DELETED", map[string]string{"device": "disk0", "path": "second"})
		p.Reply(cmd, nil)
	})
	sub := c.Subscribe(1)
	gone, other := c.Expect(deleted("disk0")), c.Expect(deleted("disk7"))
	defer gone.Cancel()
	defer other.Cancel()
	if err := c.Execute(patient(t), "device_del", map[string]string{"id": "disk0"}, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		e, err := gone.Wait(patient(t))
		if err != nil || e.Data["path"] != "first" {
			t.Errorf("Wait = %+v, %v; want the first event of disk0", e, err)
		}
	}
	if _, err := other.Wait(soon(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an event that does not come: error %v, want that of the deadline", err)
	}
	if sub.Lost() == 0 {
		t.Error("the subscription lost no event, so there was no flood")
	}
}

func TestExpectationEndsWithTheConnection(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		p.Event("SHUTDOWN", nil)
		p.Expect("quit")
		p.Close()
	})
	never := c.Expect(deleted("disk0"))
	defer never.Cancel()
	waited := make(chan error)
	go func() {
		_, err := never.Wait(patient(t))
		waited <- err
	}()
	if err := c.Execute(patient(t), "quit", nil, nil); !errors.Is(err, qmp.ErrUnknownOutcome) {
		t.Errorf("quit: error %v, want ErrUnknownOutcome", err)
	}
	if err := <-waited; !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("Wait: error %v, want ErrClosed", err)
	}
	if _, err := c.Expect(deleted("disk0")).Wait(patient(t)); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("Expect after the end: error %v, want ErrClosed", err)
	}
}

func TestAnEventBeforeTheEndIsDelivered(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		p.Expect("quit")
		p.Event("SHUTDOWN", nil)
		p.Close()
	})
	ended, end := context.WithCancel(context.Background())
	end()
	x := c.Expect(func(e qmp.Event) bool { return e.Event == "SHUTDOWN" })
	if err := c.Execute(patient(t), "quit", nil, nil); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("quit: error %v, want ErrClosed", err)
	}
	for range 20 { // select picks at random
		if _, err := x.Wait(ended); err != nil {
			t.Errorf("Wait: %v, want the event", err)
		}
	}
}

func TestCancelledExpectationIsNotMet(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		cmd := p.Expect("ping")
		p.Event("E", number(1))
		p.Reply(cmd, nil)
	})
	x := c.Expect(func(qmp.Event) bool {
		t.Error("match is called after Cancel")
		return true
	})
	x.Cancel()
	x.Cancel()
	ping(t, c)
	if _, err := x.Wait(soon(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the deadline", err)
	}
}

func TestEveryExpectationGetsItsEvent(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) {
		cmd := p.Expect("ping")
		for n := range 50 {
			p.Event("DEVICE_DELETED", map[string]string{"device": fmt.Sprint("disk", n)})
		}
		p.Reply(cmd, nil)
	})
	all := make(map[string]*qmp.Expectation)
	for n := range 50 {
		id := fmt.Sprint("disk", n)
		all[id] = c.Expect(deleted(id))
	}
	ping(t, c)
	for id, x := range all {
		if e, err := x.Wait(patient(t)); err != nil || e.Data["device"] != id {
			t.Errorf("%s: %+v, %v", id, e, err)
		}
	}
}
