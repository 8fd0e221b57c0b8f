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
	// elementsAtOnce is how many elements go into one message, whose attributes
	// have at most 64 KiB.
	elementsAtOnce = 256
	// batchBytes is room in the socket for the largest batch, which is sent at once.
	batchBytes = 8 << 20
	// A tap that is gone is forgotten after a while. One that a full meter has no
	// room for is not limited: there is room for 16 bridges with all their ports.
	meterMemory = time.Minute
	meterRoom   = 16 << 10
	// nobody owns the elements that a daemon before this one has left.
	nobody = ""
)

// firewall is our two tables. What is in their sets has an owner: a network or a
// VM. It is changed element by element where that goes, and rebuilt in one
// atomic batch where not, so that there is no moment without rules.
type firewall struct {
	owners map[string]map[element]bool
	holder map[element]string // the reverse of owners
	values map[mapKey]element // the held elements of maps

	// Both sockets are kept: the kernel ends a netfilter socket only when a grace
	// period has passed since the last deletion of any rule, which takes 10 ms.
	conn  *nftables.Conn // for batches
	asker *netlink.Conn  // for the generation

	flows *flows

	generation uint32 // of the host's rule set after our last look at our tables
	sure       bool   // nothing of ours can be missing as long as the generation stays
}

// newFirewall returns the firewall with what a daemon before this one has left
// in it, and an error if the kernel has no nftables.
func newFirewall() (*firewall, error) {
	f := &firewall{}
	f.clear()
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("the kernel has no nftables, or does not let us: %w", err)
	}
	seen, err := f.read()
	if err != nil {
		f.close()
		return nil, fmt.Errorf("read the nftables rules: %w", err)
	}
	if seen == nil {
		return f, nil
	}
	f.give(nobody, seen.elements)
	return f, nil
}

func (f *firewall) open() (err error) {
	if f.asker, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
		return err
	}
	if f.flows, err = newFlows(); err == nil {
		err = f.dial()
	}
	if err == nil {
		_, err = f.ask()
	}
	if err != nil {
		f.close()
	}
	return err
}

// dial opens conn if it is closed.
func (f *firewall) dial() (err error) {
	if f.conn != nil {
		return nil
	}
	f.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(batchBytes), c.SetReadBuffer(batchBytes))
	}))
	return err
}

// hangUp closes conn. A request that failed may leave unread replies on it, which
// would be taken for the replies to the next request.
func (f *firewall) hangUp() {
	if f.conn != nil {
		f.conn.CloseLasting()
		f.conn = nil
	}
}

