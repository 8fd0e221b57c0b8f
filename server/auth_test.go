package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

func TestTokensAreLongUniqueAndHashed(t *testing.T) {
	t.Parallel()
	one, hash := NewToken()
	other, _ := NewToken()
	if len(one) != 43 || one == other || hash == [32]byte{} {
		t.Errorf("%q, %q, %x", one, other, hash)
	}
}

func TestTCPNeedsAValidToken(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	tests := map[string]struct {
		authorization string
		status        int
	}{
		"none":             {"", 401},
		"right":            {"Bearer " + a.token, 200},
		"right, lowercase": {"bearer  " + a.token, 200},
		"wrong":            {"Bearer " + strings.Repeat("x", 43), 401},
		"truncated":        {"Bearer " + a.token[:42], 401},
		"longer":           {"Bearer " + a.token + "x", 401},
		"empty":            {"Bearer ", 401},
		"no scheme":        {a.token, 401},
		"another scheme":   {"Basic " + a.token, 401},
		"enormous":         {"Bearer " + strings.Repeat("x", 20000), 401},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := a.want(t, test.status, "GET", "/vms", "", "Authorization", "", "Authorization", test.authorization)
			if test.status == 401 &&
				(r.problem(t).Code != "unauthorized" || r.Header.Get("WWW-Authenticate") != `Bearer realm="vmand"`) {
				t.Errorf("WWW-Authenticate %q, body %s", r.Header.Get("WWW-Authenticate"), r.body)
			}
		})
	}
	a.want(t, 401, "GET", "/vms", "", "Authorization", "Basic x") // two headers
	a.want(t, 401, "GET", "/nowhere", "", "Authorization", "")
	a.want(t, 401, "PUT", "/vms", "", "Authorization", "")
	if strings.Contains(a.log.String(), a.token) || strings.Contains(a.log.String(), a.token[:42]) {
		t.Error("the log contains the token")
	}
}

func TestSomePathsNeedNoToken(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, path := range []string{"/health", "/openapi.yaml", "/openapi.json", "/docs"} {
		a.want(t, 200, "GET", path, "", "Authorization", "")
	}
}

func TestTokensAreReloaded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	secret, hash := NewToken()
	if err := a.store.PutToken(t.Context(), vm.Token{Name: "admin", Role: vm.RoleAdmin, Hash: hash}); err != nil {
		t.Fatal(err)
	}
	a.want(t, 200, "GET", "/vms", "")
	if err := a.ReloadTokens(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.want(t, 401, "GET", "/vms", "")
	a.token = secret
	a.want(t, 200, "GET", "/vms", "")
}

type brokenTokens struct{ vm.TokenStore }

func (brokenTokens) Tokens(context.Context) ([]vm.Token, error) {
	return nil, errors.New("no such table")
}

func TestAServerThatCannotLoadItsTokensDoesNotStart(t *testing.T) {
	t.Parallel()
	if _, err := New(t.Context(), Options{}, Deps{Tokens: brokenTokens{}}); err == nil ||
		!strings.Contains(err.Error(), "no such table") {
		t.Errorf("got %v", err)
	}
}

// unixClient returns a client for a unix socket that the api listens on.
func (a *api) unixClient(t *testing.T, group string) *http.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := ListenUnix(path, group)
	if err != nil {
		t.Fatal(err)
	}
	a.serve(t, l)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestTheUnixSocketIdentifiesItsCaller(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	client := a.unixClient(t, "")
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://any.name.at.all/templates",
		strings.NewReader(smallTemplate))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Origin", "http://elsewhere")
	if resp := send(t, client, r); resp.StatusCode != 201 {
		t.Fatalf("status %d: %s", resp.StatusCode, resp.body)
	}
	if want := `"caller":"uid:` + strconv.Itoa(os.Getuid()) + `"`; !strings.Contains(a.log.String(), want) {
		t.Errorf("the log does not contain %s: %s", want, a.log)
	}
}

func TestTheUnixSocketIsForRootTheOwnerAndTheGroup(t *testing.T) {
	t.Parallel()
	self := os.Geteuid()
	const nobody = 65534
	tests := map[string]struct {
		group string
		peer  unix.Ucred
		want  bool
	}{
		"root":                       {"", unix.Ucred{Uid: 0, Gid: nobody}, true},
		"the daemon's own user":      {"", unix.Ucred{Uid: uint32(self), Gid: nobody}, true},
		"another user":               {"", unix.Ucred{Uid: nobody, Gid: nobody}, false},
		"a member by gid":            {"4242", unix.Ucred{Uid: nobody, Gid: 4242}, true},
		"not a member":               {"4242", unix.Ucred{Uid: nobody, Gid: nobody}, false},
		"a member by account":        {"65534", unix.Ucred{Uid: nobody, Gid: 4242}, true},
		"an unknown group":           {"no-such-group", unix.Ucred{Uid: nobody, Gid: nobody}, false},
		"an unknown user":            {"4242", unix.Ucred{Uid: 4242424, Gid: nobody}, false},
		"a group by name":            {"root", unix.Ucred{Uid: nobody, Gid: 0}, true},
		"a group by name, no member": {"root", unix.Ucred{Uid: nobody, Gid: nobody}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a := auth{group: test.group}
			if got := a.allows(&test.peer, nil); got != test.want {
				t.Errorf("got %v", got)
			}
			r, _ := http.NewRequestWithContext(context.WithValue(t.Context(), doorKey{}, &door{peer: &test.peer}),
				"GET", "/", nil)
			_, err := a.authenticate(r)
			if test.want != (err == nil) || err != nil && faultOf(err).Code != codeForbidden {
				t.Errorf("got %v", err)
			}
		})
	}
}

