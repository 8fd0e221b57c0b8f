package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// elementsPerMessage keeps a message below the 64 KiB limit of its attributes.
	elementsPerMessage = 256
	// batchBytes is the size of the socket's buffers: a batch is sent in one piece.
	batchBytes = 8 << 20
	// meterTimeout is how long a meter remembers a tap that sends nothing.
	meterTimeout = time.Minute
	// meterSize is the capacity of a meter: 16 bridges with 1024 ports each. A tap
	// beyond it is not limited.
	meterSize = 16 << 10
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
	for _, e := range elements {
		if _, held := f.holder[e]; !held && !want[e] {
			add = append(add, e)
		}
		want[e] = true
		if old, held := f.otherValue(e); held && !want[old] {
			remove = append(remove, old) // a map has one value for a key
		}
	}
	for e := range f.owners[owner] {
		if !want[e] && !slices.Contains(remove, e) {
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
	f.flows.noteRemoved(remove)
	err := f.write(func(b *batch) { b.change(add, remove) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		return f.rebuild() // another program has changed the tables
	}
	return err
}

// otherValue returns the held element with the map key of e and a different value. It
// belongs to an earlier daemon, or to an owner that changes.
func (f *firewall) otherValue(e element) (element, bool) {
	old, held := f.values[e.mapKey()]
	return old, held && old.data != e.data
}

// rebuild replaces both tables in one batch.
func (f *firewall) rebuild() error {
	return f.write(func(b *batch) { b.build(slices.Collect(maps.Keys(f.holder))) })
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

// check returns how the tables differ from what was written, in words, or nil if they do
// not. It reads the tables only if the generation of the host's rule set has changed
// since they were verified.
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

// batch is one transaction.
type batch struct {
	conn *nftables.Conn
	sets map[string]*nftables.Set
	err  error
}

func newBatch(conn *nftables.Conn) *batch {
	b := &batch{conn: conn, sets: map[string]*nftables.Set{}}
	for _, s := range setSpecs() {
		b.sets[s.name] = s.set()
	}
	return b
}

// set returns the set of a spec for the kernel.
func (s setSpec) set() *nftables.Set {
	set := &nftables.Set{
		Table:    s.table,
		Name:     s.name,
		Interval: s.interval,
		IsMap:    s.data != nil,
		KeyType:  s.key[0],
	}
	if len(s.key) > 1 {
		set.Concatenation, set.KeyType = true, nftables.MustConcatSetType(s.key...)
	} else if s.key[0] == nftables.TypeIFName {
		set.KeyByteOrder = binaryutil.NativeEndian // only for the output of `nft list`
	}
	if s.meter {
		set.Dynamic, set.HasTimeout, set.Timeout, set.Size = true, true, meterTimeout, meterSize
	}
	if len(s.data) == 1 {
		set.DataType = s.data[0]
	} else if len(s.data) > 1 {
		set.DataType = nftables.MustConcatSetType(s.data...)
	}
	return set
}

// build replaces the tables. A table is added before it is deleted, so that the deletion
// succeeds whether or not it existed.
func (b *batch) build(elements []element) {
	for _, t := range []*nftables.Table{inetTable, bridgeTable} {
		b.conn.AddTable(t)
		b.conn.DelTable(t)
		b.conn.AddTable(t)
	}
	policy := nftables.ChainPolicyAccept
	chains := chainSpecs()
	for _, c := range chains {
		chain := &nftables.Chain{Table: c.table, Name: c.name}
		if c.hook != nil {
			chain.Type, chain.Hooknum, chain.Policy = c.kind, c.hook, &policy
			chain.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.priority))
		}
		b.conn.AddChain(chain)
	}
	for i, s := range setSpecs() {
		// The id is unique within the batch. Without one, AddSet takes it from a global
		// counter that is not safe for concurrent use.
		b.sets[s.name].ID = uint32(i + 1)
		b.fail(b.conn.AddSet(b.sets[s.name], nil))
	}
	b.change(elements, nil)
	for _, c := range chains {
		for _, r := range c.rules {
			b.addRule(c.table, c.name, r)
		}
	}
}

func (b *batch) addRule(t *nftables.Table, chain string, r ruleSpec) {
	b.conn.AddRule(&nftables.Rule{
		Table:    t,
		Chain:    &nftables.Chain{Table: t, Name: chain},
		Exprs:    r.exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
	})
}

// change removes elements and adds others.
func (b *batch) change(add, remove []element) {
	b.eachSet(remove, func(set *nftables.Set, elements []nftables.SetElement) {
		b.fail(b.conn.SetDeleteElements(set, elements))
	})
	for _, e := range remove {
		if e.set == setRates {
			chain := &nftables.Chain{Table: bridgeTable, Name: rateChain(e)}
			b.conn.FlushChain(chain)
			b.conn.DelChain(chain)
		}
	}
	for _, e := range add {
		if e.set == setRates {
			b.conn.AddChain(&nftables.Chain{Table: bridgeTable, Name: rateChain(e)})
			b.addRule(bridgeTable, rateChain(e), rateRule(e))
		}
	}
	b.eachSet(add, func(set *nftables.Set, elements []nftables.SetElement) {
		b.fail(b.conn.SetAddElements(set, elements))
	})
}

// eachSet calls f with the elements of each set, in a fixed order and in pieces of
// elementsPerMessage.
func (b *batch) eachSet(elements []element, f func(*nftables.Set, []nftables.SetElement)) {
	slices.SortFunc(elements, func(x, y element) int {
		return strings.Compare(x.set+"\x00"+x.key, y.set+"\x00"+y.key)
	})
	bySet := map[string][]nftables.SetElement{}
	for _, e := range elements {
		bySet[e.set] = append(bySet[e.set], e.kernel())
	}
	for _, s := range setSpecs() {
		for piece := range slices.Chunk(bySet[s.name], elementsPerMessage) {
			f(b.sets[s.name], piece)
		}
	}
}

// kernel returns e as the kernel takes it.
func (e element) kernel() nftables.SetElement {
	k := nftables.SetElement{Key: []byte(e.key), IntervalEnd: e.end}
	switch {
	case e.set == setRates:
		k.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: rateChain(e)}
	case e.data != "":
		k.Val = []byte(e.data)
	}
	return k
}

// rateChain returns the name of the chain that limits the frames from a tap.
func rateChain(e element) string { return "rate-" + strings.TrimRight(e.key, "\x00") }

// rateRule returns the rule that drops frames above the rate of e. It uses the limit of
// nftables, since not every kernel has the police action of tc, and since it counts a
// frame before the bridge copies it to several ports. The burst is a tenth of a second,
// but at least 256 KiB: a few of the largest segments that a guest hands over.
func rateRule(e element) ruleSpec {
	rate := binary.BigEndian.Uint64([]byte(e.data))
	burst := min(max(rate/10, 256<<10), 1<<31)
	limit := &expr.Limit{
		Type:  expr.LimitTypePktBytes,
		Rate:  rate,
		Unit:  expr.LimitTimeSecond,
		Burst: uint32(burst),
		Over:  true,
	}
	return ruleSpec{fmt.Sprintf("over %d kbit/s", rate*8/1000), all(load(limit), drop())}
}

func (b *batch) fail(err error) { b.err = errors.Join(b.err, err) }

func (b *batch) send() error {
	if b.err != nil {
		return b.err
	}
	return b.conn.Flush()
}
