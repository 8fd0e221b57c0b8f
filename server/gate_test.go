package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// closesIt reports whether the server closes c before the deadline of c.
func closesIt(c net.Conn) bool {
	_, err := io.Copy(io.Discard, c)
	return !errors.Is(err, context.DeadlineExceeded) && (err == nil || !strings.Contains(err.Error(), "timeout"))
}

// askHealth sends a request without credentials on c and reads the answer.
func askHealth(t *testing.T, c net.Conn) error {
	t.Helper()
	if _, err := fmt.Fprint(c, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func TestIdleStrangersCannotKeepAClientWithCredentialsOut(t *testing.T) {
	t.Parallel()
	limits := connectionLimits{all: 40, peer: 40, strangers: 20, peerStrangers: 10, strangerIdle: time.Hour}
	a := newAPI(t, func(f *fixture) { f.tune = func(s *Server) { s.limits = limits } })
	a.want(t, 200, "GET", "/vms", "") // its connection stays open
	var idle []net.Conn
	for range 200 {
		c := a.dial(t)
		_ = askHealth(t, c) // fails on a connection that was replaced
		idle = append(idle, c)
	}
	a.want(t, 200, "GET", "/vms", "")
	for _, c := range idle[:100] {
		if !closesIt(c) {
			t.Fatal("an old connection without credentials is open")
		}
	}
	if err := askHealth(t, idle[199]); err != nil {
		t.Errorf("the last connection: %v", err)
	}
}

func TestAStrangerIsIdleForSecondsAndAClientWithCredentialsLonger(t *testing.T) {
	t.Parallel()
	limits := defaultLimits()
	limits.strangerIdle = 100 * time.Millisecond
	a := newAPI(t, func(f *fixture) { f.tune = func(s *Server) { s.limits = limits } })
	stranger, client := a.dial(t), a.dial(t)
	fmt.Fprint(client, a.head("GET /vms")+"\r\n")
	reader := bufio.NewReader(client)
	for range 2 {
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if stranger == nil {
			break
		}
		if err := askHealth(t, stranger); err != nil {
			t.Fatal(err)
		}
		if !closesIt(stranger) { // waits longer than a stranger may be idle
			t.Fatal("an idle connection without credentials is not closed")
		}
		stranger = nil
		fmt.Fprint(client, a.head("GET /vms")+"\r\n")
	}
	silent := a.dial(t)
	if !closesIt(silent) {
		t.Error("a connection without a request is not closed")
	}
}

func TestTheNumberOfConnectionsIsLimitedInAllAndPerAddress(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]connectionLimits{
		"in all":      {all: 5, peer: 100, strangers: 100, peerStrangers: 100, strangerIdle: time.Hour},
		"per address": {all: 100, peer: 5, strangers: 100, peerStrangers: 100, strangerIdle: time.Hour},
	} {
		a := newAPI(t, func(f *fixture) { f.tune = func(s *Server) { s.limits = limits } })
		var held []net.Conn
		for range 5 {
			c := a.dial(t)
			if err := askHealth(t, c); err != nil {
				t.Fatal(err)
			}
			held = append(held, c)
		}
		if !closesIt(a.dial(t)) {
			t.Errorf("%s: one more connection is accepted", name)
		}
		held[0].Close()
		for askHealth(t, a.dial(t)) != nil {
			if t.Context().Err() != nil {
				t.Fatalf("%s: no connection is accepted after the end of another", name)
			}
		}
		if !strings.Contains(a.log.String(), "connections are refused") {
			t.Errorf("%s: nothing is logged", name)
		}
	}
}

func TestTheUnixSocketAnswersWhenTheTCPAddressIsFull(t *testing.T) {
	t.Parallel()
	limits := connectionLimits{all: 5, peer: 5, strangers: 5, peerStrangers: 5, strangerIdle: time.Hour}
	a := newAPI(t, func(f *fixture) { f.tune = func(s *Server) { s.limits = limits } })
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, "")
	if err != nil {
		t.Fatal(err)
	}
	a.serve(t, l)
	for range 100 {
		a.dial(t)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := askHealth(t, c); err != nil {
		t.Error(err)
	}
}

func TestAConnectionOfAGuestIsClosed(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) {
		f.o.Guest = func(peer, _ netip.AddrPort) bool { return peer.Addr().IsLoopback() }
	})
	if !closesIt(a.dial(t)) {
		t.Error("it is open")
	}
}
