package image

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func testFetcher(t *testing.T, o FetchOptions) (*Fetcher, string) {
	t.Helper()
	i, dir := testImporter(t, Options{MaxBytes: 64 * mib})
	if o.Backoff == 0 {
		o.Backoff = time.Millisecond
	}
	return NewFetcher(i, o), dir
}

// origin is a server of content that breaks connections.
type origin struct {
	content []byte
	etag    string
	breakAt int64 // of each answer, after so many bytes; 0 for never
	hang    bool  // instead of breaking, send nothing more
	ranges  bool

	mu       sync.Mutex
	requests []string // the ranges asked for
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.requests = append(o.requests, r.Header.Get("Range"))
	content, etag := o.content, o.etag
	o.mu.Unlock()
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	from, total := int64(0), int64(len(content))
	if s, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && o.ranges && r.Header.Get("If-Range") == etag {
		from, _ = strconv.ParseInt(strings.TrimSuffix(s, "-"), 10, 64)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, total-1, total))
	}
	w.Header().Set("Content-Length", strconv.FormatInt(total-from, 10))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	end := total
	if o.breakAt > 0 {
		end = min(total, from+o.breakAt)
	}
	w.Write(content[from:end])
	if end == total {
		return
	}
	w.(http.Flusher).Flush()
	if o.hang {
		<-r.Context().Done()
	}
	panic(http.ErrAbortHandler)
}

func (o *origin) asked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.requests...)
}

func serve(t *testing.T, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestABrokenDownloadIsResumed(t *testing.T) {
	b := noise(4 * mib)
	for name, c := range map[string]struct {
		content []byte
		o       *origin
	}{
		"broken":            {b, &origin{ranges: true, breakAt: 1500 << 10, etag: `"one"`}},
		"broken compressed": {zstded(t, b), &origin{ranges: true, breakAt: 1500 << 10, etag: `"one"`}},
		"stalled":           {b, &origin{ranges: true, breakAt: 1500 << 10, etag: `"one"`, hang: true}},
	} {
		o := c.o
		o.content = c.content
		f, dir := testFetcher(t, FetchOptions{AllowPrivate: loopback, Stall: 300 * time.Millisecond})
		var last, size int64
		got, err := f.Fetch(t.Context(), serve(t, o), Want{Sum: Sum{SHA256: sumOf(o.content)}, Progress: func(done, total int64) { last, size = done, total }})
		if err != nil || got.SHA256 != sumOf(b) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if r := o.asked(); len(r) != 3 || r[0] != "" || r[1] != "bytes=1536000-" || r[2] != "bytes=3072000-" {
			t.Errorf("%s: asked for %q", name, r)
		}
		if last != int64(len(o.content)) || size != last {
			t.Errorf("%s: progress %d of %d", name, last, size)
		}
		wantFiles(t, dir, sumOf(b))
	}
}

func TestADownloadThatCannotBeResumedBeginsAnew(t *testing.T) {
	b := noise(4 * mib)
	for name, c := range map[string]struct {
		o     *origin
		after func(o *origin) // one request
	}{
		"no ranges":       {&origin{etag: `"one"`}, func(o *origin) { o.breakAt = 0 }},
		"no validator":    {&origin{ranges: true}, func(o *origin) { o.breakAt = 0 }},
		"changed content": {&origin{ranges: true, etag: `"one"`}, func(o *origin) { o.content, o.etag, o.breakAt = b, `"two"`, 0 }},
	} {
		o := c.o
		o.content, o.breakAt = b, mib
		if name == "changed content" {
			o.content = bytes.Repeat([]byte("old!"), mib)
		}
		f, dir := testFetcher(t, FetchOptions{AllowPrivate: loopback})
		first := true
		url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			o.mu.Lock()
			if !first {
				c.after(o)
			}
			first = false
			o.mu.Unlock()
			o.ServeHTTP(w, r)
		}))
		got, err := f.Fetch(t.Context(), url, Want{})
		if err != nil || got.SHA256 != sumOf(b) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		wantFiles(t, dir, sumOf(b))
	}
}