// connectedIn returns one end of a unix socket that a thread with these supplementary
// groups connected, and the actual groups of the thread: they differ if this process
// may not change its groups.
func connectedIn(t *testing.T, groups []int) (c *net.UnixConn, in []int) {
	t.Helper()
	type end struct {
		fds [2]int
		in  []int
		err error
	}
	made := make(chan end)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, so its groups affect nothing else
		var e end
		if err := unix.Setgroups(groups); err != nil && !errors.Is(err, unix.EPERM) {
			e.err = err
		}
		var err error
		e.in, err = unix.Getgroups()
		e.err = errors.Join(e.err, err)
		e.fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		e.err = errors.Join(e.err, err)
		made <- e
	}()
	e := <-made
	if e.err != nil {
		t.Fatal(e.err)
	}
	var conns [2]net.Conn
	for i, fd := range e.fds {
		f := os.NewFile(uintptr(fd), "socket")
		var err error
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0].(*net.UnixConn), e.in
}

func TestAMemberNeedsNoEntryInTheGroupFile(t *testing.T) {
	t.Parallel()
	many := make([]int, 1000)
	for i := range many {
		many[i] = 70_000 + i
	}
	tests := map[string][]int{
		"none":                       {},
		"few":                        {0, 70_001, 4242},
		"more than the first buffer": many,
	}
	for name, groups := range tests {
		t.Run(name, func(t *testing.T) {
			c, in := connectedIn(t, groups)
			peer, got, err := peerOf(c)
			if err != nil || int(peer.Uid) != os.Geteuid() || len(got) != len(in) {
				t.Fatalf("%+v has %d groups, %v; want %d", peer, len(got), err, len(in))
			}
			stranger := &unix.Ucred{Uid: 4242424, Gid: 65534}
			for _, gid := range in {
				a := auth{group: strconv.Itoa(gid)}
				if !a.allows(stranger, got) {
					t.Errorf("a process in group %d is rejected", gid)
				}
			}
			if a := (auth{group: "424242"}); a.allows(stranger, got) {
				t.Error("a process outside of the group is allowed")
			}
			ctx := enter(t.Context(), c)
			if d := ctx.Value(doorKey{}).(*door); len(d.groups) != len(in) {
				t.Errorf("the door has %d groups; want %d", len(d.groups), len(in))
			}
		})
	}
}

func TestAPeerThatCannotBeIdentifiedIsRejected(t *testing.T) {
	t.Parallel()
	r, _ := http.NewRequestWithContext(context.WithValue(t.Context(), doorKey{},
		&door{err: errors.New("no credentials")}), "GET", "/", nil)
	if _, err := new(auth).authenticate(r); err == nil {
		t.Error("the peer is allowed")
	}
}

func TestOnlyNamesOfThisServerAreServed(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.o.Hosts = []string{"VMs.example.org"} })
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for host, status := range map[string]int{
		"127.0.0.1":                   200,
		"127.0.0.1:8000":              200,
		"[::1]:8000":                  200,
		"[::1]":                       200,
		"localhost":                   200,
		"LOCALHOST.:80":               200,
		own:                           200,
		"vms.example.org":             200,
		"vms.example.org:443":         200,
		"evil.example":                403,
		"localhost.evil.example":      403,
		"127.0.0.1.evil.example:8000": 403,
		"xvms.example.org":            403,
	} {
		for _, path := range []string{"/vms", "/health"} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", a.base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			r.Header.Set("Authorization", "Bearer "+a.token)
			if resp := send(t, http.DefaultClient, r); resp.StatusCode != status {
				t.Errorf("%s of %s: status %d, want %d", path, host, resp.StatusCode, status)
			}
		}
	}
}

func TestCrossOriginChangesAreRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for origin, status := range map[string]int{"http://evil.example": 403, "null": 403, a.base: 201} {
		a.want(t, status, "POST", "/templates", smallTemplate, "Origin", origin)
		a.want(t, 200, "GET", "/templates", "", "Origin", origin)
	}
	a.want(t, 403, "DELETE", "/templates/small", "", "Sec-Fetch-Site", "cross-site")
	a.want(t, 204, "DELETE", "/templates/small", "", "Sec-Fetch-Site", "same-origin")
}
