package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// batchBytes is the size of the socket's buffers: a batch is sent in one piece.
	batchBytes = 8 << 20
	// unowned is the owner of the elements that an earlier daemon left.
	unowned = ""
)

// firewall manages vmand's two nftables tables. Every element of their sets has an owner,
// a network or a VM. A change touches single elements where possible; otherwise one atomic
// batch replaces both tables, so there is no moment without rules. It is not safe for
// concurrent use.
type firewall struct {
	owners map[string]map[element]bool
	holder map[element]string // the reverse of owners
	values map[mapKey]element // the held elements of maps

	// Both sockets stay open: after a deletion of rules, the kernel delays the close of
	// a netfilter socket by a grace period, about 10 ms.
	conn           *nftables.Conn // for batches and reads; nil after an error
	generationConn *netlink.Conn

	flows *flows

	generation uint32 // of the host's rule set when verified was last set
	verified   bool   // the tables were complete at generation
}

// newFirewall opens the firewall and reads the elements that an earlier daemon left. It
// returns an error if the kernel lacks nftables.
func newFirewall() (*firewall, error) {
	f := &firewall{}
	f.clear()
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("open nftables: the kernel lacks it or denies access: %w", err)
	}
	seen, err := f.read()
	if err != nil {
		f.close()
		return nil, fmt.Errorf("read the nftables rules: %w", err)
	}
	if seen == nil {
		return f, nil
	}
	f.assign(unowned, seen.elements)
	return f, nil
}

func (f *firewall) open() (err error) {
	if f.generationConn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
		return err
	}
	if f.flows, err = newFlows(); err == nil {
		err = f.connect()
	}
	if err == nil {
		_, err = f.readGeneration()
	}
	if err != nil {
		f.close()
	}
	return err
}

// connect opens conn if it is closed.
func (f *firewall) connect() (err error) {
	if f.conn != nil {
		return nil
	}
	f.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(batchBytes), c.SetReadBuffer(batchBytes))
	}))
	return err
}

// disconnect closes conn. A request that failed may leave unread replies on it, which
// would be taken for the replies to the next request.
func (f *firewall) disconnect() {
	if f.conn != nil {
		f.conn.CloseLasting()
		f.conn = nil
	}
}

func (f *firewall) close() {
	f.disconnect()
	if f.generationConn != nil {
		f.generationConn.Close()
	}
	if f.flows != nil {
		f.flows.kernel.Close()
	}
}

func (f *firewall) clear() {
	f.owners, f.holder, f.values = map[string]map[element]bool{}, map[element]string{}, map[mapKey]element{}
}

// hold records that owner has e.
func (f *firewall) hold(e element, owner string) {
	f.holder[e] = owner
	if e.data != "" {
		f.values[e.mapKey()] = e
	}
}

// release records that nothing owns e.
func (f *firewall) release(e element) {
	delete(f.holder, e)
	if f.values[e.mapKey()] == e {
		delete(f.values, e.mapKey())
	}
}

// assign records that owner has exactly these elements, and takes them from their
// previous owners. It changes nothing in the kernel.
func (f *firewall) assign(owner string, elements []element) {
	has := make(map[element]bool, len(elements))
	for _, e := range elements {
		if previous, held := f.holder[e]; held && previous != owner {
			delete(f.owners[previous], e)
		}
		has[e] = true
		f.hold(e, owner)
	}
	for e := range f.owners[owner] {
		if !has[e] {
			f.release(e)
		}
	}
	f.owners[owner] = has
	if len(has) == 0 {
		delete(f.owners, owner)
	}
}

