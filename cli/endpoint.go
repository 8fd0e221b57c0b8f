package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const (
	// server is the base of the requests that the generated builders make;
	// [endpoint.address] replaces it.
	server = "http://vmand"
	// dialTimeout limits how long a daemon may take to accept a connection.
	dialTimeout = 10 * time.Second
	// maxTokenFile is the maximum size of a token file in bytes.
	maxTokenFile = 4 << 10
)

// An endpoint is a daemon to talk to.
type endpoint struct {
	url         *url.URL // http or https; of a unix socket http://vmand
	socket      string   // path of the unix socket; empty for TCP
	system      bool     // try the socket of the system's daemon too
	token       string
	fingerprint string // hexadecimal SHA-256 of the certificate; empty for the usual checks

	patience time.Duration // how long a connection waits for a daemon that is away
}

// String returns the endpoint as the user writes it.
func (e *endpoint) String() string {
	if e.socket != "" {
		return "unix:" + e.socket
	}
	return e.url.String()
}

// findEndpoint returns the daemon that the user means. What the user has named comes
// first: a flag, a variable, the current context. Without these it is the daemon of this
// host.
func (a *app) findEndpoint() (*endpoint, error) {
	if a.url != "" {
		return withToken(parseEndpoint(a.url))
	}
	name := cmp.Or(a.context, os.Getenv("VMAN_CONTEXT"))
	if where := os.Getenv("VMAN_URL"); where != "" && a.context == "" {
		return withToken(parseEndpoint(where))
	}
	contexts, err := readContexts()
	if err != nil {
		return nil, err
	}
	if name = cmp.Or(name, contexts.Current); name != "" {
		return contexts.endpoint(name)
	}
	if runtime.GOOS == "windows" {
		return nil, failf(exitNoDaemon, "no daemon is named").hint("set --url or VMAN_URL, or add a context: vman context add NAME URL")
	}
	path, named := defaultSocket()
	e := &endpoint{url: &url.URL{Scheme: "http", Host: "vmand"}, socket: path, system: !named}
	return e, nil
}

// defaultSocket returns the socket of the user's own daemon, and whether a variable names it.
func defaultSocket() (path string, named bool) {
	if path := os.Getenv("VMAN_SOCKET"); path != "" {
		return path, true
	}
	if dir := os.Getenv("VMAN_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "vmand.sock"), true
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		return filepath.Join(dir, "vman", "vmand.sock"), false
	}
	return systemSocket, false
}

// parseEndpoint parses unix:PATH, http://HOST:PORT or https://HOST:PORT.
func parseEndpoint(where string) (*endpoint, error) {
	if path, ok := strings.CutPrefix(where, "unix:"); ok {
		if path = strings.TrimPrefix(path, "//"); !filepath.IsAbs(path) {
			return nil, usagef("%s: the path of the socket must be absolute", where)
		}
		return &endpoint{url: &url.URL{Scheme: "http", Host: "vmand"}, socket: path}, nil
	}
	u, err := url.Parse(where)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil {
		return nil, usagef("%q is not the URL of a daemon", where).
			hint("use unix:/PATH, http://HOST:PORT or https://HOST:PORT")
	}
	return &endpoint{url: u}, nil
}

// withToken adds the token of the environment.
func withToken(e *endpoint, err error) (*endpoint, error) {
	if err != nil {
		return nil, err
	}
	e.token = os.Getenv("VMAN_TOKEN")
	if file := os.Getenv("VMAN_TOKEN_FILE"); e.token == "" && file != "" {
		if e.token, err = readToken(file); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// readToken returns the token in a file.
func readToken(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", usagef("token file: %v", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxTokenFile {
		return "", usagef("token file %s is not a file of at most %d bytes", file, maxTokenFile)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", usagef("token file: %v", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", usagef("token file %s must contain one word", file)
	}
	return token, nil
}

// dial connects to the daemon, without TLS. It waits up to e.patience for a daemon that is away.
func (e *endpoint) dial(ctx context.Context) (net.Conn, error) {
	for began := time.Now(); ; {
		conn, err := e.dialOnce(ctx)
		if err == nil {
			return conn, nil
		}
		if time.Since(began) >= e.patience || !pause(ctx, dialPause) {
			return nil, &dialError{e, err}
		}
	}
}

func (e *endpoint) dialOnce(ctx context.Context) (net.Conn, error) {
	ctx, stop := context.WithTimeout(ctx, dialTimeout)
	defer stop()
	if e.socket != "" {
		return dialUnix(ctx, e.socket, e.system)
	}
	port := cmp.Or(e.url.Port(), map[string]string{"http": "80", "https": "443"}[e.url.Scheme])
	return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(e.url.Hostname(), port))
}

