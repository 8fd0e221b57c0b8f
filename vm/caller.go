package vm

import (
	"context"
	"time"
)

// A Caller is who asks for something, as the door that let them in knows them.
type Caller struct {
	Name      string // "token:admin", "uid:0", "observer"
	Role      Role
	RequestID string
	// Key is the request's Idempotency-Key, empty for none; Fingerprint says
	// which request it is (a hash of method, path and body).
	Key         string
	Fingerprint string
}

// Role says what a caller may do.
type Role string

// The roles, each of which may do what those before it may.
const (
	RoleViewer   Role = "viewer"   // look
	RoleOperator Role = "operator" // change things, and look into guests
	RoleAdmin    Role = "admin"    // everything
)

var ranks = map[Role]int{RoleViewer: 1, RoleOperator: 2, RoleAdmin: 3}

// May reports whether r includes what needs another role. One that is not known
// includes nothing.
func (r Role) May(need Role) bool { return ranks[r] > 0 && ranks[r] >= ranks[need] }

type callerKey struct{}

// WithCaller returns a context that says who asks.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf returns who asks, or a caller named "vmand" for what the daemon does
// of its own accord.
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

// TokenStore keeps the tokens.
type TokenStore interface {
	Tokens(ctx context.Context) ([]Token, error)
	// PutToken records t in place of any token of the same name.
	PutToken(ctx context.Context, t Token) error
}