// set makes elements the only ones of owner in the tables. It does not write if nothing
// changes.
func (f *firewall) set(owner string, elements []element) error {
	want := make(map[element]bool, len(elements))
	var add, remove []element
	replaced := map[element]bool{}
	for _, e := range elements {
		if _, held := f.holder[e]; !held && !want[e] {
			add = append(add, e)
		}
		want[e] = true
		if old, held := f.otherValue(e); held && !want[old] {
			remove, replaced[old] = append(remove, old), true // a map has one value for a key
		}
	}
	for e := range f.owners[owner] {
		if !want[e] && !replaced[e] {
			remove = append(remove, e)
		}
	}
	if len(add)+len(remove) == 0 {
		f.assign(owner, elements)
		return nil
	}
	for _, e := range remove {
		if previous := f.holder[e]; previous != owner {
			delete(f.owners[previous], e)
			f.release(e)
		}
	}
	f.assign(owner, elements)
	f.flows.noteChange(add, f.unshared(remove))
	err := f.write(func(b *batch) { b.change(add, remove) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		return f.rebuild() // another program has changed the tables
	}
	return err
}

// unshared returns elements without the extra addresses that another NIC still has: the
// connections of a shared address outlive its removal from one of the NICs.
func (f *firewall) unshared(elements []element) []element {
	type addresses struct{ first, last netip.Addr }
	shared := map[addresses]bool{}
	if slices.ContainsFunc(elements, func(e element) bool { return e.last != "" }) {
		for e := range f.holder {
			if first, last, ok := e.addressRange(); ok {
				shared[addresses{first, last}] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(elements), func(e element) bool {
		first, last, ok := e.addressRange()
		return ok && shared[addresses{first, last}]
	})
}

// otherValue returns the held element with the map key of e and a different value. It
// belongs to an earlier daemon, or to an owner that changes.
func (f *firewall) otherValue(e element) (element, bool) {
	old, held := f.values[e.mapKey()]
	return old, held && old.data != e.data
}

// rebuild replaces both tables in one batch.
func (f *firewall) rebuild() error {
	elements := slices.Collect(maps.Keys(f.holder))
	f.flows.noteRebuild(elements)
	return f.write(func(b *batch) { b.build(elements) })
}

// write sends one batch and follows the generation of the rule set.
func (f *firewall) write(fill func(*batch)) error {
	if err := f.connect(); err != nil {
		return err
	}
	b := newBatch(f.conn)
	fill(b)
	if err := b.send(); err != nil {
		f.verified = false
		f.disconnect()
		return err
	}
	now, err := f.readGeneration()
	if err != nil {
		f.verified = false
		return err
	}
	// A larger step means that another program has written too.
	f.verified = f.verified && now == f.generation+1
	f.generation = now
	return nil
}

// check describes the differences between the tables and the written ones; it returns nil if
// there are none. It reads the tables only if the generation of the host's rule set has
// changed since they were verified.
func (f *firewall) check() ([]string, error) {
	before, err := f.readGeneration()
	if err != nil {
		return nil, err
	}
	if f.verified && before == f.generation {
		return nil, nil
	}
	seen, err := f.read()
	if err != nil {
		return nil, err
	}
	found := seen.faults(f.holder)
	after, err := f.readGeneration()
	if err != nil {
		return nil, err
	}
	f.generation, f.verified = after, len(found) == 0 && after == before
	return found, nil
}

// read returns the tables of the host. It returns nil if one of them is missing.
func (f *firewall) read() (*seenTables, error) {
	if err := f.connect(); err != nil {
		return nil, err
	}
	seen, err := readTables(f.conn)
	if err != nil {
		f.disconnect()
	}
	return seen, err
}

// readGeneration returns the generation of the host's rule set. Every change of any rule
// increments it.
func (f *firewall) readGeneration() (uint32, error) {
	replies, err := f.generationConn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN,
			Flags: netlink.Request,
		},
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("read the generation of the rules: %w", err)
	}
	for _, reply := range replies {
		if len(reply.Data) < 4 {
			continue
		}
		attrs, err := netlink.UnmarshalAttributes(reply.Data[4:])
		if err != nil {
			return 0, err
		}
		for _, at := range attrs {
			if at.Type == unix.NFTA_GEN_ID && len(at.Data) == 4 {
				return binary.BigEndian.Uint32(at.Data), nil
			}
		}
	}
	return 0, errors.New("read the generation of the rules: the kernel's reply lacks it")
}

// adopt compares the tables that an earlier daemon left with the wanted elements, and with
// those that this daemon has set itself. It returns the differences in words. With keep,
// these elements become what the tables must hold.
func (f *firewall) adopt(want map[string][]element, keep bool) ([]string, error) {
	now, err := f.readGeneration()
	if err != nil {
		return nil, err
	}
	seen, err := f.read()
	if err != nil {
		return nil, err
	}
	next := &firewall{conn: f.conn, generationConn: f.generationConn, flows: f.flows}
	next.clear()
	for owner, elements := range f.owners {
		if owner != unowned {
			next.assign(owner, slices.Collect(maps.Keys(elements)))
		}
	}
	for _, owner := range sortedKeys(want) {
		next.assign(owner, want[owner])
	}
	found := seen.faults(next.holder)
	if keep {
		next.generation, next.verified = now, len(found) == 0
		*f = *next
	}
	return found, nil
}

// taps returns the names of an owner's taps in the tables.
func (f *firewall) taps(owner string) []string {
	var names []string
	for e := range f.owners[owner] {
		if e.set == setAssigned || e.set == setLearned {
			names = append(names, strings.TrimRight(e.key, "\x00"))
		}
	}
	return names
}
