package network

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A ruleset holds the nftables rules of other programs, to find out what they do with a
// packet. Rules of iptables are among them if it is the nft variant, which is usual.
type ruleset struct {
	chains []foreignChain
	sets   map[string]foreignSet // by setKey
}

type foreignChain struct {
	*nftables.Chain
	rules []*nftables.Rule
}

type foreignSet struct {
	*nftables.Set
	elements []nftables.SetElement // in order of their keys
}

// maxSetElements is the size from which the elements of a set are not read: the result of a
// look-up is then unknown. Sets of that size hold addresses of the internet.
const maxSetElements = 4096

func setKey(t *nftables.Table, name string) string { return chainKey(t, t.Name+"/"+name) }

// readRuleset reads the rules of all tables but vmand's.
func readRuleset(conn *nftables.Conn) (*ruleset, error) {
	chains, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	rs := &ruleset{sets: map[string]foreignSet{}}
	tables := map[string]*nftables.Table{}
	for _, c := range chains {
		family := c.Table.Family
		if c.Table.Name == tableName || family != nftables.TableFamilyIPv4 &&
			family != nftables.TableFamilyIPv6 && family != nftables.TableFamilyINet {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, err
		}
		rs.chains = append(rs.chains, foreignChain{c, rules})
		tables[chainKey(c.Table, c.Table.Name)] = c.Table
	}
	for _, t := range tables {
		sets, err := conn.GetSets(t)
		if err != nil {
			return nil, err
		}
		for _, s := range sets {
			elements, err := conn.GetSetElements(s)
			if err != nil || len(elements) > maxSetElements {
				continue // a look-up in it has an unknown result
			}
			slices.SortStableFunc(elements, func(a, b nftables.SetElement) int {
				// The end of a range comes before the start of the next one.
				return cmp.Or(bytes.Compare(a.Key, b.Key), order(b.IntervalEnd, a.IntervalEnd))
			})
			rs.sets[setKey(t, s.Name)] = foreignSet{s, elements}
		}
	}
	return rs, nil
}

func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// A packet is one whose way through the host's rules is in question.
type packet struct {
	family      byte // unix.NFPROTO_IPV4 or NFPROTO_IPV6
	bridge      string
	in, out     string // interfaces; empty: none, or an unknown one other than bridge
	source, to  []byte // addresses; nil: unknown
	protocol    byte
	port        uint16 // the destination port; 0: unknown
	sourcePort  uint16 // 0: unknown
	toHost      bool
	established bool // a reply; otherwise the first packet of a connection
}

// isIn reports whether a table of a family sees the packet.
func (p packet) isIn(family nftables.TableFamily) bool {
	return family == nftables.TableFamilyINet || byte(family) == p.family
}

// drops returns the base chains at a hook that drop or reject a packet. It leaves out a
// chain that may accept it by a rule which cannot be judged here.
func (rs *ruleset) drops(hook *nftables.ChainHook, p packet) []foreignChain {
	var found []foreignChain
	for _, c := range rs.chains {
		if c.Hooknum == nil || *c.Hooknum != *hook || c.Type != nftables.ChainTypeFilter || !p.isIn(c.Table.Family) {
			continue
		}
		w := walk{rs: rs, p: p}
		verdict := w.chain(c, 0)
		if verdict == goesOn && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			verdict = dropped
		}
		if verdict == dropped && !w.mayAccept {
			found = append(found, c)
		}
	}
	return found
}

// The results of a walk through rules.
type result int

const (
	goesOn result = iota
	accepted
	dropped
)

// Whether a rule matches.
type truth int

const (
	no truth = iota
	perhaps
	yes
)

// A walk is the way of one packet through one base chain.
type walk struct {
	rs        *ruleset
	p         packet
	mayAccept bool // a rule that cannot be judged accepts the packet if it matches

	data  [64]byte // the registers
	known [64]bool
	other [64]bool // an interface other than the bridge begins here
}

// maxDepth is the limit of the kernel for nested jumps.
const maxDepth = 16

func (w *walk) chain(c foreignChain, depth int) result {
	if depth > maxDepth {
		return goesOn
	}
	for _, r := range c.rules {
		v, match := w.rule(r)
		if match == no || v == nil {
			continue
		}
		switch v.Kind {
		case expr.VerdictAccept:
			if match == yes {
				return accepted
			}
			w.mayAccept = true
		case expr.VerdictDrop:
			if match == yes {
				return dropped
			}
		case expr.VerdictReturn:
			if match == yes {
				return goesOn
			}
		case expr.VerdictJump, expr.VerdictGoto:
			target, ok := w.rs.target(c.Table, v.Chain)
			if !ok {
				continue
			}
			result := w.chain(target, depth+1)
			switch {
			case match == perhaps:
				w.mayAccept = w.mayAccept || result == accepted
			case result != goesOn:
				return result
			case v.Kind == expr.VerdictGoto:
				return goesOn
			}
		}
	}
	return goesOn
}

