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

// seenTables are our tables as the kernel has them.
type seenTables struct {
	chains   map[string]seenChain // by family and name
	elements []element
	sets     map[string]bool
}

type seenChain struct {
	*nftables.Chain
	comments []string // of its rules; empty for one that is not ours
}

func chainKey(t *nftables.Table, name string) string { return fmt.Sprint(t.Family, "/", name) }

// readTables returns our tables, nil if one of them is missing.
func readTables(conn *nftables.Conn) (*seenTables, error) {
	seen := &seenTables{chains: map[string]seenChain{}, sets: map[string]bool{}}
	rates := map[string]string{}
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
		chains, err := conn.ListChainsOfTableFamily(t.Family)
		if err != nil {
			return nil, err
		}
		for _, c := range chains {
			if c.Table.Name != t.Name {
				continue
			}
			rules, err := conn.GetRules(t, c)
			if err != nil {
				return nil, err
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
	}
	return seen, seen.readSets(conn, rates)
}

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
			e := element{set: spec.name, key: string(k.Key), end: k.IntervalEnd}
			switch {
			case spec.interval && k.IntervalEnd && strings.Trim(e.key, "\x00") == "":
				continue // the kernel's own, before the first range
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

// faults returns in what the tables differ from what was written, in words.
func (seen *seenTables) faults(want map[element]string) []string {
	if seen == nil {
		return []string{"the nftables tables vman are missing"}
	}
	var found []string
	expected := map[string]bool{}
	for _, c := range chainSpecs() {
		key := chainKey(c.table, c.name)
		expected[key] = true
		if fault := seen.chainFault(c, key); fault != "" {
			found = append(found, fault)
		}
	}
	for key := range seen.chains {
		if !expected[key] && !strings.Contains(key, "/rate-") {
			found = append(found, "somebody has added the nftables chain "+seen.chains[key].Name)
		}
	}
	for _, s := range setSpecs() {
		if !seen.sets[s.name] {
			found = append(found, fmt.Sprintf("the nftables set %s is missing", s.name))
		}
	}
	missing := maps.Clone(want)
	foreign := map[string]int{}
	for _, e := range seen.elements {
		if _, ok := want[e]; !ok {
			foreign[e.set]++
		}
		delete(missing, e)
	}
	lost := map[string]int{}
	for e := range missing {
		lost[e.set]++
	}
	for _, name := range sorted(lost) {
		found = append(found, fmt.Sprintf("%d elements of the nftables set %s are missing", lost[name], name))
	}
	for _, name := range sorted(foreign) {
		found = append(found, fmt.Sprintf("%d elements of the nftables set %s are not vmand's", foreign[name], name))
	}
	return found
}

func (seen *seenTables) chainFault(c chainSpec, key string) string {
	has, ok := seen.chains[key]
	if !ok {
		return fmt.Sprintf("the nftables chain %s is missing", c.name)
	}
	if c.hook != nil && (has.Hooknum == nil || *has.Hooknum != *c.hook || has.Priority == nil || int(*has.Priority) != c.priority ||
		has.Policy == nil || *has.Policy != nftables.ChainPolicyAccept) {
		return fmt.Sprintf("the nftables chain %s is not where it was", c.name)
	}
	var comments []string
	for _, r := range c.rules {
		comments = append(comments, r.comment)
	}
	if !slices.Equal(comments, has.comments) {
		return fmt.Sprintf("somebody has changed the rules of the nftables chain %s", c.name)
	}
	return ""
}

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
