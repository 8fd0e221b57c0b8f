package vm

import (
	"context"
	"time"
)

// A Caller identifies the origin of a request, as authenticated by the listener.
type Caller struct {
	Name      string // such as "token:admin", "uid:0" or "observer"
	Role      Role
	RequestID string
	Key       string // the Idempotency-Key of the request; empty for none
	// Fingerprint is a hash of the method, path and body of the request. It tells whether two
	// requests under one key are the same request.
	Fingerprint string
}

// Role is a set of permissions of a caller.
type Role string

// The roles. Each includes the permissions of the ones before it.
const (
	RoleViewer   Role = "viewer"   // read records and observations
	RoleOperator Role = "operator" // change resources and access guests
	RoleAdmin    Role = "admin"    // everything
)

// ranks orders the roles by their permissions.
var ranks = map[Role]int{RoleViewer: 1, RoleOperator: 2, RoleAdmin: 3}

// May reports whether r includes the permissions of need. An unknown role has no permissions.
func (r Role) May(need Role) bool { return ranks[r] > 0 && ranks[r] >= ranks[need] }

// callerKey is the context key of the [Caller].
type callerKey struct{}

// WithCaller returns a copy of ctx that carries c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf returns the caller that ctx carries. Without one it returns a caller named "vmand":
// the daemon itself.
func CallerOf(ctx context.Context) Caller {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c
	}
	return Caller{Name: "vmand"}
}

// A Token is a credential for the API. Only the hash of its secret is kept.
type Token struct {
	Name      string
	Role      Role
	Hash      [32]byte // SHA-256 of the secret
	CreatedAt time.Time
}

// TokenStore stores the tokens. Its methods are safe for concurrent use.
type TokenStore interface {
	// Tokens returns all tokens.
	Tokens(ctx context.Context) ([]Token, error)
	// PutToken stores t durably and replaces a token of the same name.
	PutToken(ctx context.Context, t Token) error
}
