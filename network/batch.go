package network

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

const (
	// elementsPerMessage keeps a message below the 64 KiB limit of its attributes.
	elementsPerMessage = 256
	// meterTimeout is how long a meter remembers a tap that sends nothing, and how long a stray
	// address is known.
	meterTimeout = time.Minute
	// meterSize is the capacity of a meter: 16 bridges with 1024 ports each. A tap
	// beyond it is not limited.
	meterSize = 16 << 10
)

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
		return cmp.Or(strings.Compare(x.set, y.set), strings.Compare(x.key, y.key))
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
	case e.last != "":
		k.KeyEnd = []byte(e.last)
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
