package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"vmand/vm"
)

// someVM returns a typical running VM.
func someVM(seq int64) vm.VM {
	at := time.Date(2026, 3, 1, 9, 4, 59, 802e6, time.UTC)
	return vm.VM{Seq: seq, ID: fmt.Sprintf("web-%d", seq), UUID: "0d8f7a52-7c33-4d6b-8f6a-2f1f3f10aa01",
		Template: vm.Template{Name: "small", CPUCount: 2, RAMMiB: 2048}, State: vm.Running, Reason: vm.ReasonRequested,
		Desired: vm.DesiredRunning, Root: vm.DiskFile{SizeMiB: 10240}, Machine: "pc-q35-7.2", Accel: vm.KVM,
		CreatedAt: at, UpdatedAt: at, StartedAt: at, Revision: 3, Restart: vm.RestartNever,
		NICs: []vm.NIC{{Network: vm.DefaultNetwork, Mode: vm.NetworkNAT, MAC: "52:a1:0c:7e:43:19", Model: vm.NICVirtio,
			IP: netip.AddrFrom4([4]byte{192, 168, byte(seq >> 8), byte(seq)}), State: vm.NICAttached}},
		Boot: vm.Boot{Spawned: at, Monitor: at, Serial: at, DHCP: at}}
}

type oneToken struct {
	vm.TokenStore
	hash [32]byte
}

func (o oneToken) Tokens(context.Context) ([]vm.Token, error) {
	return []vm.Token{{Name: "admin", Role: vm.RoleAdmin, Hash: o.hash}}, nil
}

// agents are guests with agents that answer.
type agents struct{ Guests }

func (agents) Agent(string) vm.Agent { return someAgent }

// benchServer returns a server with records in memory and a log that is encoded and
// discarded. It also returns a token.
func benchServer(b *testing.B) (*Server, string) {
	secret, hash := NewToken()
	log := slog.New(slog.NewJSONHandler(io.Discard, nil))
	s, err := New(b.Context(), Options{Version: "1.2.3"}, Deps{Services: Services{Guests: agents{}}, Reader: manyVMs{n: 10000}, Tokens: oneToken{hash: hash}, Log: log})
	if err != nil {
		b.Fatal(err)
	}
	return s, secret
}

// null is a response writer that discards the body.
type null struct {
	header http.Header
	status int
	n      int
}

func (n *null) Header() http.Header         { return n.header }
func (n *null) WriteHeader(status int)      { n.status = status }
func (n *null) Write(b []byte) (int, error) { n.n += len(b); return len(b), nil }

func benchmark(b *testing.B, h http.Handler, path, token string) {
	r := httptest.NewRequest("GET", path, nil)
	r.Host = "127.0.0.1:8000"
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("User-Agent", "bench")
	r.Header.Set("Accept", "*/*")
	w := &null{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
	if w.status != 200 {
		b.Fatalf("status %d", w.status)
	}
}

func BenchmarkGetVM(b *testing.B) {
	s, token := benchServer(b)
	benchmark(b, s, "/vms/web-1", token)
}

func BenchmarkListVMs(b *testing.B) {
	s, token := benchServer(b)
	benchmark(b, s, "/vms?limit=100", token)
}

// BenchmarkBareEcho is the reference for BenchmarkGetVM: a constant of the same size.
func BenchmarkBareEcho(b *testing.B) {
	e := echo.New()
	v := someVM(1)
	body, err := json.Marshal(apiVM(&v))
	if err != nil {
		b.Fatal(err)
	}
	e.GET("/vms/:id", func(c echo.Context) error { return c.JSONBlob(200, body) })
	benchmark(b, e, "/vms/web-1", "")
}

// BenchmarkEncodeVMs is the reference for BenchmarkListVMs: encoding/json for the same
// objects.
func BenchmarkEncodeVMs(b *testing.B) {
	var vms []any
	for i := range int64(100) {
		v := someVM(i)
		vms = append(vms, apiVM(&v))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(vms); err != nil {
			b.Fatal(err)
		}
	}
}
