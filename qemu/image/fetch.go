package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

const (
	maxRedirects   = 10
	maxURLBytes    = 2048
	maxHeaderBytes = 64 << 10
	maxRestarts    = 3
	maxBackoff     = 30 * time.Second
	dialTimeout    = 15 * time.Second
	progressBytes  = mib // that make a connection count as one that worked
)

// FetchOptions is where images may be fetched from, and how patiently.
type FetchOptions struct {
	AllowPrivate []netip.Prefix // beyond the public Internet; 0.0.0.0/0 and ::/0 for everything
	Stall        time.Duration  // without a byte, until a connection is given up; 0 for 30 s
	Attempts     int            // connections in a row that bring less than 1 MiB; 0 for 5
	Backoff      time.Duration  // before the second attempt, doubled for each, at most 30 s; 0 for 1 s
	RootCAs      *x509.CertPool // nil for the host's
}

// StatusError is an answer of a server that is no content.
type StatusError struct{ Status int }

func (e *StatusError) Error() string {
	return fmt.Sprintf("the server answers %d %s", e.Status, http.StatusText(e.Status))
}

// A Fetcher downloads images by HTTP into an [Importer].
type Fetcher struct {
	importer *Importer
	opts     FetchOptions
	client   *http.Client
}

// NewFetcher returns a fetcher. It uses no proxy, whatever the environment says: a
// proxy would connect to addresses nobody here has seen.
func NewFetcher(i *Importer, o FetchOptions) *Fetcher {
	if o.Stall == 0 {
		o.Stall = 30 * time.Second
	}
	if o.Attempts == 0 {
		o.Attempts = 5
	}
	if o.Backoff == 0 {
		o.Backoff = time.Second
	}
	dialer := &net.Dialer{Timeout: dialTimeout, Control: control(o.AllowPrivate)}
	transport := &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.RootCAs},
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  o.Stall,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression:     true,
		DisableKeepAlives:      true,
	}
	return &Fetcher{importer: i, opts: o, client: &http.Client{Transport: transport, CheckRedirect: checkRedirect}}
}

// insecure marks the context of a request that may leave TLS, because the content
// is checked against a sum.
type insecure struct{}

func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return refusef("more than %d redirects", maxRedirects)
	}
	if err := checkURL(r.URL); err != nil {
		return err
	}
	if r.URL.Scheme == "http" && via[len(via)-1].URL.Scheme == "https" && r.Context().Value(insecure{}) == nil {
		return refusef("a redirect from https to http, for content without a checksum")
	}
	return nil
}

// CheckURL returns what is wrong ([*Refused]) with a URL to fetch from, as far as it
// shows without connecting.
func CheckURL(s string) error {
	_, err := parseURL(s)
	return err
}

func parseURL(s string) (*url.URL, error) {
	if len(s) > maxURLBytes {
		return nil, refusef("a URL of %d bytes, at most %d are allowed", len(s), maxURLBytes)
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, refusef("not a URL") // the error would quote it, with a password
	}
	u.Fragment = ""
	return u, checkURL(u)
}

func checkURL(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return refusef("a URL of scheme %.20q: it must be http or https", u.Scheme)
	case u.Hostname() == "":
		return refusef("a URL without a host")
	case u.User != nil:
		return refusef("a URL with a user name")
	}
	return nil
}

// Fetch downloads and imports what a URL leads to. Connections that break are
// resumed where they broke, as long as the server has the same content there. It
// fails as [Importer.Import] does, and with [*Refused] and [*StatusError]. Its errors do
// not tell the query of the URL, which may hold a key.
func (f *Fetcher) Fetch(ctx context.Context, address string, w Want) (Content, error) {
	u, err := parseURL(address)
	if err != nil {
		return Content{}, err
	}
	if w.Sum != (Sum{}) {
		ctx = context.WithValue(ctx, insecure{}, true)
	}
	for restarts := 0; ; restarts++ {
		here := w
		d := &download{ctx: ctx, f: f, url: u.String()}
		if told := w.Progress; told != nil {
			here.Progress = func(done, _ int64) { told(done, max(d.total, 0)) }
		}
		c, err := f.importer.Import(ctx, d, here)
		d.close()
		if errors.Is(err, errChanged) && restarts < maxRestarts {
			continue
		}
		if err != nil {
			return Content{}, fmt.Errorf("fetch %s: %w", withoutQuery(u), err)
		}
		return c, nil
	}
}

func withoutQuery(u *url.URL) string {
	bare := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return bare.String()
}