func (f *firewall) close() {
	f.hangUp()
	if f.asker != nil {
		f.asker.Close()
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

// give records that an owner has elements, and takes them from whoever had them.
func (f *firewall) give(owner string, elements []element) {
	has := make(map[element]bool, len(elements))
	for _, e := range elements {
		if old, held := f.holder[e]; held && old != owner {
			delete(f.owners[old], e)
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

// set makes elements all that an owner has in the tables.
func (f *firewall) set(owner string, elements []element) error {
	want := make(map[element]bool, len(elements))
	var add, remove []element
	for _, e := range elements {
		if _, held := f.holder[e]; !held && !want[e] {
			add = append(add, e)
		}
		want[e] = true
		if old, held := f.rival(e); held && !want[old] {
			remove = append(remove, old) // a map has one value for a key
		}
	}
	for e := range f.owners[owner] {
		if !want[e] && !slices.Contains(remove, e) {
			remove = append(remove, e)
		}
	}
	if len(add)+len(remove) == 0 {
		f.give(owner, elements)
		return nil
	}
	for _, e := range remove {
		if old := f.holder[e]; old != owner {
			delete(f.owners[old], e)
			f.release(e)
		}
	}
	f.give(owner, elements)
	f.flows.over(remove)
	err := f.write(func(c *batch) { c.change(add, remove) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		return f.rebuild() // somebody has been there
	}
	return err
}

// rival returns the element that has the key of e in a map, with another value.
// Only adopted ones can be that, or those of an owner that changes.
func (f *firewall) rival(e element) (element, bool) {
	old, held := f.values[e.mapKey()]
	return old, held && old.data != e.data
}

// rebuild replaces both tables as a whole.
func (f *firewall) rebuild() error {
	return f.write(func(c *batch) { c.build(slices.Collect(maps.Keys(f.holder))) })
}

// write sends one batch, and keeps count of the generations. A connection on
// which something failed is given up: what is left unread on it would be taken
// for the answer to the next batch.
func (f *firewall) write(fill func(*batch)) error {
	if err := f.dial(); err != nil {
		return err
	}
	b := newBatch(f.conn)
	fill(b)
	if err := b.send(); err != nil {
		f.sure = false
		f.hangUp()
		return err
	}
	now, err := f.ask()
	if err != nil {
		f.sure = false
		return err
	}
	f.sure = f.sure && now == f.generation+1 // else somebody else has written too
	f.generation = now
	return nil
}

// faults returns what of the tables is not as it was written, in words; it is
// cheap if the generation of the host's rules is the one of our last look.
func (f *firewall) faults() ([]string, error) {
	now, err := f.ask()
	if err != nil {
		return nil, err
	}
	if f.sure && now == f.generation {
		return nil, nil
	}
	seen, err := f.read()
	if err != nil {
		return nil, err
	}
	found := seen.faults(f.holder)
	again, err := f.ask()
	if err != nil {
		return nil, err
	}
	f.generation, f.sure = again, len(found) == 0 && again == now
	return found, nil
}

// read returns the tables of the host over the kept connection.
func (f *firewall) read() (*seenTables, error) {
	if err := f.dial(); err != nil {
		return nil, err
	}
	seen, err := readTables(f.conn)
	if err != nil {
		f.hangUp()
	}
	return seen, err
}

// ask returns the number of the host's present rule set, its generation, which
// every change of it raises.
func (f *firewall) ask() (uint32, error) {
	answers, err := f.asker.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("ask for the generation of the rules: %w", err)
	}
	for _, a := range answers {
		if len(a.Data) < 4 {
			continue
		}
		attrs, err := netlink.UnmarshalAttributes(a.Data[4:])
		if err != nil {
			return 0, err
		}
		for _, at := range attrs {
			if at.Type == unix.NFTA_GEN_ID && len(at.Data) == 4 {
				return binary.BigEndian.Uint32(at.Data), nil
			}
		}
	}
	return 0, errors.New("the kernel has not said the generation of the rules")
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

func (s setSpec) set() *nftables.Set {
	set := &nftables.Set{Table: s.table, Name: s.name, Interval: s.interval, IsMap: s.data != nil, KeyType: s.key[0]}
	if len(s.key) > 1 {
		set.Concatenation, set.KeyType = true, nftables.MustConcatSetType(s.key...)
	} else if s.key[0] == nftables.TypeIFName {
		set.KeyByteOrder = binaryutil.NativeEndian // for `nft list` alone
	}
	if s.meter {
		set.Dynamic, set.HasTimeout, set.Timeout, set.Size = true, true, meterMemory, meterRoom
	}
	if len(s.data) == 1 {
		set.DataType = s.data[0]
	} else if len(s.data) > 1 {
		set.DataType = nftables.MustConcatSetType(s.data...)
	}
	return set
}

// build replaces the tables. Adding a table before it is deleted makes that
// succeed whether or not there was one.
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
			chain.Type, chain.Hooknum, chain.Priority, chain.Policy = c.kind, c.hook, nftables.ChainPriorityRef(nftables.ChainPriority(c.priority)), &policy
		}
		b.conn.AddChain(chain)
	}
	for _, s := range setSpecs() {
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
	b.conn.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: chain}, Exprs: r.exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
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

// eachSet calls f with the elements of each set, in an order that is always the
// same.
func (b *batch) eachSet(elements []element, f func(*nftables.Set, []nftables.SetElement)) {
	slices.SortFunc(elements, func(x, y element) int {
		return strings.Compare(x.set+"\x00"+x.key, y.set+"\x00"+y.key)
	})
	var bySet = map[string][]nftables.SetElement{}
	for _, e := range elements {
		bySet[e.set] = append(bySet[e.set], e.kernel())
	}
	for _, s := range setSpecs() {
		for some := range slices.Chunk(bySet[s.name], elementsAtOnce) {
			f(b.sets[s.name], some)
		}
	}
}

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

// rateChain is the chain that limits what comes from a tap.
func rateChain(e element) string { return "rate-" + strings.TrimRight(e.key, "\x00") }

// rateRule drops what is over a rate. It is a limit of nftables because not
// every kernel has the police action of tc, and because it counts before the
// bridge copies a frame to several ports. A tenth of a second may come at once,
// and always a few of the largest segments a guest hands over.
func rateRule(e element) ruleSpec {
	rate := binary.BigEndian.Uint64([]byte(e.data))
	burst := min(max(rate/10, 256<<10), 1<<31)
	return ruleSpec{comment: fmt.Sprintf("over %d kbit/s", rate*8/1000), exprs: all(load(
		&expr.Limit{Type: expr.LimitTypePktBytes, Rate: rate, Unit: expr.LimitTimeSecond, Burst: uint32(burst), Over: true}), drop())}
}

func (b *batch) fail(err error) { b.err = errors.Join(b.err, err) }

func (b *batch) send() error {
	if b.err != nil {
		return b.err
	}
	return b.conn.Flush()
}

// taps returns the interfaces that an owner has in the tables.
func (f *firewall) taps(owner string) []string {
	var names []string
	for e := range f.owners[owner] {
		if e.set == setAssigned || e.set == setLearned {
			names = append(names, strings.TrimRight(e.key, "\x00"))
		}
	}
	return names
}

// settle compares the tables that a daemon before this one has left with what
// is wanted, besides what this daemon has let pass itself. With keep that is
// from now on what is to be in them.
func (f *firewall) settle(want map[string][]element, keep bool) ([]string, error) {
	now, err := f.ask()
	if err != nil {
		return nil, err
	}
	seen, err := f.read()
	if err != nil {
		return nil, err
	}
	next := &firewall{conn: f.conn, asker: f.asker, flows: f.flows}
	next.clear()
	for owner, elements := range f.owners {
		if owner != nobody {
			next.give(owner, slices.Collect(maps.Keys(elements)))
		}
	}
	for _, owner := range sorted(want) {
		next.give(owner, want[owner])
	}
	found := seen.faults(next.holder)
	if keep {
		next.generation, next.sure = now, len(found) == 0
		*f = *next
	}
	return found, nil
}