func (rs *ruleset) target(t *nftables.Table, name string) (foreignChain, bool) {
	i := slices.IndexFunc(rs.chains, func(c foreignChain) bool {
		return c.Name == name && c.Table.Name == t.Name && c.Table.Family == t.Family
	})
	if i < 0 {
		return foreignChain{}, false
	}
	return rs.chains[i], true
}

// rule returns the verdict of a rule, nil if it has none, and whether it matches.
func (w *walk) rule(r *nftables.Rule) (*expr.Verdict, truth) {
	w.known, w.other = [64]bool{}, [64]bool{}
	match := yes
	for _, e := range r.Exprs {
		now := yes
		switch e := e.(type) {
		case *expr.Verdict:
			return e, match
		case *expr.Reject:
			return &expr.Verdict{Kind: expr.VerdictDrop}, match
		case *expr.Target:
			return targetVerdict(e), match
		case *expr.Counter, *expr.Log:
		case *expr.Lookup:
			v, found := w.lookUp(r.Table, e)
			if e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT && found != no {
				w.mayAccept = w.mayAccept || v == nil
				return v, min(match, found)
			}
			now = found
		default:
			now = w.expression(e)
		}
		if match = min(match, now); match == no {
			return nil, no
		}
	}
	return nil, match
}

// targetVerdict returns the verdict of an iptables target. It is nil if the packet goes on.
func targetVerdict(t *expr.Target) *expr.Verdict {
	if t.Name == "REJECT" || t.Name == "DROP" {
		return &expr.Verdict{Kind: expr.VerdictDrop}
	}
	return nil
}

// expression carries out an expression and reports whether the rule goes on.
func (w *walk) expression(e expr.Any) truth {
	switch e := e.(type) {
	case *expr.Meta:
		value := w.meta(e.Key)
		w.load(e.Register, value)
		isName := e.Key == expr.MetaKeyIIFNAME || e.Key == expr.MetaKeyOIFNAME
		w.other[offset(e.Register)] = isName && value == nil
	case *expr.Payload:
		w.load(e.DestRegister, w.payload(e))
	case *expr.Ct:
		w.load(e.Register, w.conntrack(e.Key))
	case *expr.Fib:
		w.load(e.Register, w.addressType(e))
	case *expr.Bitwise:
		w.bitwise(e)
	case *expr.Cmp:
		return w.compare(e)
	case *expr.Range:
		return w.inRange(e)
	case *expr.Match:
		return w.extension(e.Info)
	default:
		return perhaps
	}
	return yes
}

// offset returns the place of a register. Registers 1 to 4 have 16 bytes, and the others
// are parts of 4 bytes of them.
func offset(register uint32) uint32 {
	if register >= unix.NFT_REG32_00 {
		return (register - unix.NFT_REG32_00) * 4 % 64
	}
	return (register - 1) * 16 % 64
}

// load stores a value in a register; nil is an unknown one of 16 bytes.
func (w *walk) load(register uint32, value []byte) {
	from := offset(register)
	for i := range uint32(16) {
		if from+i < 64 && (value == nil || i < uint32(len(value)+3)/4*4) {
			w.known[from+i], w.other[from+i] = value != nil, false
			w.data[from+i] = 0
		}
	}
	copy(w.data[from:], value)
}

// read returns bytes of a register. It is not ok if one is unknown.
func (w *walk) read(register uint32, length int) ([]byte, bool) {
	from := int(offset(register))
	if from+length > 64 || slices.Contains(w.known[from:from+length], false) {
		return nil, false
	}
	return w.data[from : from+length], true
}

func (w *walk) meta(key expr.MetaKey) []byte {
	switch key {
	case expr.MetaKeyIIFNAME:
		return name(w.p.in)
	case expr.MetaKeyOIFNAME:
		return name(w.p.out)
	case expr.MetaKeyNFPROTO:
		return []byte{w.p.family}
	case expr.MetaKeyL4PROTO:
		return []byte{w.p.protocol}
	case expr.MetaKeyPROTOCOL:
		if w.p.family == unix.NFPROTO_IPV6 {
			return []byte{0x86, 0xdd}
		}
		return []byte{0x08, 0}
	}
	return nil
}

// name returns an interface name as the kernel compares it, or nil for an unknown one.
func name(s string) []byte {
	if s == "" {
		return nil
	}
	return ifname(s)
}

