package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

// origin is a server of content that breaks its connections.
type origin struct {
	content []byte
	etag    string
	breakAt int64 // bytes of each answer before the connection breaks; 0 for never
	hang    bool  // stop sending instead of breaking the connection
	ranges  bool

	mu       sync.Mutex
	requests []string // Range header of each request
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
	s, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	if ok && o.ranges && r.Header.Get("If-Range") == etag {
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

// rangesRequested returns the Range header of each request so far.
func (o *origin) rangesRequested() []string {
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
	t.Parallel()
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
		opts := FetchOptions{AllowPrivate: loopback}
		if o.hang {
			opts.Stall = 700 * time.Millisecond
		}
		f, dir := testFetcher(t, opts)
		var last, size int64
		got, err := f.Fetch(t.Context(), serve(t, o), Want{
			Sum:      Sum{SHA256: sumOf(o.content)},
			Progress: func(done, total int64) { last, size = done, total },
		})
		if err != nil || got.SHA256 != sumOf(b) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		wantRanges := []string{"", "bytes=1536000-", "bytes=3072000-"}
		if r := o.rangesRequested(); !slices.Equal(r, wantRanges) {
			t.Errorf("%s: requested ranges %q, want %q", name, r, wantRanges)
		}
		if last != int64(len(o.content)) || size != last {
			t.Errorf("%s: progress %d of %d", name, last, size)
		}
		wantFiles(t, dir, sumOf(b))
	}
}

func TestUnresumableDownloadStartsAgain(t *testing.T) {
	t.Parallel()
	b := noise(4 * mib)
	for name, c := range map[string]struct {
		o     *origin
		after func(o *origin) // called before the second request
	}{
		"no ranges":    {&origin{etag: `"one"`}, func(o *origin) { o.breakAt = 0 }},
		"no validator": {&origin{ranges: true}, func(o *origin) { o.breakAt = 0 }},
		"changed content": {&origin{ranges: true, etag: `"one"`}, func(o *origin) {
			o.content, o.etag, o.breakAt = b, `"two"`, 0
		}},
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
	t.Parallel()
	b := noise(2 * mib)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	longHeader := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 1<<20))
	}
	webPage := func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<!DOCTYPE html>")) }
	for name, c := range map[string]struct {
		h        http.Handler
		sum      Sum
		attempts int
		reason   string
	}{
		"always broken": {
			&origin{content: b, ranges: true, etag: `"one"`, breakAt: 1000},
			Sum{}, 4, "gave up after 4 attempts",
		},
		"not found":         {http.NotFoundHandler(), Sum{}, 1, "404"},
		"always busy":       {status(503), Sum{}, 4, "503"},
		"another sum":       {&origin{content: b}, Sum{SHA256: sumOf(nil)}, 1, "should be"},
		"too large":         {&origin{content: make([]byte, 65*mib)}, Sum{}, 1, "larger than"},
		"endless headers":   {http.HandlerFunc(longHeader), Sum{}, 1, "header"},
		"forbidden":         {status(403), Sum{}, 1, "403"},
		"not implemented":   {status(501), Sum{}, 1, "501"},
		"too many requests": {status(429), Sum{}, 4, "429"},
		"a redirect to ftp": {http.RedirectHandler("ftp://example.com/a", http.StatusFound), Sum{}, 1, "ftp"},
		"a web page":        {http.HandlerFunc(webPage), Sum{}, 1, "web page"},
		"unrequested range": {status(206), Sum{}, 1, "206"},
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
	t.Parallel()
	o := &origin{content: noise(mib), breakAt: 1000, hang: true}
	f, dir := testFetcher(t, FetchOptions{AllowPrivate: loopback})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := f.Fetch(ctx, serve(t, o), Want{Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	wantFiles(t, dir)
}

func TestRedirectsToRefusedURLsAreNotFollowed(t *testing.T) {
	t.Parallel()
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
		"/hop/11",
		"/to?u=file:///etc/shadow",
		"/to?u=ftp://127.0.0.1/",
		"/to?u=" + strings.Replace(url, "://", "://user:secret@", 1) + "/image",
		"/to?u=http://169.254.169.254/latest/meta-data",
		"/to?u=http://10.0.0.1/",
		"/to?u=http://[::1]:1/",
		"/to?u=http://[::ffff:10.0.0.1]/",
		"/to?u=http://[fe80::1%2525lo]/",
		"/to?u=http://0.0.0.0:1/",
		"/to?u=http:///image",
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

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for url, ok := range map[string]bool{
		"https://example.com/a.qcow2?x=y#z": true,
		"http://example.com":                true,
		"":                                  false,
		"/a":                                false,
		"file:///etc/passwd":                false,
		"ftp://example.com/a":               false,
		"https://":                          false,
		"https://user@example.com/a":        false,
		"https://a:b@example.com/a":         false,
		"http://exa mple.com":               false,
		"http://example.com/\x00":           false,
		"https://example.com/" + strings.Repeat("a", 2048): false,
	} {
		if err := CheckURL(url); (err == nil) != ok || !ok && !errors.As(err, new(*Refused)) {
			t.Errorf("%.60q: %v", url, err)
		}
	}
}

func TestNamesOfTheHostItselfAreRefusedByAddress(t *testing.T) {
	t.Parallel()
	url := serve(t, &origin{content: goodRaw()})
	f, dir := testFetcher(t, FetchOptions{})
	for _, host := range []string{"127.0.0.1", "localhost", "127.1", "0"} {
		u := strings.Replace(url, "127.0.0.1", host, 1)
		_, err := f.Fetch(t.Context(), u, Want{})
		if err == nil || !errors.As(err, new(*Refused)) && !strings.Contains(err.Error(), "resolved") {
			t.Errorf("%s: %v", u, err)
		}
	}
	wantFiles(t, dir)
}

func TestAddressesOutsideThePublicInternetAreRefused(t *testing.T) {
	t.Parallel()
	addresses := map[string]bool{} // by address: it is public
	for _, a := range []string{
		"8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a01:4f8::1",
		"::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
	} {
		addresses[a] = true
	}
	for _, a := range []string{
		"0.0.0.0", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1",
		"169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.168.0.1",
		"198.18.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "192.0.2.1",
		"198.51.100.1", "203.0.113.1",

		"::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
		"fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "ff02::1",
		"64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
		"2002:7f00:1::", "2002:a9fe:a9fe::",
		"2001:db8::1", "2001::1", "fec0::1", "100::1", "4000::1",
	} {
		addresses[a] = false
	}
	for address, want := range addresses {
		a := netip.MustParseAddr(address)
		if got := isPublic(a, nil); got != want {
			t.Errorf("%s: isPublic is %v", address, got)
		}
		network := map[bool]string{true: "tcp6", false: "tcp4"}[a.Is6()]
		if err := dialControl(nil)(network, netip.AddrPortFrom(a, 80).String(), nil); (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
		if !isPublic(a.WithZone(""), prefixes("0.0.0.0/0", "::/0")) {
			t.Errorf("%s is refused, though everything is allowed", address)
		}
	}
	if !isPublic(netip.MustParseAddr("::ffff:10.0.0.1"), prefixes("10.0.0.0/8")) {
		t.Error("an allowed IPv4 address is refused in its IPv6 form")
	}
	if isPublic(netip.MustParseAddr("10.0.0.1"), prefixes("10.1.0.0/16")) {
		t.Error("an address outside the allowed range is accepted")
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
	_, err := f.Fetch(t.Context(), s.URL, Want{})
	if err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "attempts") {
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

func TestNoErrorHasTheSecretsOfAURL(t *testing.T) {
	t.Parallel()
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
		url + "/image?key=secret",
		url + "/leads-nowhere?key=secret",
		url + "/leads-away?key=secret",
		url + "/breaks?key=secret",
		"http://user:secret@127.0.0.1/image",
		"http://127.0.0.1/\x00secret",
		"http://127.0.0.1:1/image?key=secret#secret",
	} {
		if _, err := f.Fetch(t.Context(), u, Want{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", u, err)
		}
	}
	wantFiles(t, dir)
}

// Each of these fails at once, and no error names an address that a name leads to.
func TestDownloadsThatCannotSucceedAreNotRetried(t *testing.T) {
	t.Parallel()
	plain := serve(t, &origin{content: goodRaw()})
	odd, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { odd.Close() })
	go func() {
		for {
			c, err := odd.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = bufio.NewReader(c).ReadString('\n')
				_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n")
			}()
		}
	}()
	for name, c := range map[string]struct {
		url     string
		allowed []netip.Prefix
	}{
		"a private address":      {plain, nil},
		"a name of one":          {strings.Replace(plain, "127.0.0.1", "localhost", 1), nil},
		"https of an http port":  {strings.Replace(plain, "http:", "https:", 1), loopback},
		"no HTTP":                {"http://" + odd.Addr().String() + "/a", loopback},
		"a name that is invalid": {"http://a..invalid/a", loopback},
	} {
		f, dir := testFetcher(t, FetchOptions{AllowPrivate: c.allowed, Backoff: time.Hour}) // a retry would not end
		_, err := f.Fetch(t.Context(), c.url, Want{})
		if err == nil || strings.Contains(err.Error(), "attempts") {
			t.Errorf("%s: %v", name, err)
			continue
		}
		reason := strings.TrimPrefix(err.Error(), "fetch "+c.url) // the client knows the URL
		if strings.Contains(reason, "127.0.0.1") || strings.Contains(reason, "::1") {
			t.Errorf("%s: the error names an address: %v", name, err)
		}
		wantFiles(t, dir)
	}
}

func TestErrorsOfTheNetworkNameNoAddress(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := closed.Addr().String()
	closed.Close()
	f, _ := testFetcher(t, FetchOptions{AllowPrivate: loopback, Attempts: 2})
	_, err = f.Fetch(t.Context(), "http://"+address+"/a", Want{})
	if err == nil || !strings.Contains(err.Error(), "gave up after 2 attempts: dial: connect: connection refused") ||
		!errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v", err)
	}
	for _, err := range []error{
		&net.OpError{Op: "read", Net: "tcp", Source: closed.Addr(), Addr: closed.Addr(), Err: syscall.ECONNRESET},
		&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "server misbehaving", Name: "a.example", Server: "127.0.0.1:53"}},
	} {
		if got := bare(err); strings.Contains(got.Error(), "127.0.0.1") || !isTemporary(got) {
			t.Errorf("%v is shown as %v", err, got)
		}
	}
	if isTemporary(bare(&net.DNSError{Err: "no such host", IsNotFound: true})) {
		t.Error("a name that does not exist is looked up again")
	}
}
