package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// NewToken returns a new credential of 256 random bits: the secret for the client,
// and its SHA-256 hash, which is the only part that is stored.
func NewToken() (secret string, hash [32]byte) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program on an error
	secret = base64.RawURLEncoding.EncodeToString(b[:])
	return secret, sha256.Sum256([]byte(secret))
}

// auth authenticates callers.
type auth struct {
	store  vm.TokenStore
	tokens atomic.Pointer[[]token]
	group  string // name or number of the group that may use the unix socket, or empty
}

// A token is an API token in memory.
type token struct {
	hash   [32]byte
	caller vm.Caller
}

// reload reads the tokens from the store. It returns the names of the callers whose
// token was removed or changed.
func (a *auth) reload(ctx context.Context) (gone map[string]bool, err error) {
	stored, err := a.store.Tokens(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the API tokens: %w", err)
	}
	tokens := make([]token, len(stored))
	for i, t := range stored {
		tokens[i] = token{hash: t.Hash, caller: vm.Caller{Name: "token:" + t.Name, Role: t.Role}}
	}
	gone = map[string]bool{}
	if old := a.tokens.Swap(&tokens); old != nil {
		for _, t := range *old {
			if !slices.Contains(tokens, t) {
				gone[t.caller.Name] = true
			}
		}
	}
	return gone, nil
}

// A door holds the credentials of the peer of a connection.
type door struct {
	conn   *gated      // nil in tests
	peer   *unix.Ucred // nil for TCP
	groups []uint32    // supplementary groups of the peer; nil if not known
	err    error       // why peer is not known

	once    sync.Once // guards allowed
	allowed bool
}

type doorKey struct{}

// enter is the ConnContext of the HTTP server: it adds the door of a connection to
// its context. It runs in the accept loop, so it must not block.
func enter(ctx context.Context, c net.Conn) context.Context {
	d := &door{}
	if g, ok := c.(*gated); ok {
		d.conn, c = g, g.Conn
	}
	if u, ok := c.(*net.UnixConn); ok {
		d.peer, d.groups, d.err = peerOf(u)
	}
	return context.WithValue(ctx, doorKey{}, d)
}

// peerOf returns the credentials and the supplementary groups of the peer process
// at the time it connected (unix(7), SO_PEERCRED; SO_PEERGROUPS, Linux 4.13). The
// groups are nil if the kernel does not report them; that is not an error.
func peerOf(c *net.UnixConn) (*unix.Ucred, []uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Ucred
	var groups []uint32
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		groups = peerGroups(fd)
	})
	return cred, groups, errors.Join(err, cerr)
}

// peerGroups returns the supplementary groups of the peer of a socket, or nil if the
// kernel does not report them.
func peerGroups(fd uintptr) []uint32 {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4]
		case errno == unix.ERANGE && int(size/4) > len(groups): // size is the size needed
			groups = make([]uint32, size/4)
		default:
			return nil
		}
	}
}

// authenticate returns the caller of r: on the unix socket the peer process, on TCP
// the holder of the bearer token.
func (a *auth) authenticate(r *http.Request) (vm.Caller, error) {
	d, _ := r.Context().Value(doorKey{}).(*door)
	if d != nil && d.err != nil {
		return vm.Caller{}, fmt.Errorf("read the credentials of the peer: %w", d.err)
	}
	if d != nil && d.peer != nil {
		d.once.Do(func() { d.allowed = a.allows(d.peer, d.groups) })
		if !d.allowed {
			return vm.Caller{}, &vm.Fault{
				Code:   codeForbidden,
				Detail: fmt.Sprintf("uid %d may not use this socket", d.peer.Uid),
				Hint:   a.socketHint(),
			}
		}
		return vm.Caller{Name: "uid:" + strconv.Itoa(int(d.peer.Uid)), Role: vm.RoleAdmin}, nil
	}
	return a.bearer(r.Header["Authorization"])
}