// payload returns a field of the packet's headers, or nil for an unknown one.
func (w *walk) payload(e *expr.Payload) []byte {
	header, known := make([]byte, 64), make([]bool, 64)
	put := func(at int, value []byte) {
		copy(header[at:], value)
		for i := range value {
			known[at+i] = true
		}
	}
	switch {
	case e.Base == expr.PayloadBaseTransportHeader:
		if w.p.sourcePort != 0 {
			put(0, binary.BigEndian.AppendUint16(nil, w.p.sourcePort))
		}
		if w.p.port != 0 {
			put(2, binary.BigEndian.AppendUint16(nil, w.p.port))
		}
	case e.Base == expr.PayloadBaseNetworkHeader && w.p.family == unix.NFPROTO_IPV4:
		put(9, []byte{w.p.protocol})
		put(12, w.p.source)
		put(16, w.p.to)
	case e.Base == expr.PayloadBaseNetworkHeader:
		put(6, []byte{w.p.protocol})
		put(8, w.p.source)
		put(24, w.p.to)
	}
	end := int(e.Offset + e.Len)
	if end > len(header) || slices.Contains(known[e.Offset:end], false) {
		return nil
	}
	return header[e.Offset:end]
}

func (w *walk) conntrack(key expr.CtKey) []byte {
	switch key {
	case expr.CtKeySTATE:
		if w.p.established {
			return binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED)
		}
		return binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW)
	case expr.CtKeyDIRECTION:
		if w.p.established {
			return []byte{1}
		}
		return []byte{0}
	}
	return nil
}

func (w *walk) addressType(e *expr.Fib) []byte {
	if !e.ResultADDRTYPE || !e.FlagDADDR {
		return nil
	}
	if w.p.toHost {
		return binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)
	}
	return binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)
}

func (w *walk) bitwise(e *expr.Bitwise) {
	value, known := w.read(e.SourceRegister, int(e.Len))
	if !known || len(e.Mask) < len(value) || len(e.Xor) < len(value) {
		w.load(e.DestRegister, nil)
		return
	}
	out := make([]byte, len(value))
	for i := range value {
		out[i] = value[i]&e.Mask[i] ^ e.Xor[i]
	}
	w.load(e.DestRegister, out)
}

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

func (w *walk) compare(e *expr.Cmp) truth {
	value, known := w.read(e.Register, len(e.Data))
	switch {
	case !known && w.other[offset(e.Register)] && bytes.Equal(e.Data, ifname(w.p.bridge)):
		return truthOf(e.Op == expr.CmpOpNeq)
	case !known:
		return perhaps
	}
	c := bytes.Compare(value, e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		return truthOf(c == 0)
	case expr.CmpOpNeq:
		return truthOf(c != 0)
	case expr.CmpOpLt:
		return truthOf(c < 0)
	case expr.CmpOpLte:
		return truthOf(c <= 0)
	case expr.CmpOpGt:
		return truthOf(c > 0)
	}
	return truthOf(c >= 0)
}

func (w *walk) inRange(e *expr.Range) truth {
	value, known := w.read(e.Register, len(e.FromData))
	if !known {
		return perhaps
	}
	in := bytes.Compare(value, e.FromData) >= 0 && bytes.Compare(value, e.ToData) <= 0
	return truthOf(in == (e.Op == expr.CmpOpEq))
}

// lookUp looks up a key in a set or a verdict map. The verdict is nil for a set.
func (w *walk) lookUp(t *nftables.Table, e *expr.Lookup) (*expr.Verdict, truth) {
	s, ok := w.rs.sets[setKey(t, e.SetName)]
	if !ok {
		return nil, perhaps
	}
	// A register of a concatenation is padded to four bytes, and so are the keys.
	length := int(s.KeyType.Bytes)
	if len(s.elements) > 0 {
		length = len(s.elements[0].Key)
	}
	key, known := w.read(e.SourceRegister, length)
	if !known {
		return nil, perhaps
	}
	var last *nftables.SetElement // the one with the greatest key that is not above
	for i := range s.elements {
		el := &s.elements[i]
		if len(el.KeyEnd) > 0 {
			return nil, perhaps // ranges of a concatenation
		}
		if bytes.Compare(el.Key, key) <= 0 {
			last = el
		}
	}
	found := last != nil && !last.IntervalEnd && (s.Interval || bytes.Equal(last.Key, key))
	switch {
	case found && e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT:
		return verdictOf(last.Val), yes
	case found && e.IsDestRegSet:
		w.load(e.DestRegister, last.Val)
	}
	return nil, truthOf(found != e.Invert)
}

