package store

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// vmCache keeps the VMs that were read by id since the last change of any of
// them. To read a row costs three times what everything else about answering a
// client does.
//
// It is never wrong about what this process has recorded: a change of a VM
// starts a new, empty generation before it is acknowledged, and what is read
// meanwhile goes into the old one, which nobody looks at any more. What another
// process has written is noticed within foreignCheck, and by the next list.
type vmCache struct {
	now atomic.Pointer[generation]

	mu      sync.Mutex
	db      *sqlx.DB // one connection, asked for data_version: each counts for itself
	version int64
	looked  atomic.Int64 // when, in nanoseconds of time.Since(born)
	born    time.Time
}

// A generation holds the VMs of one time between two changes.
type generation struct {
	mu  sync.RWMutex
	vms map[string]vm.VM
}

const (
	maxCached    = 1 << 14
	foreignCheck = time.Second
)

func newVMCache(ctx context.Context, path string) (*vmCache, error) {
	db, err := connect(ctx, path, 1, readerPragmas, "")
	if err != nil {
		return nil, err
	}
	c := &vmCache{db: db, born: time.Now()}
	c.drop()
	return c, nil
}

// drop starts a new generation.
func (c *vmCache) drop() { c.now.Store(&generation{vms: map[string]vm.VM{}}) }

func (g *generation) get(id string) (vm.VM, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	v, ok := g.vms[id]
	return apart(v), ok
}

func (g *generation) put(v vm.VM) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.vms) < maxCached {
		g.vms[v.ID] = apart(v)
	}
}

// apart returns v with lists of its own: who changes a NIC of what it has read
// does not change what others read.
func apart(v vm.VM) vm.VM {
	v.NICs, v.Forwards, v.CDROMs, v.Learned = slices.Clone(v.NICs), slices.Clone(v.Forwards), slices.Clone(v.CDROMs), slices.Clone(v.Learned)
	return v
}

// generation returns the present one, after a look for foreign writes if the
// last one was too long ago.
func (c *vmCache) generation(ctx context.Context) *generation {
	if now := int64(time.Since(c.born)); now-c.looked.Load() > int64(foreignCheck) {
		if c.look(ctx) != nil {
			c.drop() // better slow than wrong
		}
	}
	return c.now.Load()
}

// ForeignVersion returns a number that changes when another process writes to the
// database. It also drops the cached VMs if one did. It waits for a change in progress.
func (s *Store) ForeignVersion(ctx context.Context) (version int64, err error) {
	if err = s.cache.look(ctx); err == nil {
		// The version of the only connection that writes does not count the writes of
		// this process.
		err = s.writer.GetContext(ctx, &version, "PRAGMA data_version")
	}
	return version, s.fault(ctx, err)
}

// look starts a new generation if somebody has written since the last look: this
// process too, which costs nothing but the rows' being read again.
func (c *vmCache) look(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var version int64
	if err := c.db.GetContext(ctx, &version, "PRAGMA data_version"); err != nil {
		return err
	}
	if version != c.version {
		c.version = version
		c.drop()
	}
	c.looked.Store(int64(time.Since(c.born)))
	return nil
}
