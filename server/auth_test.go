package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

func TestTokensAreLongDifferentAndHashed(t *testing.T) {
	one, hash := NewToken()
	other, _ := NewToken()
	if len(one) != 43 || one == other || hash == [32]byte{} {
		t.Errorf("%q, %q, %x", one, other, hash)
	}
}

func TestTCPWantsARightToken(t *testing.T) {
	a := newAPI(t)
	tests := map[string]struct {
		authorization string
		status        int
	}{
		"none":             {"", 401},
		"right":            {"Bearer " + a.token, 200},
		"right, lowercase": {"bearer  " + a.token, 200},
		"wrong":            {"Bearer " + strings.Repeat("x", 43), 401},
		"cut short":        {"Bearer " + a.token[:42], 401},
		"longer":           {"Bearer " + a.token + "x", 401},
		"empty":            {"Bearer ", 401},
		"no scheme":        {a.token, 401},
		"another scheme":   {"Basic " + a.token, 401},
		"enormous":         {"Bearer " + strings.Repeat("x", 20000), 401},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := a.want(t, test.status, "GET", "/vms", "", "Authorization", "", "Authorization", test.authorization)
			if test.status == 401 && (r.problem(t).Code != "unauthorized" || r.Header.Get("WWW-Authenticate") != `Bearer realm="vmand"`) {
				t.Errorf("WWW-Authenticate %q, body %s", r.Header.Get("WWW-Authenticate"), r.body)
			}
		})
	}
	a.want(t, 401, "GET", "/vms", "", "Authorization", "Basic x") // two headers
	a.want(t, 401, "GET", "/nowhere", "", "Authorization", "")
	a.want(t, 401, "PUT", "/vms", "", "Authorization", "")
	if strings.Contains(a.log.String(), a.token) || strings.Contains(a.log.String(), a.token[:42]) {
		t.Error("the log has the token")
	}
}

func TestSomePathsAreOpenToEverybody(t *testing.T) {
	a := newAPI(t)
	for _, path := range []string{"/health", "/openapi.yaml", "/openapi.json", "/docs"} {
		a.want(t, 200, "GET", path, "", "Authorization", "")
	}
}

func TestTokensAreReloaded(t *testing.T) {
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

func TestAServerWithoutItsTokensDoesNotStart(t *testing.T) {
	if _, err := New(t.Context(), Options{}, Deps{Tokens: brokenTokens{}}); err == nil || !strings.Contains(err.Error(), "no such table") {
		t.Errorf("got %v", err)
	}
}

// unixClient returns a client that calls by a unix socket the api listens on.
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

func TestTheUnixSocketKnowsItsCaller(t *testing.T) {
	a := newAPI(t)
	client := a.unixClient(t, "")
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://any.name.at.all/templates", strings.NewReader(smallTemplate))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Origin", "http://elsewhere")
	if resp := send(t, client, r); resp.StatusCode != 201 {
		t.Fatalf("status %d: %s", resp.StatusCode, resp.body)
	}
	if want := `"caller":"uid:` + strconv.Itoa(os.Getuid()) + `"`; !strings.Contains(a.log.String(), want) {
		t.Errorf("the log has no %s: %s", want, a.log)
	}
}

func TestWhoMayUseTheUnixSocket(t *testing.T) {
	self := os.Geteuid()
	const nobody = 65534
	tests := map[string]struct {
		group string
		peer  unix.Ucred
		want  bool
	}{
		"root":                      {"", unix.Ucred{Uid: 0, Gid: nobody}, true},
		"the daemon's own user":     {"", unix.Ucred{Uid: uint32(self), Gid: nobody}, true},
		"somebody":                  {"", unix.Ucred{Uid: nobody, Gid: nobody}, false},
		"a member by gid":           {"4242", unix.Ucred{Uid: nobody, Gid: 4242}, true},
		"not a member":              {"4242", unix.Ucred{Uid: nobody, Gid: nobody}, false},
		"a member by account":       {"65534", unix.Ucred{Uid: nobody, Gid: 4242}, true},
		"a group that is not there": {"no-such-group", unix.Ucred{Uid: nobody, Gid: nobody}, false},
		"a user that is not there":  {"4242", unix.Ucred{Uid: 4242424, Gid: nobody}, false},
		"a group given by its name": {"root", unix.Ucred{Uid: nobody, Gid: 0}, true},
		"a group's name, no member": {"root", unix.Ucred{Uid: nobody, Gid: nobody}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a := auth{group: test.group}
			if got := a.allows(&test.peer); got != test.want {
				t.Errorf("got %v", got)
			}
			r, _ := http.NewRequestWithContext(context.WithValue(t.Context(), doorKey{}, &door{peer: &test.peer}), "GET", "/", nil)
			_, err := a.authenticate(r)
			if test.want != (err == nil) || err != nil && faultOf(err).Code != codeForbidden {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAPeerThatCannotBeIdentifiedIsNotLetIn(t *testing.T) {
	r, _ := http.NewRequestWithContext(context.WithValue(t.Context(), doorKey{}, &door{err: errors.New("no credentials")}), "GET", "/", nil)
	if _, err := new(auth).authenticate(r); err == nil {
		t.Error("let in")
	}
}

func TestOnlyNamesOfThisServerAreAnswered(t *testing.T) {
	a := newAPI(t, func(f *fixture) { f.o.Hosts = []string{"VMs.example.org"} })
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for host, status := range map[string]int{
		"127.0.0.1": 200, "127.0.0.1:8000": 200, "[::1]:8000": 200, "[::1]": 200, "localhost": 200, "LOCALHOST.:80": 200, own: 200,
		"vms.example.org": 200, "vms.example.org:443": 200,
		"evil.example": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example:8000": 403, "xvms.example.org": 403,
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

func TestPagesOfOtherOriginsChangeNothing(t *testing.T) {
	a := newAPI(t)
	for origin, status := range map[string]int{"http://evil.example": 403, "null": 403, a.base: 201} {
		a.want(t, status, "POST", "/templates", smallTemplate, "Origin", origin)
		a.want(t, 200, "GET", "/templates", "", "Origin", origin)
	}
	a.want(t, 403, "DELETE", "/templates/small", "", "Sec-Fetch-Site", "cross-site")
	a.want(t, 204, "DELETE", "/templates/small", "", "Sec-Fetch-Site", "same-origin")
}
