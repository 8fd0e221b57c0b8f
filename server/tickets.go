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
	ticketLife = 30 * time.Second
	// maxTickets is how many tickets one caller may have that nobody has used.
	maxTickets = 64
)

// tickets are what lets a browser, which can send no token with a WebSocket, join
// the console of one VM once. They are kept in memory only.
type tickets struct {
	mu  sync.Mutex
	all []ticket
}

// A ticket is what is kept of one.
type ticket struct {
	hash    [32]byte
	vm      string
	caller  vm.Caller // who asked for it: name and role
	write   bool
	expires time.Time
}

// issue makes a ticket and returns the secret and when it expires.
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
		return "", expires, &vm.Fault{Code: vm.CodeLimitReached, Detail: "there are too many tickets that nobody has used",
			Hint: "use them, or wait until they expire"}
	}
	secret, hash := NewToken()
	expires = now.Add(ticketLife)
	t.all = append(t.all, ticket{hash: hash, vm: vmID, caller: vm.Caller{Name: caller.Name, Role: caller.Role}, write: write, expires: expires})
	return secret, expires, nil
}

// redeem takes a ticket, which is good for nothing afterwards, whatever it was
// shown for. It looks at every one and compares in constant time.
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
	return nil, &vm.Fault{Code: codeUnauthorized, Detail: "the ticket is not known",
		Hint: "a ticket is good for one connection to one console within 30 seconds: make another"}
}

// revoke forgets the tickets of some callers.
func (t *tickets) revoke(gone map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = slices.DeleteFunc(t.all, func(k ticket) bool { return gone[k.caller.Name] })
}
