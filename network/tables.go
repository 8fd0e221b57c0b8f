package network

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// seenTables holds vmand's tables as read from the kernel.
type seenTables struct {
	chains   map[string]seenChain // by chainKey
	elements []element
	sets     map[string]bool
}

type seenChain struct {
	*nftables.Chain
	comments []string // of the rules; empty for a rule of another program
}

func chainKey(t *nftables.Table, chain string) string { return fmt.Sprint(t.Family, "/", chain) }

// chainTitle returns family, table and name of a chain, as the nft command takes them.
func chainTitle(t *nftables.Table, chain string) string {
	family := "inet"
	if t.Family == bridgeTable.Family {
		family = "bridge"
	}
	return family + " " + t.Name + " " + chain
}

// readTables returns vmand's tables, or nil if one of them is missing.
func readTables(conn *nftables.Conn) (*seenTables, error) {
	seen := &seenTables{chains: map[string]seenChain{}, sets: map[string]bool{}}
	rates := map[string]string{} // by rate chain: its rate, as in element.data
	for _, t := range []*nftables.Table{inetTable, bridgeTable} {
		tables, err := conn.ListTablesOfFamily(t.Family)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(tables, func(has *nftables.Table) bool { return has.Name == t.Name }) {
			return nil, nil
		}
		sets, err := conn.GetSets(t)
		if err != nil {
			return nil, err
		}
		for _, s := range sets {
			seen.sets[s.Name] = true
		}
		if err := seen.readChains(conn, t, rates); err != nil {
			return nil, err
		}
	}
	return seen, seen.readSets(conn, rates)
}

// readChains reads the chains of a table, and the rates of its rate chains.
func (seen *seenTables) readChains(conn *nftables.Conn, t *nftables.Table, rates map[string]string) error {
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return err
	}
	for _, c := range chains {
		if c.Table.Name != t.Name {
			continue
		}
		rules, err := conn.GetRules(t, c)
		if err != nil {
			return err
		}
		sc := seenChain{Chain: c}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			sc.comments = append(sc.comments, comment)
			if rate, ok := rateOf(r); ok && strings.HasPrefix(c.Name, "rate-") {
				rates[c.Name] = rate
			}
		}
		seen.chains[chainKey(t, c.Name)] = sc
	}
	return nil
}

// rateOf returns the rate that a rule limits to. It is not ok if the rule has no limit.
func rateOf(r *nftables.Rule) (string, bool) {
	for _, e := range r.Exprs {
		if l, ok := e.(*expr.Limit); ok {
			return string(binary.BigEndian.AppendUint64(nil, l.Rate)), true
		}
	}
	return "", false
}

func (seen *seenTables) readSets(conn *nftables.Conn, rates map[string]string) error {
	for _, spec := range setSpecs() {
		if !seen.sets[spec.name] || spec.meter {
			continue
		}
		elements, err := conn.GetSetElements(spec.set())
		if err != nil {
			return fmt.Errorf("read the set %s: %w", spec.name, err)
		}
		for _, k := range elements {
			e := element{set: spec.name, key: string(k.Key), end: k.IntervalEnd, last: string(k.KeyEnd)}
			switch {
			case spec.interval && k.IntervalEnd && strings.Trim(e.key, "\x00") == "":
				continue // added by the kernel, before the first range
			case spec.name == setRates:
				e.data = rates[rateChain(e)]
			case spec.data != nil:
				e.data = string(k.Val)
			}
			seen.elements = append(seen.elements, e)
		}
	}
	return nil
}

// faults returns how the tables differ from the rules and the wanted elements, in words.
// It returns nil if they do not.
func (seen *seenTables) faults(want map[element]string) []string {
	if seen == nil {
		return []string{"the nftables tables vman are missing"}
	}
	return append(seen.chainFaults(), seen.elementFaults(want)...)
}

func (seen *seenTables) chainFaults() []string {
	var found []string
	expected := map[string]bool{}
	for _, c := range chainSpecs() {
		key := chainKey(c.table, c.name)
		expected[key] = true
		if fault := seen.chainFault(c, key); fault != "" {
			found = append(found, fault)
		}
	}
	for key, c := range seen.chains {
		if !expected[key] && !strings.Contains(key, "/rate-") {
			found = append(found, fmt.Sprintf("the nftables chain %s was added by another program",
				chainTitle(c.Table, c.Name)))
		}
	}
	return found
}

func (seen *seenTables) chainFault(c chainSpec, key string) string {
	has, ok := seen.chains[key]
	title := chainTitle(c.table, c.name)
	if !ok {
		return fmt.Sprintf("the nftables chain %s is missing", title)
	}
	if c.hook != nil && !has.isAt(*c.hook, c.priority) {
		return fmt.Sprintf("the nftables chain %s has another hook, priority or policy", title)
	}
	var comments []string
	for _, r := range c.rules {
		comments = append(comments, r.comment)
	}
	if !slices.Equal(comments, has.comments) {
		return fmt.Sprintf("the rules of the nftables chain %s were changed", title)
	}
	return ""
}

// isAt reports whether a chain has a hook and a priority, and the policy accept.
func (c seenChain) isAt(hook nftables.ChainHook, priority int) bool {
	return c.Hooknum != nil && *c.Hooknum == hook &&
		c.Priority != nil && int(*c.Priority) == priority &&
		c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept
}

func (seen *seenTables) elementFaults(want map[element]string) []string {
	var found []string
	for _, s := range setSpecs() {
		if !seen.sets[s.name] {
			found = append(found, fmt.Sprintf("the nftables set %s is missing", s.name))
		}
	}
	missing := maps.Clone(want)
	foreign := map[string]int{} // by set: elements that are not wanted
	for _, e := range seen.elements {
		if _, ok := want[e]; !ok {
			foreign[e.set]++
		}
		delete(missing, e)
	}
	lost := map[string]int{} // by set: elements that are missing
	for e := range missing {
		lost[e.set]++
	}
	for _, set := range sortedKeys(lost) {
		found = append(found, fmt.Sprintf("%d elements of the nftables set %s are missing", lost[set], set))
	}
	for _, set := range sortedKeys(foreign) {
		found = append(found, fmt.Sprintf("%d elements of the nftables set %s are not vmand's", foreign[set], set))
	}
	return found
}

// sortedKeys returns the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
