package server

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"hash/maphash"
	"io"
	"regexp"
	"strconv"
	"strings"

	"vmand/vm"
)

// etagOf returns the strong entity tag of a version of a resource:
// "<Seq>-<Revision>", in quotes.
func etagOf(v vm.Version) string {
	b := make([]byte, 0, 24)
	b = append(b, '"')
	b = strconv.AppendInt(b, v.Seq, 10)
	b = append(b, '-')
	b = strconv.AppendInt(b, v.Revision, 10)
	return string(append(b, '"'))
}

// etag returns the entity tag of a VM, which also covers the state and the version of
// its guest agent.
func (v *wireVM) etag() string {
	tag := etagOf(vmVersion(v.VM))
	if v.agent.State == vm.AgentAbsent {
		return tag
	}
	hash := fnv.New64a()
	_, _ = io.WriteString(hash, string(v.agent.State)+" "+v.agent.Version) // never fails for a hash
	return fmt.Sprintf(`%s.%016x"`, tag[:len(tag)-1], hash.Sum64())
}

// addTag implements [listTagger]: like etag, it ignores when the agent was last seen.
func (v *wireVM) addTag(h *maphash.Hash) {
	b := make([]byte, 0, 32)
	b = binary.AppendVarint(b, v.Seq)
	b = binary.AppendVarint(b, int64(v.Revision))
	_, _ = h.Write(b) // never fails for a hash, as the other writes
	if v.agent.State != vm.AgentAbsent {
		_, _ = h.WriteString(string(v.agent.State))
		_, _ = h.WriteString(v.agent.Version)
	}
	_ = h.WriteByte(0)
}

// parseMatch returns the precondition of an If-Match header (RFC 9110, 13.1.1). It
// returns nil for an empty header and for "*", which every existing resource meets.
// Weak tags and unknown tags never match: a header with only such tags becomes an
// empty, non-nil Match, which no version meets. A header that is not a list of
// entity tags is an error.
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

// matching returns the tag of an If-None-Match header that matches etag (RFC 9110, 13.1.2,
// weak comparison), so that the answer is 304 with that tag, or "" if there is none. The tag
// of a compressed answer matches, too.
func matching(header, etag string) string {
	header = strings.TrimSpace(header)
	if header == "*" {
		return etag
	}
	plain, isWeak := strings.CutPrefix(etag, "W/")
	for header != "" {
		tag, _, rest, ok := nextTag(header)
		if !ok {
			return "" // an invalid condition is ignored
		}
		if withoutCoding(tag) == plain {
			if isWeak {
				return "W/" + tag
			}
			return tag
		}
		header = rest
	}
	return ""
}

// codingSuffix ends the entity tag of a compressed answer, which must differ from that of
// the plain one (RFC 9110, 8.8.3).
const codingSuffix = `-gzip"`

// withCoding returns the entity tag of the compressed answer.
func withCoding(etag string) string { return strings.TrimSuffix(etag, `"`) + codingSuffix }

// withoutCoding returns the entity tag of the plain answer.
func withoutCoding(etag string) string {
	if plain, ok := strings.CutSuffix(etag, codingSuffix); ok {
		return plain + `"`
	}
	return etag
}

// nextTag cuts the first entity tag, including its quotes, from a list.
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

// seenPart matches the part of an entity tag that covers observed state. A
// precondition ignores it: it only compares the recorded version.
var seenPart = regexp.MustCompile(`\.[0-9a-f]{16}"$`)

// parseTag returns the version in an entity tag. It reports false for a tag that
// etagOf does not produce.
func parseTag(tag string) (vm.Version, bool) {
	tag = seenPart.ReplaceAllString(withoutCoding(tag), `"`)
	seq, rev, ok := strings.Cut(strings.Trim(tag, `"`), "-")
	if !ok {
		return vm.Version{}, false
	}
	s, err1 := strconv.ParseInt(seq, 10, 64)
	r, err2 := strconv.ParseInt(rev, 10, 64)
	v := vm.Version{Seq: s, Revision: r}
	// Reject other spellings of the same numbers: signs, leading zeros.
	return v, err1 == nil && err2 == nil && etagOf(v) == tag
}
