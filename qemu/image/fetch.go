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
	progressBytes  = mib // a connection that brings fewer bytes counts as failed
)

// FetchOptions limits the addresses and the attempts of a [Fetcher].
type FetchOptions struct {
	AllowPrivate []netip.Prefix // besides the public Internet; 0.0.0.0/0 and ::/0 for all addresses
	Stall        time.Duration  // a connection without a byte for so long is closed; 0 for 30 s
	Attempts     int            // consecutive connections that bring less than 1 MiB; 0 for 5
	Backoff      time.Duration  // before the second attempt, doubled for each, at most 30 s; 0 for 1 s
	RootCAs      *x509.CertPool // nil for those of the host
}

// StatusError is the error for an answer of the server that is not content.
type StatusError struct{ Status int }

func (e *StatusError) Error() string {
	return fmt.Sprintf("the server answers %d %s", e.Status, http.StatusText(e.Status))
}

// A Fetcher downloads images over HTTP into an [Importer]. It is safe for concurrent
// use.
type Fetcher struct {
	importer *Importer
	opts     FetchOptions
	client   *http.Client
}

// NewFetcher returns a fetcher. It ignores the proxy variables of the environment: a
// proxy would connect to addresses that the fetcher cannot check.
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
	dialer := &net.Dialer{Timeout: dialTimeout, Control: dialControl(o.AllowPrivate)}
	transport := &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.RootCAs},
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  o.Stall,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression:     true,
		DisableKeepAlives:      true,
	}
	client := &http.Client{Transport: transport, CheckRedirect: checkRedirect}
	return &Fetcher{importer: i, opts: o, client: client}
}

// allowDowngrade is the context key of a request that may be redirected from https to
// http, because the content has a checksum.
type allowDowngrade struct{}

func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return refusef("more than %d redirects", maxRedirects)
	}
	if err := checkURL(r.URL); err != nil {
		return err
	}
	downgrade := r.URL.Scheme == "http" && via[len(via)-1].URL.Scheme == "https"
	if downgrade && r.Context().Value(allowDowngrade{}) == nil {
		return refusef("a redirect from https to http for content without a checksum")
	}
	return nil
}

// CheckURL returns a [*Refused] error if the URL cannot be fetched. It does not connect
// to the server.
func CheckURL(s string) error {
	_, err := parseURL(s)
	return err
}

func parseURL(s string) (*url.URL, error) {
	if len(s) > maxURLBytes {
		return nil, refusef("the URL has %d bytes, at most %d are allowed", len(s), maxURLBytes)
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, refusef("not a URL") // err quotes the URL, which may hold a password
	}
	u.Fragment = ""
	return u, checkURL(u)
}

func checkURL(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return refusef("the URL has the scheme %.20q: it must be http or https", u.Scheme)
	case u.Hostname() == "":
		return refusef("the URL has no host")
	case u.User != nil:
		return refusef("the URL has a user name")
	}
	return nil
}

// Fetch downloads and imports the content of a URL. It resumes broken connections
// while the server has the same content, and starts again if the content changed. It
// fails as [Importer.Import] does, and with [*Refused] and [*StatusError]. Its errors
// do not contain the query of the URL, which may hold a key.
func (f *Fetcher) Fetch(ctx context.Context, address string, w Want) (Content, error) {
	u, err := parseURL(address)
	if err != nil {
		return Content{}, err
	}
	if w.Sum != (Sum{}) {
		ctx = context.WithValue(ctx, allowDowngrade{}, true)
	}
	for restarts := 0; ; restarts++ {
		d := &download{ctx: ctx, f: f, url: u.String()}
		want := w
		if w.Progress != nil {
			want.Progress = func(done, _ int64) { w.Progress(done, max(d.total, 0)) }
		}
		c, err := f.importer.Import(ctx, d, want)
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