// dialUnix connects to a socket. If it does not exist and system is true, the socket of
// the system's daemon is tried too.
func dialUnix(ctx context.Context, path string, system bool) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrNotExist) && system && path != systemSocket {
		if other, err := d.DialContext(ctx, "unix", systemSocket); err == nil {
			return other, nil
		}
	}
	return conn, err
}

// open connects to the daemon, with TLS if the URL asks for it.
func (e *endpoint) open(ctx context.Context) (net.Conn, error) {
	conn, err := e.dial(ctx)
	if err != nil || e.url.Scheme != "https" {
		return conn, err
	}
	secure := tls.Client(conn, e.tls())
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, &dialError{e, err}
	}
	return secure, nil
}

// tls returns the configuration of connections. With a fingerprint exactly that
// certificate is accepted, whatever its names and issuer are.
func (e *endpoint) tls() *tls.Config {
	c := &tls.Config{ServerName: e.url.Hostname(), MinVersion: tls.VersionTLS12}
	if e.fingerprint == "" {
		return c
	}
	c.InsecureSkipVerify = true // VerifyConnection replaces it
	c.VerifyConnection = func(s tls.ConnectionState) error {
		sum := sha256.Sum256(s.PeerCertificates[0].Raw)
		if got := hex.EncodeToString(sum[:]); got != e.fingerprint {
			return failf(exitNotAllowed, "the certificate of %s has the fingerprint sha256:%s, not the pinned one", e, got).
				hint("if the certificate was replaced on purpose, pin the new one: vman context add --force")
		}
		return nil
	}
	return c
}

// transport returns the connections of an endpoint.
func (e *endpoint) transport() *http.Transport {
	return &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return e.dial(ctx) },
		TLSClientConfig:       e.tls(),
		TLSHandshakeTimeout:   dialTimeout,
		MaxIdleConnsPerHost:   parallel,
		IdleConnTimeout:       30 * time.Second,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    e.socket != "",
	}
}

// address directs a request that a generated builder has made to the endpoint.
func (e *endpoint) address(r *http.Request, version string) {
	r.URL.Scheme, r.URL.Host, r.Host = e.url.Scheme, e.url.Host, e.url.Host
	if prefix := strings.TrimSuffix(e.url.EscapedPath(), "/"); prefix != "" {
		r.URL.RawPath = prefix + r.URL.EscapedPath()
		r.URL.Path = strings.TrimSuffix(e.url.Path, "/") + r.URL.Path
	}
	r.Header.Set("User-Agent", "vman/"+version)
	if e.token != "" {
		r.Header.Set("Authorization", "Bearer "+e.token)
	}
}

// A dialError says that no daemon could be reached.
type dialError struct {
	endpoint *endpoint
	err      error
}

func (d *dialError) Error() string { return d.err.Error() }
func (d *dialError) Unwrap() error { return d.err }

// failure returns the error that the user sees.
func (d *dialError) failure() *failure {
	var f *failure
	if errors.As(d.err, &f) {
		return f
	}
	if errors.Is(d.err, fs.ErrPermission) {
		return failf(exitNotAllowed, "%s: permission denied", d.endpoint).
			hint("the socket is for root and the group of the daemon's setting socket_group")
	}
	why := d.err
	var op *net.OpError
	if errors.As(why, &op) {
		why = op.Err
	}
	return failf(exitNoDaemon, "no vmand answers at %s: %v", d.endpoint, why).
		hint("is vmand running? name another daemon with --url, VMAN_URL or a context (vman help contexts)")
}