func TestADownloadGivesUp(t *testing.T) {
	b := noise(2 * mib)
	for name, c := range map[string]struct {
		h        http.Handler
		sum      Sum
		attempts int
		reason   string
	}{
		"always broken":       {&origin{content: b, ranges: true, etag: `"one"`, breakAt: 1000}, Sum{}, 4, "gave up after 4 attempts"},
		"not there":           {http.NotFoundHandler(), Sum{}, 1, "404"},
		"always busy":         {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }), Sum{}, 4, "503"},
		"another sum":         {&origin{content: b}, Sum{SHA256: sumOf(nil)}, 1, "should be"},
		"too large":           {&origin{content: make([]byte, 65*mib)}, Sum{}, 1, "larger than"},
		"endless headers":     {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }), Sum{}, 4, "header"},
		"a web page":          {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<!DOCTYPE html>")) }), Sum{}, 1, "web page"},
		"a part not asked of": {http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206) }), Sum{}, 1, "206"},
	} {
		f, dir := testFetcher(t, FetchOptions{AllowPrivate: loopback, Attempts: 4})
		var mu sync.Mutex
		n := 0
		_, err := f.Fetch(t.Context(), serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			n++
			mu.Unlock()
			c.h.ServeHTTP(w, r)
		})), Want{Sum: c.sum})
		mu.Lock()
		if err == nil || !strings.Contains(err.Error(), c.reason) || n != c.attempts {
			t.Errorf("%s: %d attempts, %v; want %d, %q", name, n, err, c.attempts, c.reason)
		}
		mu.Unlock()
		wantFiles(t, dir)
	}
}

func TestADownloadIsCancelled(t *testing.T) {
	o := &origin{content: noise(mib), breakAt: 1000, hang: true}
	f, dir := testFetcher(t, FetchOptions{AllowPrivate: loopback})
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := f.Fetch(ctx, serve(t, o), Want{Progress: func(int64, int64) { cancel() }}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wantFiles(t, dir)
}

func TestRedirectsAreFollowedWithCare(t *testing.T) {
	content := goodRaw()
	mux := http.NewServeMux()
	mux.HandleFunc("/image", func(w http.ResponseWriter, _ *http.Request) { w.Write(content) })
	mux.HandleFunc("/hop/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.PathValue("n"))
		to := fmt.Sprintf("/hop/%d", n-1)
		if n == 1 {
			to = "/image"
		}
		http.Redirect(w, r, to, http.StatusFound)
	})
	mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("u"))
		w.WriteHeader(http.StatusMovedPermanently)
	})
	url := serve(t, mux)
	f, _ := testFetcher(t, FetchOptions{AllowPrivate: loopback})
	if c, err := f.Fetch(t.Context(), url+"/hop/10", Want{}); err != nil || c.SHA256 != sumOf(content) {
		t.Errorf("ten redirects: %+v, %v", c, err)
	}
	for _, path := range []string{
		"/hop/11", "/to?u=file:///etc/shadow", "/to?u=ftp://127.0.0.1/", "/to?u=" + strings.Replace(url, "://", "://user:secret@", 1) + "/image",
		"/to?u=http://169.254.169.254/latest/meta-data", "/to?u=http://10.0.0.1/", "/to?u=http://[::1]:1/", "/to?u=http://[::ffff:10.0.0.1]/",
		"/to?u=http://[fe80::1%2525lo]/", "/to?u=http://0.0.0.0:1/", "/to?u=http:///image",
	} {
		start := time.Now()
		_, err := f.Fetch(t.Context(), url+path, Want{})
		if err == nil || !errors.As(err, new(*Refused)) && !strings.Contains(err.Error(), "no Host") {
			t.Errorf("%s: %v", path, err)
		}
		if time.Since(start) > 10*time.Second {
			t.Errorf("%s: %v after %v", path, err, time.Since(start))
		}
	}
}

func TestURLsAreCheckedFirst(t *testing.T) {
	for url, ok := range map[string]bool{
		"https://example.com/a.qcow2?x=y#z": true, "http://example.com": true,
		"": false, "/a": false, "file:///etc/passwd": false, "ftp://example.com/a": false, "https://": false, "https://user@example.com/a": false,
		"https://a:b@example.com/a": false, "http://exa mple.com": false, "http://example.com/\x00": false, "https://example.com/" + strings.Repeat("a", 2048): false,
	} {
		if err := CheckURL(url); (err == nil) != ok || !ok && !errors.As(err, new(*Refused)) {
			t.Errorf("%.60q: %v", url, err)
		}
	}
}

func TestNamesOfThisHostAreRefusedWhenTheyAreConnectedTo(t *testing.T) {
	url := serve(t, &origin{content: goodRaw()})
	f, dir := testFetcher(t, FetchOptions{})
	for _, host := range []string{"127.0.0.1", "localhost", "127.1", "0"} {
		u := strings.Replace(url, "127.0.0.1", host, 1)
		if _, err := f.Fetch(t.Context(), u, Want{}); err == nil || !errors.As(err, new(*Refused)) && !strings.Contains(err.Error(), "lookup") {
			t.Errorf("%s: %v", u, err)
		}
	}
	wantFiles(t, dir)
}

