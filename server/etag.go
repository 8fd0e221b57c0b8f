package server

import (
	"fmt"
	"hash/fnv"
	"io"
	"regexp"
	"strconv"
	"strings"

	"vmand/vm"
)

// etagOf returns the strong entity tag of one state of a resource:
// "<Seq>-<Revision>", in quotes.
func etagOf(v vm.Version) string {
	b := make([]byte, 0, 24)
	b = append(b, '"')
	b = strconv.AppendInt(b, v.Seq, 10)
	b = append(b, '-')
	b = strconv.AppendInt(b, v.Revision, 10)
	return string(append(b, '"'))
}

// etag returns the entity tag of a VM with what is seen of its agent: whether it
// answers, and its version.
func (v *wireVM) etag() string {
	tag := etagOf(vmVersion(v.VM))
	if v.agent.State == vm.AgentAbsent {
		return tag
	}
	hash := fnv.New64a()
	_, _ = io.WriteString(hash, string(v.agent.State)+" "+v.agent.Version) // a hash takes everything
	return fmt.Sprintf(`%s.%016x"`, tag[:len(tag)-1], hash.Sum64())
}

// parseMatch returns the precondition an If-Match header states (RFC 9110,
// 13.1.1): nil when there is none or it is "*", which any present resource
// meets. Weak tags never match, nor does one that is not ours; both leave a
// Match that nothing meets. What is not a list of entity tags is an error.
func parseMatch(header string) (vm.Match, error) {
	header = strings.TrimSpace(header)
	if header == "" || header == "*" {
		return nil, nil
	}
	match := vm.Match{}
	for header != "" {
		tag, weak, rest, ok := nextTag(header)
		if !ok {
			return nil, invalid(vm.FieldFault{Field: "If-Match", Detail: "must be * or a list of quoted entity tags"})
		}
		header = rest
		if v, ours := parseTag(tag); ours && !weak {
			match = append(match, v)
		}
	}
	return match, nil
}

// matchesNone reports whether an If-None-Match header names etag (RFC 9110,
// 13.1.2, weak comparison): the client has the present state already.
func matchesNone(header, etag string) bool {
	header = strings.TrimSpace(header)
	if header == "*" {
		return true
	}
	for header != "" {
		tag, _, rest, ok := nextTag(header)
		if !ok {
			return false // a condition nobody can read is no condition
		}
		if tag == etag {
			return true
		}
		header = rest
	}
	return false
}

// nextTag cuts the first entity tag, quotes included, off a list of them.
func nextTag(list string) (tag string, weak bool, rest string, ok bool) {
	list, weak = strings.CutPrefix(list, "W/")
	if !strings.HasPrefix(list, `"`) {
		return "", false, "", false
	}
	end := strings.IndexByte(list[1:], '"')
	if end < 0 {
		return "", false, "", false
	}
	tag, rest = list[:end+2], strings.TrimSpace(list[end+2:])
	if rest == "" {
		return tag, weak, "", true
	}
	rest, ok = strings.CutPrefix(rest, ",")
	return tag, weak, strings.TrimSpace(rest), ok
}

// seenPart is what the tag of a resource has after its version for what is seen
// of the host. It is not what a precondition is about.
var seenPart = regexp.MustCompile(`\.[0-9a-f]{16}"$`)

func parseTag(tag string) (vm.Version, bool) {
	tag = seenPart.ReplaceAllString(tag, `"`)
	seq, rev, ok := strings.Cut(strings.Trim(tag, `"`), "-")
	if !ok {
		return vm.Version{}, false
	}
	s, err1 := strconv.ParseInt(seq, 10, 64)
	r, err2 := strconv.ParseInt(rev, 10, 64)
	v := vm.Version{Seq: s, Revision: r}
	// Only the spelling we give out is ours: no signs, no leading zeros.
	return v, err1 == nil && err2 == nil && etagOf(v) == tag
}