func (a *auth) socketHint() string {
	if a.group == "" {
		return "call as root or as the user that vmand runs as"
	}
	return fmt.Sprintf("call as root, as the user that vmand runs as, or as a member of the group %s", a.group)
}

// bearer returns the caller of the token in the Authorization header (RFC 6750). It
// compares with every token in constant time, so its duration reveals nothing about
// the tokens.
func (a *auth) bearer(header []string) (vm.Caller, error) {
	const hint = "send the header Authorization: Bearer <token>"
	if len(header) == 0 {
		return vm.Caller{}, &vm.Fault{Code: codeUnauthorized, Detail: "the request has no token", Hint: hint}
	}
	scheme, secret, ok := strings.Cut(header[0], " ")
	if len(header) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") {
		return vm.Caller{}, &vm.Fault{
			Code:   codeUnauthorized,
			Detail: "the Authorization header is not a single bearer token",
			Hint:   hint,
		}
	}
	hash := sha256.Sum256([]byte(strings.TrimLeft(secret, " ")))
	var found *token
	tokens := *a.tokens.Load()
	for i := range tokens {
		if subtle.ConstantTimeCompare(tokens[i].hash[:], hash[:]) == 1 {
			found = &tokens[i]
		}
	}
	if found == nil {
		return vm.Caller{}, &vm.Fault{Code: codeUnauthorized, Detail: "the token is not valid", Hint: hint}
	}
	return found.caller, nil
}

// allows reports whether the peer process of a unix socket may call: root, the user
// that vmand runs as, and the members of the group. Membership is taken from the
// groups of the process and from the user database.
func (a *auth) allows(peer *unix.Ucred, groups []uint32) bool {
	if peer.Uid == 0 || int(peer.Uid) == os.Geteuid() {
		return true
	}
	if a.group == "" {
		return false
	}
	gid, err := groupID(a.group)
	if err != nil {
		return false // the group does not exist, so it has no members
	}
	if int(peer.Gid) == gid || slices.Contains(groups, uint32(gid)) {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(int(peer.Uid)))
	if err != nil {
		return false
	}
	recorded, err := u.GroupIds()
	return err == nil && slices.Contains(recorded, strconv.Itoa(gid))
}

// groupID returns the number of a group, given its name or number.
func groupID(group string) (int, error) {
	if gid, err := strconv.Atoi(group); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// origin rejects requests that a web page of another site can make a browser send:
// requests to a host name that was re-bound to this address by DNS (DNS rebinding),
// and cross-origin changes. A browser cannot reach the unix socket.
type origin struct {
	hosts []string // names of this server in addition to IP addresses and localhost
	cross *http.CrossOriginProtection
}

func newOrigin(hosts []string) *origin {
	o := &origin{cross: http.NewCrossOriginProtection()}
	if name, err := os.Hostname(); err == nil {
		o.hosts = append(o.hosts, strings.ToLower(name))
	}
	for _, h := range hosts {
		o.hosts = append(o.hosts, strings.ToLower(h))
	}
	return o
}

func (o *origin) check(r *http.Request) error {
	if d, _ := r.Context().Value(doorKey{}).(*door); d != nil && d.peer != nil {
		return nil
	}
	if !o.known(r.Host) {
		return &vm.Fault{
			Code:   codeForbidden,
			Detail: "the Host header does not name this server",
			Hint:   "use an IP address, localhost or the host name, or add the name to the setting hosts",
		}
	}
	if err := o.cross.Check(r); err != nil {
		return &vm.Fault{Code: codeForbidden, Detail: "a web page of another origin may not send this request"}
	}
	return nil
}

// checkConnection is check for a request that upgrades to a connection. Browsers do
// not apply the same-origin policy to connections, so it is checked like a change.
func (o *origin) checkConnection(r *http.Request) error {
	asked := *r
	asked.Method = http.MethodPost // makes it a change for check
	return o.check(&asked)
}

// known reports whether host, with or without a port, names this server.
func (o *origin) known(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if net.ParseIP(host) != nil {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || slices.Contains(o.hosts, host)
}