func TestAddressesOutsideThePublicInternetAreRefused(t *testing.T) {
	for address, want := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "2606:4700::1111": true, "2a01:4f8::1": true, "::ffff:8.8.8.8": true, "64:ff9b::8.8.8.8": true, "2002:808:808::1": true,
		"0.0.0.0": false, "10.1.2.3": false, "100.64.0.1": false, "100.127.255.255": false, "127.0.0.1": false, "127.255.0.1": false, "169.254.169.254": false,
		"172.16.0.1": false, "172.31.255.255": false, "192.0.0.1": false, "192.168.0.1": false, "198.18.0.1": false, "224.0.0.1": false, "239.1.1.1": false,
		"255.255.255.255": false, "240.0.0.1": false, "192.0.2.1": false, "198.51.100.1": false, "203.0.113.1": false,
		"::": false, "::1": false, "::127.0.0.1": false, "::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "fe80::1": false, "fe80::1%lo": false, "fc00::1": false,
		"fd00:ec2::254": false, "ff02::1": false, "64:ff9b::10.0.0.1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b:1::1": false, "2002:7f00:1::": false, "2002:a9fe:a9fe::": false,
		"2001:db8::1": false, "2001::1": false, "fec0::1": false, "100::1": false, "4000::1": false,
	} {
		a := netip.MustParseAddr(address)
		if got := public(a, nil); got != want {
			t.Errorf("%s: public %v", address, got)
		}
		network := map[bool]string{true: "tcp6", false: "tcp4"}[a.Is6()]
		if err := control(nil)(network, netip.AddrPortFrom(a, 80).String(), nil); (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
		if !public(a.WithZone(""), prefixes("0.0.0.0/0", "::/0")) {
			t.Errorf("%s is refused, though everything is allowed", address)
		}
	}
	if !public(netip.MustParseAddr("::ffff:10.0.0.1"), prefixes("10.0.0.0/8")) || public(netip.MustParseAddr("10.0.0.1"), prefixes("10.1.0.0/16")) {
		t.Error("what is allowed is not what was said")
	}
}

func TestCertificatesAreVerifiedAndProxiesNotUsed(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	s := httptest.NewUnstartedServer(&origin{content: goodRaw()})
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	f, _ := testFetcher(t, FetchOptions{AllowPrivate: loopback})
	if _, err := f.Fetch(t.Context(), s.URL, Want{}); err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "attempts") {
		t.Errorf("an unknown authority: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	f, _ = testFetcher(t, FetchOptions{AllowPrivate: loopback, RootCAs: roots})
	if _, err := f.Fetch(t.Context(), s.URL, Want{}); err != nil {
		t.Errorf("a known authority: %v", err)
	}
	plain := serve(t, &origin{content: goodRaw()})
	down := httptest.NewTLSServer(http.RedirectHandler(plain, http.StatusFound))
	defer down.Close()
	if _, err := f.Fetch(t.Context(), down.URL, Want{}); !errors.As(err, new(*Refused)) {
		t.Errorf("a redirect out of TLS: %v", err)
	}
	if _, err := f.Fetch(t.Context(), down.URL, Want{Sum: Sum{SHA256: sumOf(goodRaw())}}); err != nil {
		t.Errorf("a redirect out of TLS, with a sum: %v", err)
	}
}

func TestNoErrorTellsWhatIsSecretInAURL(t *testing.T) {
	f, dir := testFetcher(t, FetchOptions{AllowPrivate: loopback, Attempts: 1})
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/leads-nowhere":
			w.Header().Set("Location", "http://[secret/?key=secret")
			w.WriteHeader(http.StatusFound)
		case "/leads-away":
			w.Header().Set("Location", "ftp://secret/?key=secret")
			w.WriteHeader(http.StatusFound)
		case "/breaks":
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	for _, u := range []string{
		url + "/image?key=secret", url + "/leads-nowhere?key=secret", url + "/leads-away?key=secret", url + "/breaks?key=secret",
		"http://user:secret@127.0.0.1/image", "http://127.0.0.1/\x00secret", "http://127.0.0.1:1/image?key=secret#secret",
	} {
		if _, err := f.Fetch(t.Context(), u, Want{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", u, err)
		}
	}
	wantFiles(t, dir)
}
