package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"slices"
	"sync"
	"time"

	"vmand/vm"
)

const (
	// ticketLife is how long a ticket is valid.
	ticketLife = 30 * time.Second
	// maxTickets is the maximum number of unused tickets of one caller.
	maxTickets = 64
)

// tickets holds the unused console tickets. A browser needs one because it cannot send
// a token with a WebSocket. Tickets are kept in memory only.
type tickets struct {
	mu  sync.Mutex
	all []ticket
}

// A ticket opens one connection to the console of one VM.
type ticket struct {
	hash    [32]byte
	vm      string
	caller  vm.Caller // name and role of the caller that created it
	write   bool
	expires time.Time
}

// issue creates a ticket. It returns the secret and the time at which it expires.
func (t *tickets) issue(caller vm.Caller, vmID string, write bool) (secret string, expires time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	n := 0
	t.all = slices.DeleteFunc(t.all, func(k ticket) bool { return !now.Before(k.expires) })
	for i := range t.all {
		if t.all[i].caller.Name == caller.Name {
			n++
		}
	}
	if n >= maxTickets {
		return "", expires, &vm.Fault{
			Code:   vm.CodeLimitReached,
			Detail: "the caller has too many unused tickets",
			Hint:   "use them, or wait until they expire",
		}
	}
	secret, hash := NewToken()
	expires = now.Add(ticketLife)
	t.all = append(t.all, ticket{
		hash:    hash,
		vm:      vmID,
		caller:  vm.Caller{Name: caller.Name, Role: caller.Role},
		write:   write,
		expires: expires,
	})
	return secret, expires, nil
}

// redeem uses up a ticket, even if it is for another VM or has expired. It compares
// with every ticket in constant time.
func (t *tickets) redeem(secret, vmID string) (*ticket, error) {
	hash := sha256.Sum256([]byte(secret))
	t.mu.Lock()
	defer t.mu.Unlock()
	found := -1
	for i := range t.all {
		if subtle.ConstantTimeCompare(t.all[i].hash[:], hash[:]) == 1 {
			found = i
		}
	}
	if found >= 0 {
		k := t.all[found]
		t.all = slices.Delete(t.all, found, found+1)
		if k.vm == vmID && time.Now().Before(k.expires) {
			return &k, nil
		}
	}
	return nil, &vm.Fault{
		Code:   codeUnauthorized,
		Detail: "the ticket is not valid",
		Hint:   "create a new ticket: a ticket opens one console connection within 30 seconds",
	}
}

// revoke removes the tickets of the given callers.
func (t *tickets) revoke(gone map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = slices.DeleteFunc(t.all, func(k ticket) bool { return gone[k.caller.Name] })
}
