package dns

import (
	"container/list"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of a cache.
const (
	maxEntries    = 4096
	maxCacheBytes = 4 << 20
	maxEntryBytes = 16 << 10
	entryOverhead = 256             // bytes of an entry besides its message and name, roughly
	maxTTL        = time.Hour       // of positive answers
	maxNegative   = 5 * time.Minute // of negative answers (RFC 2308, section 5, allows up to 3 h)
)

// A key identifies the answer of an upstream server.
type key struct {
	name         string // in lower case
	qtype        uint16
	do, checking bool // the bits DO and CD of the query
	view         int  // see [zone]
}

func keyOf(q *dns.Msg, view int) key {
	k := key{
		name:     strings.ToLower(q.Question[0].Name),
		qtype:    q.Question[0].Qtype,
		checking: q.CheckingDisabled,
		view:     view,
	}
	if o := q.IsEdns0(); o != nil {
		k.do = o.Do()
	}
	return k
}

type entry struct {
	key     key
	message []byte // packed: it takes little memory and cannot be changed by mistake
	stored  time.Time
	expires time.Time
}

func (e *entry) size() int { return len(e.message) + len(e.key.name) + entryOverhead }

// A cache keeps the answers of upstream servers for their TTL. When it is full it drops the
// least recently used ones. It is safe for concurrent use.
type cache struct {
	mu      sync.Mutex
	entries map[key]*list.Element // of *entry
	used    *list.List            // the most recently used first
	bytes   int
	hits    int
}

func newCache() *cache { return &cache{entries: map[key]*list.Element{}, used: list.New()} }

// get returns the answer for a key with its remaining TTLs, or nil if there is none.
func (c *cache) get(k key, now time.Time) *dns.Msg {
	c.mu.Lock()
	element, ok := c.entries[k]
	if !ok {
		c.mu.Unlock()
		return nil
	}
	e := element.Value.(*entry)
	if !now.Before(e.expires) {
		c.remove(element)
		c.mu.Unlock()
		return nil
	}
	c.used.MoveToFront(element)
	c.hits++
	c.mu.Unlock()

	m := new(dns.Msg)
	if m.Unpack(e.message) != nil {
		return nil
	}
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(h.Ttl, age)
		}
	}
	return m
}

// put stores an answer if its TTL allows that. The answer must not have an OPT record.
func (c *cache) put(k key, m *dns.Msg, now time.Time) {
	ttl := lifetime(m)
	if ttl <= 0 {
		return
	}
	packed, err := m.Pack()
	if err != nil || len(packed) > maxEntryBytes {
		return
	}
	e := &entry{key: k, message: packed, stored: now, expires: now.Add(ttl)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.entries[k]; ok {
		c.remove(old)
	}
	c.entries[k] = c.used.PushFront(e)
	c.bytes += e.size()
	for len(c.entries) > maxEntries || c.bytes > maxCacheBytes {
		c.remove(c.used.Back())
	}
}

// remove drops an entry. It must be called with mu held.
func (c *cache) remove(element *list.Element) {
	e := c.used.Remove(element).(*entry)
	delete(c.entries, e.key)
	c.bytes -= e.size()
}

// clear drops all entries.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries, c.used, c.bytes = map[key]*list.Element{}, list.New(), 0
}

// lifetime returns how long an answer may be cached: for the shortest TTL of its records or,
// if it is negative, for as long as its SOA record allows (RFC 2308, section 5). It returns
// 0 for an answer that must not be cached.
func lifetime(m *dns.Msg) time.Duration {
	if m.Truncated || (m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError) {
		return 0
	}
	negative := m.Rcode == dns.RcodeNameError || len(m.Answer) == 0
	ttl, hasSOA := maxTTL, false
	if negative {
		ttl = maxNegative
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
			if soa, ok := rr.(*dns.SOA); ok && negative {
				hasSOA = true
				ttl = min(ttl, time.Duration(soa.Minttl)*time.Second)
			}
		}
	}
	if negative && !hasSOA {
		return 0
	}
	return ttl
}
