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

// NewToken makes a credential of 256 random bits for the API: the secret to
// hand out, and the SHA-256 hash of it, which is all that is ever kept.
func NewToken() (secret string, hash [32]byte) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	secret = base64.RawURLEncoding.EncodeToString(b[:])
	return secret, sha256.Sum256([]byte(secret))
}

// auth knows who may call.
type auth struct {
	store  vm.TokenStore
	tokens atomic.Pointer[[]token]
	group  string // name or number of the group that may use the unix socket; empty for none
}

// A token is what is kept of one in memory.
type token struct {
	hash   [32]byte
	caller vm.Caller
}

// reload reads the tokens anew and returns the names of the callers whose token is
// no longer what it was.
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

// A door is what a connection came in by, and who stands behind it.
type door struct {
	peer   *unix.Ucred // of a unix socket, nil for TCP
	groups []uint32    // of the peer besides its own, if the kernel says
	err    error       // why the peer is not known

	once    sync.Once
	allowed bool
}

type doorKey struct{}

// enter is the ConnContext of the HTTP server: it notes who opened a
// connection. It runs in the accept loop and so does nothing slow.
func enter(ctx context.Context, c net.Conn) context.Context {
	d := &door{}
	if u, ok := c.(*net.UnixConn); ok {
		d.peer, d.groups, d.err = peerOf(u)
	}
	return context.WithValue(ctx, doorKey{}, d)
}

// peerOf returns the credentials and the supplementary groups the process at the
// other end had when it connected (unix(7), SO_PEERCRED; SO_PEERGROUPS, which
// Linux has since 4.13). Not to know the groups is no error.
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

// peerGroups returns the supplementary groups of a socket's peer, none if they
// cannot be had.
func peerGroups(fd uintptr) []uint32 {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4]
		case errno == unix.ERANGE && int(size/4) > len(groups): // size is what it takes
			groups = make([]uint32, size/4)
		default:
			return nil
		}
	}
}

// authenticate returns who sends r. On the unix socket the kernel says it, on
// TCP the bearer token does.
func (a *auth) authenticate(r *http.Request) (vm.Caller, error) {
	d, _ := r.Context().Value(doorKey{}).(*door)
	if d != nil && d.err != nil {
		return vm.Caller{}, fmt.Errorf("read the peer's credentials: %w", d.err)
	}
	if d != nil && d.peer != nil {
		d.once.Do(func() { d.allowed = a.allows(d.peer, d.groups) })
		if !d.allowed {
			return vm.Caller{}, &vm.Fault{Code: codeForbidden,
				Detail: fmt.Sprintf("uid %d may not use this socket", d.peer.Uid), Hint: a.socketHint()}
		}
		return vm.Caller{Name: "uid:" + strconv.Itoa(int(d.peer.Uid)), Role: vm.RoleAdmin}, nil
	}
	return a.bearer(r.Header["Authorization"])
}

func (a *auth) socketHint() string {
	if a.group == "" {
		return "call as root or as the user vmand runs as"
	}
	return fmt.Sprintf("call as root, as the user vmand runs as, or as a member of the group %s", a.group)
}

// bearer returns the caller whose token the Authorization header shows
// (RFC 6750). It looks at every token and compares in constant time, so how
// long it takes tells nothing about any of them.
func (a *auth) bearer(header []string) (vm.Caller, error) {
	const hint = "send the header Authorization: Bearer <token>"
	if len(header) == 0 {
		return vm.Caller{}, &vm.Fault{Code: codeUnauthorized, Detail: "no token was sent", Hint: hint}
	}
	scheme, secret, ok := strings.Cut(header[0], " ")
	if len(header) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") {
		return vm.Caller{}, &vm.Fault{Code: codeUnauthorized, Detail: "the Authorization header is not one bearer token", Hint: hint}
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
		return vm.Caller{}, &vm.Fault{Code: codeUnauthorized, Detail: "the token is not known", Hint: hint}
	}
	return found.caller, nil
}

// allows reports whether the process at the other end of the unix socket may
// call: root, the user vmand runs as, and the members of the group, be it by the
// groups the process has or by what is on record of its user.
func (a *auth) allows(peer *unix.Ucred, groups []uint32) bool {
	if peer.Uid == 0 || int(peer.Uid) == os.Geteuid() {
		return true
	}
	if a.group == "" {
		return false
	}
	gid, err := groupID(a.group)
	if err != nil {
		return false // no such group, so nobody is in it
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

// groupID returns the number of a group given by name or number.
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

// origin refuses what a web page of another site could make a browser send: a
// name that was re-bound to this address by DNS, and a change asked for from
// elsewhere. The unix socket is out of a browser's reach.
type origin struct {
	hosts []string // names, besides IP addresses and localhost, this server is called by
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
		return &vm.Fault{Code: codeForbidden, Detail: "the Host header does not name this server",
			Hint: "use an IP address, localhost or the host's name; other names are set in the configuration"}
	}
	if err := o.cross.Check(r); err != nil {
		return &vm.Fault{Code: codeForbidden, Detail: "a web page of another origin may not change anything here"}
	}
	return nil
}

// checkConnection is check for a request that a page could turn into a connection
// it can read from: a browser's rules for reading answers do not hold for it.
func (o *origin) checkConnection(r *http.Request) error {
	asked := *r
	asked.Method = http.MethodPost // to be judged as a change is
	return o.check(&asked)
}

// known reports whether host, with or without a port, is a name of this server.
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