// verdictOf returns the verdict of an entry of a verdict map, or nil if it cannot be read.
func verdictOf(data []byte) *expr.Verdict {
	attrs, err := netlink.UnmarshalAttributes(data)
	if err != nil {
		return nil
	}
	var v expr.Verdict
	for _, at := range attrs {
		switch {
		case at.Type == unix.NFTA_VERDICT_CODE && len(at.Data) == 4:
			v.Kind = expr.VerdictKind(int32(binary.BigEndian.Uint32(at.Data)))
		case at.Type == unix.NFTA_VERDICT_CHAIN:
			v.Chain = string(bytes.TrimRight(at.Data, "\x00"))
		}
	}
	return &v
}

// extension reports whether a match of iptables holds.
func (w *walk) extension(info xt.InfoAny) truth {
	ports := func(protocol byte, to [2]uint16, from [2]uint16, inverted bool) truth {
		switch {
		case w.p.protocol != protocol:
			return no
		case w.p.port == 0 && to != [2]uint16{0, 0xffff}, from != [2]uint16{0, 0xffff}:
			return perhaps
		}
		return truthOf((w.p.port >= to[0] && w.p.port <= to[1]) != inverted)
	}
	switch m := info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Tcp:
		return ports(unix.IPPROTO_TCP, m.DstPorts, m.SrcPorts, m.InvFlags&xt.TcpInvDestPorts != 0)
	case *xt.Udp:
		return ports(unix.IPPROTO_UDP, m.DstPorts, m.SrcPorts, m.InvFlags&xt.UdpInvDestPorts != 0)
	case *xt.ConntrackMtinfo1:
		return w.state(m.ConntrackMtinfoBase, uint16(m.StateMask))
	case *xt.ConntrackMtinfo2:
		return w.state(m.ConntrackMtinfoBase, m.StateMask)
	case *xt.ConntrackMtinfo3:
		return w.state(m.ConntrackMtinfoBase, m.StateMask)
	case *xt.AddrTypeV1:
		return w.destinationType(m.Source, m.Dest, m.Flags&2 != 0)
	case *xt.AddrType:
		return w.destinationType(m.Source, m.Dest, m.InvertDest)
	}
	return perhaps
}

// state judges the iptables match conntrack. Its mask has bit 1 for established connections
// and bit 3 for new ones (XT_CONNTRACK_STATE_BIT).
func (w *walk) state(m xt.ConntrackMtinfoBase, mask uint16) truth {
	if xt.ConntrackFlags(m.MatchFlags)&^xt.ConntrackStateAlias != xt.ConntrackState {
		return perhaps
	}
	bit := uint16(1 << 3)
	if w.p.established {
		bit = 1 << 1
	}
	return truthOf((mask&bit != 0) != (xt.ConntrackFlags(m.InvertFlags)&xt.ConntrackState != 0))
}

func (w *walk) destinationType(source, to uint16, inverted bool) truth {
	bit := uint16(1 << unix.RTN_UNICAST)
	if w.p.toHost {
		bit = 1 << unix.RTN_LOCAL
	}
	if source != 0 || to == 0 {
		return perhaps
	}
	return truthOf((to&bit != 0) != inverted)
}

// A rulesetCache holds the rules of other programs until the rules of the host change.
type rulesetCache struct {
	rules      *ruleset
	generation uint32
	next       time.Time // when the rules may be read again
}

// A host with tens of thousands of rules that change often would keep vmand reading: if a
// read took longer than slowRead, the next one waits for rereadFactor times as long.
const (
	slowRead     = 50 * time.Millisecond
	rereadFactor = 50
)

// foreignRules returns the rules of other programs. It must be called with mu held.
func (n *Networks) foreignRules() (*ruleset, error) {
	generation, err := n.firewall.readGeneration()
	if err != nil {
		return nil, err
	}
	c := &n.foreign
	if c.rules != nil && (c.generation == generation || time.Now().Before(c.next)) {
		return c.rules, nil
	}
	if err := n.firewall.connect(); err != nil {
		return nil, err
	}
	began := time.Now()
	rules, err := readRuleset(n.firewall.conn)
	if err != nil {
		n.firewall.disconnect()
		return nil, err
	}
	n.foreign = rulesetCache{rules: rules, generation: generation}
	if took := time.Since(began); took > slowRead {
		n.foreign.next = time.Now().Add(took * rereadFactor)
	}
	return rules, nil
}

// hasChain reports whether a table has a chain with a name that begins with prefix.
func (rs *ruleset) hasChain(t *nftables.Table, prefix string) bool {
	return slices.ContainsFunc(rs.chains, func(c foreignChain) bool {
		return c.Table.Name == t.Name && c.Table.Family == t.Family && strings.HasPrefix(c.Name, prefix)
	})
}
